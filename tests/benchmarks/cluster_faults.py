"""60 rows on a real cluster of several nodes on this machine, submitted three ways, while nodes are killed and added.

    python -m tests.benchmarks.cluster_faults FOLDER [PART ...]

FOLDER gets the outputs and logs; its path must be short, for Ray's sockets. The GPUs are pretended, and the generator
is the tests' stand-in; the dataflow, the commits, Ray and its job server are real. Parts:

    submit       `sgi2v-batch submit`; nothing is killed
    ray-job      `ray job submit`; a worker node is killed without notice, and one is added
    rayjob       the shell line that KubeRay makes of `submit --kubernetes --print`; a node gets notice (SIGTERM)
    head-killed  `submit`; the head is killed without notice; the same submission on a new cluster
    head-notice  the same, but the head pod's preStop hook runs before the kill

Each part prints one line of JSON: records, lost and doubled rows, seconds, and what the screen and `status` said.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.flow.session import LOCAL_RAY
from tests.pipeline.runs import until, write_good
from tests.stand_in import SECONDS

ROOT = Path(__file__).parents[2]
ROWS = 60
PATIENCE_S = 900.0
ATTEMPTS = 8
STARTED = "Ray runtime started"
LATER = ("dashboard/dashboard.py", "ray-dashboard", "monitor.py")
"""Parts of the command lines of processes that a node's start does not wait for."""
TOKEN = "the-token-of-a-cluster-that-only-this-script-uses"
PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests import stand_in
stand_in.install()
stand_in.main()
"""
SMALL = ("--model", "embedded", "--height", "64", "--width", "64", "--frames", "4", "--steps", "3")
GPUS = ("--gpus-per-worker", "1", "--workers", "1:4")


class Cluster:
    """A head and its workers, each a `ray start --block` of its own, as in a pod."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "45",
            "RAY_health_check_initial_delay_ms": "60000",
            "RAY_health_check_timeout_ms": "60000",
            "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            **{name: value for name, value in LOCAL_RAY.items() if "WINDOWS" not in name},  # less work for few cores
            "PYTHONPATH": str(ROOT),
            SECONDS: "1.5",
        }
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray refuses a pretended GPU that is hidden
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.gcs, self.dashboard, client = free_ports(3)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        ports = (f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}")
        temp = f"--temp-dir={folder}/t"
        self._start("head", self._answers, "--head", *ports, temp, "--num-cpus=2", "--num-gpus=0")

    def add(self, name: str) -> None:
        """Start a node with 2 CPUs and a pretended GPU, and wait until it is there."""
        before = self.gpus()
        there = f"--address=127.0.0.1:{self.gcs}"
        self._start(name, lambda: self.gpus() > before, there, "--num-cpus=2", "--num-gpus=1")

    def gpus(self) -> int:
        """GPUs of the nodes that are alive."""
        nodes = (self._get("/nodes?view=summary") or {"data": {"summary": []}})["data"]["summary"]
        alive = [each["raylet"] for each in nodes if each["raylet"].get("state") == "ALIVE"]
        return int(sum(each.get("resourcesTotal", {}).get("GPU", 0) for each in alive))

    def kill(self, name: str) -> None:
        """End a node at once, with all its processes."""
        process = self.nodes.pop(name)
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in [*below, process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                each.kill()
        process.wait()

    def notify(self, name: str) -> None:
        """What a pod gets that is about to be taken away: `ray start --block` drains the node, then ends."""
        self.nodes[name].terminate()

    def stop(self) -> None:
        for name in list(self.nodes):
            self.kill(name)

    def _start(self, name: str, holds: Callable[[], bool], *words: str) -> None:
        """Start a node, and wait until something holds. Ray gives it 30 s, which a busy machine may miss some times."""
        for _ in range(ATTEMPTS):
            agent, metrics = free_ports(2)
            line = ["ray", "start", "--block", "--object-store-memory=90000000", *words]
            line += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
            with (self.folder / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    line, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
                )
            self.nodes[name] = process
            hold_dashboard_back(process, self.folder / f"{name}.log")
            until(f"{name} is there", lambda process=process: process.poll() is not None or holds(), PATIENCE_S)
            if process.poll() is None:
                return
            self.kill(name)
        raise AssertionError((self.folder / f"{name}.log").read_text()[-2000:])

    def _answers(self) -> bool:
        return self._get("/api/jobs/") is not None

    def _get(self, path: str) -> Any:
        """What the dashboard answers; None if it does not."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
        return None


def hold_dashboard_back(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a node has started; its raylet has 30 s, in which the dozen processes of the dashboard stand still."""
    said = log.read_text().count(STARTED)
    held: set[psutil.Process] = set()
    try:
        while process.poll() is None and log.read_text().count(STARTED) == said:
            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(process.pid).children(recursive=True)
                if any(each.name() == "raylet" for each in below):
                    for each in set(below) - held:
                        if any(part in " ".join(each.cmdline()) for part in LATER):
                            each.suspend()
                            held.add(each)
            time.sleep(0.2)
    finally:
        for each in held:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@contextmanager
def cluster(folder: Path, name: str) -> Iterator[Cluster]:
    (folder / name / "bin").mkdir(parents=True)
    program = folder / name / "bin" / "sgi2v-batch"
    program.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT)))
    program.chmod(0o755)
    nodes = Cluster(folder / name)
    try:
        yield nodes
    finally:
        nodes.stop()


def submit_words(nodes: Cluster, manifest: Path, output: Path) -> list[str]:
    words = ["submit", str(manifest), "--output", str(output), *SMALL, *GPUS, "--address", nodes.address]
    return [sys.executable, "-m", "sgi2v_batch", *words, "--shared-path", str(manifest.parent)]


def ray_job_words(nodes: Cluster, manifest: Path, output: Path) -> list[str]:
    run = ["sgi2v-batch", "run", str(manifest), "--output", str(output), *SMALL, *GPUS]
    return ["ray", "job", "submit", "--address", nodes.address, "--", *run]


def kuberay_words(nodes: Cluster, manifest: Path, output: Path) -> list[str]:
    """The command of KubeRay's submitter: the entrypoint stands in a script of bash as it is in the RayJob."""
    words = ["submit", str(manifest), "--output", str(output), *SMALL, *GPUS, "--shared-path", str(manifest.parent)]
    printed = subprocess.run(
        [sys.executable, "-m", "sgi2v_batch", *words, "--kubernetes", "--print", "--image", "sgi2v-batch:0"],
        env=nodes.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    spec = yaml.safe_load(printed)["spec"]
    environment = shlex.quote(json.dumps(yaml.safe_load(spec["runtimeEnvYAML"])))
    job = f"ray job submit --address {nodes.address} --no-wait --runtime-env-json {environment} --submission-id the-job"
    follow = f"ray job logs --address {nodes.address} --follow the-job"
    status = f"ray job status --address {nodes.address} the-job"
    return ["bash", "-ce", f"{job} -- {spec['entrypoint'].strip()} ; {follow} ; {status}"]


def pre_stop(nodes: Cluster) -> list[str]:
    """The hook of the RayJob's head pod, which here may end the run of this cluster only."""
    job = yaml.safe_load((ROOT / "jobs" / "kubernetes" / "rayjob.yaml").read_text())
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    *shell, line = head["lifecycle"]["preStop"]["exec"]["command"]
    assert "bin/[s]gi2v-batch" in line
    return [*shell, line.replace("bin/[s]gi2v-batch", f"{nodes.folder}/bin/[s]gi2v-batch")]


Step = tuple[int, Callable[[], None]]
"""Finished rows to wait for, and what is done then."""


def follow(nodes: Cluster, words: list[str], output: Path, log: Path, *steps: Step) -> tuple[int, float]:
    """Run a command that submits and follows a job, and do the steps meanwhile; its exit code and seconds."""
    began = time.monotonic()
    with log.open("ab") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=stream, env=nodes.environment, start_new_session=True)
        try:
            for rows, act in steps:
                until(
                    f"{rows} rows", lambda rows=rows: finished(output) >= rows or process.poll() is not None, PATIENCE_S
                )
                assert process.poll() is None, log.read_text()[-3000:]
                act()
            return process.wait(PATIENCE_S), time.monotonic() - began
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finished(output: Path) -> int:
    return len(list((output / "records").rglob("*.json"))) if output.exists() else 0


def report(part: str, output: Path, log: Path, environment: dict[str, str], **more: Any) -> None:
    """Print what came of a part."""
    import pyarrow.parquet as pq

    ids = Counter(pq.read_table(output / "metadata.parquet")["sample_id"].to_pylist())
    videos = {file.name.partition(".")[0] for file in (output / "videos").rglob("*.mp4")}
    status = subprocess.run(
        [sys.executable, "-m", "sgi2v_batch", "status", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    verify = subprocess.run(
        [sys.executable, "-m", "sgi2v_batch", "verify", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in log.read_text().splitlines() if line.strip() and not re.match(r"\[\d+/\d+\]", line)]
    events = [json.loads(line) for file in output.rglob("*.jsonl") for line in file.read_text().splitlines()]
    result = {
        "part": part,
        "records": len(ids),
        "lost": ROWS - len(ids),
        "doubled": sum(count - 1 for count in ids.values()),
        "videos": len(videos),
        **more,
        "verify": [verify.returncode, verify.stdout.splitlines()[-1:]],
        "status": status.stdout.splitlines(),
        "screen": [line[:160] for line in lines],
        "log": dict(Counter(str(event.get("event") or event.get("kind")) for event in events)),
    }
    print(json.dumps(result, indent=1), flush=True)


def run_part(folder: Path, part: str) -> None:
    manifest, output, log = (
        write_good(folder / f"{part}-in", ROWS),
        folder / f"{part}-in" / "out",
        folder / f"{part}.log",
    )
    with cluster(folder, part) as nodes:
        nodes.add("first")
        nodes.add("second")
        if part == "submit":
            code, seconds = follow(nodes, submit_words(nodes, manifest, output), output, log)
        elif part == "ray-job":
            steps: list[Step] = [(10, lambda: nodes.kill("first")), (15, lambda: nodes.add("third"))]
            code, seconds = follow(nodes, ray_job_words(nodes, manifest, output), output, log, *steps)
        elif part == "rayjob":
            steps = [(10, lambda: nodes.notify("first")), (25, lambda: nodes.add("third"))]
            code, seconds = follow(nodes, kuberay_words(nodes, manifest, output), output, log, *steps)
        else:

            def lose_head() -> None:
                if part == "head-notice":
                    began = time.monotonic()
                    subprocess.run(pre_stop(nodes), env=nodes.environment, check=False, timeout=120)
                    print(f"preStop took {time.monotonic() - began:.1f} s", flush=True)
                nodes.kill("head")

            code, seconds = follow(nodes, submit_words(nodes, manifest, output), output, log, (15, lose_head))
        environment = nodes.environment
    more: dict[str, Any] = {"exit": code, "seconds": round(seconds)}
    if part.startswith("head-"):
        more |= {"first_exit": code, "finished_before": finished(output)}
        more["tables_before"] = (output / "metadata.parquet").exists()
        with cluster(folder, f"{part}-2") as nodes:
            nodes.add("first")
            more["exit"], again = follow(nodes, submit_words(nodes, manifest, output), output, log)
            more["seconds"] = [round(seconds), round(again)]
    report(part, output, log, environment, **more)


PARTS = ("submit", "ray-job", "rayjob", "head-killed", "head-notice")


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    where.mkdir(parents=True)
    for each in sys.argv[2:] or PARTS:
        run_part(where, each)
