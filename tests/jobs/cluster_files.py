"""What is wrong with a file in `jobs/`: each function takes the parsed file, and returns a line for each problem."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import typer.main
import yaml

from jobs.submit import STOP_WAIT_S
from pipeline.cli.main import app
from tests.jobs import cluster_schemas as schemas

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
BASE = JOBS / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in (JOBS / "overlays").glob("*/kustomization.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
RAY = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)[0]
IMAGE = re.compile(rf"^([a-zA-Z.]+/)?sgi2v-batch:{re.escape(VERSION)}$")
RAY_FOLDER = Path(getattr(find_spec("ray"), "origin", "")).parent
LAUNCHER = json.loads((RAY_FOLDER / "autoscaler" / "ray-schema.json").read_text())


def read(path: Path) -> Any:
    return deepcopy(_parsed(path))


@cache
def _parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@cache
def _commands() -> Any:
    """The commands of `sgi2v-batch` by name."""
    group: Any = typer.main.get_command(app)
    return group.commands


def by_schema(document: Any, schema: dict[str, Any]) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message}"


def rayjob_problems(job: Any) -> Iterator[str]:
    """The schema first; what it cannot say only where it holds."""
    if problems := list(by_schema(job, schemas.RAYJOB)):
        yield from problems
        return
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    pods = {"head": cluster["headGroupSpec"]["template"]["spec"], "worker": group["template"]["spec"]}
    (head,), (worker,) = (pod["containers"] for pod in pods.values())
    yield from command_problems(spec["entrypoint"])
    words = shlex.split(spec["entrypoint"])
    if "--allow-failed" not in words:
        yield "a run with failed rows would get a new cluster"
    gpus = worker["resources"]["limits"]["nvidia.com/gpu"]
    most = words[words.index("--workers") + 1].rpartition(":")[2]
    if int(most) != gpus * group["maxReplicas"]:
        yield f"--workers {most} are not the {gpus} x {group['maxReplicas']} GPUs"
    if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield "replicas are not between minReplicas and maxReplicas"
    if worker["resources"]["requests"] != worker["resources"]["limits"]:
        yield "requests and limits of a GPU pod differ"
    fixed = group["minReplicas"] == group["maxReplicas"] and "autoscalerOptions" not in cluster
    if not cluster["enableInTreeAutoscaling"] and not fixed:
        yield "nothing scales a cluster without the autoscaler"
    if "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", ()) and (
        cluster["enableInTreeAutoscaling"] or not spec.get("suspend")
    ):
        yield "Kueue takes suspended jobs of a fixed size"
    if cluster["rayVersion"] != RAY:
        yield f"rayVersion is not the Ray of constraints.txt, {RAY}"
    if cluster.get("authOptions") != {"mode": "token"}:
        yield "the dashboard lets everybody in"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "the cluster stays after the end"
    if not spec.get("backoffLimit"):
        yield "a lost head would not be replaced"
    stop_wait_s = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    if stop_wait_s != str(STOP_WAIT_S):
        yield f"a stopped job has {stop_wait_s} s in place of {STOP_WAIT_S}"
    if pods["head"]["terminationGracePeriodSeconds"] < 2 * STOP_WAIT_S or "preStop" not in head.get("lifecycle", {}):
        yield "the run on a lost head cannot write its tables"
    variables = {each["name"]: each["value"] for each in worker.get("env", ())}
    drain_s = variables.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "30")
    if pods["worker"]["terminationGracePeriodSeconds"] <= int(drain_s):
        yield "a worker is killed before it has drained"
    for where, pod in pods.items():
        yield from pod_problems(where, pod)
    if "/cache" not in {mount["mountPath"] for mount in worker["volumeMounts"]}:
        yield "weights are fetched again by every pod"
    if not any(each["key"] == "nvidia.com/gpu" for each in pods["worker"].get("tolerations", ())):
        yield "GPU nodes are tainted"


def pod_problems(where: str, pod: Any) -> Iterator[str]:
    """Mounts without a volume, another image, no /dev/shm of a size that holds Ray's object store, no secrets, root."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        if not IMAGE.match(container["image"]):
            yield f"{where}: the image {container['image']} is not sgi2v-batch:{VERSION}"
        for mount in container["volumeMounts"]:
            if mount["name"] not in volumes:
                yield f"{where}: there is no volume {mount['name']}"
    (ray_container,) = pod["containers"]
    shm = [
        volumes.get(mount["name"], {}) for mount in ray_container["volumeMounts"] if mount["mountPath"] == "/dev/shm"
    ]
    if [volume.get("emptyDir", {}).get("medium") for volume in shm] != ["Memory"]:
        yield f"{where}: /dev/shm is no memory"
    if not ray_container.get("envFrom"):
        yield f"{where}: no secrets"
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield f"{where}: runs as root"


def command_problems(line: str, name: str = "run") -> Iterator[str]:
    """Options that a command of `sgi2v-batch` does not have, and values that they cannot have."""
    program, *words = shlex.split(line)
    if Path(program).name != "sgi2v-batch" or words[:1] != [name]:
        yield f"{line}: not sgi2v-batch {name}"
        return
    try:
        _commands()[name].make_context(name, list(words[1:]))
    except Exception as error:  # of Typer's own kinds, which it does not export
        yield f"{line}: {error}"


def kustomization_problems(document: Any) -> Iterator[str]:
    if problems := list(by_schema(document, schemas.KUSTOMIZATION)):
        yield from problems
        return
    for patch in document.get("patches", ()):
        yield from by_schema(yaml.safe_load(patch["patch"]), schemas.PATCH)
    for image in document.get("images", ()):
        if image["name"] != "sgi2v-batch" or image.get("newTag") != VERSION:
            yield f"the image {image} is not sgi2v-batch:{VERSION}"


def rendered(document: Any, base: Any) -> Any:
    """What `kubectl kustomize` makes of an overlay on the base. Raises LookupError for a path that is not there."""
    job = deepcopy(base)
    for patch in document.get("patches", ()):
        for change in yaml.safe_load(patch["patch"]):
            *way, last = change["path"].lstrip("/").split("/")
            parent = job
            for step in way:
                parent = parent[_key(parent, step)]
            key = _key(parent, last)
            if change["op"] != "add":
                del parent[key]
            if change["op"] != "remove":
                parent[key] = change["value"]
    for labels in document.get("labels", ()):
        job["metadata"].setdefault("labels", {}).update(labels["pairs"])
    for image in document.get("images", ()):
        for container in _containers(job):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return job


def _key(parent: Any, step: str) -> Any:
    return int(step) if isinstance(parent, list) else step


def _containers(node: Any) -> Iterator[Any]:
    """Every container in a document, wherever it is."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in {"containers", "initContainers"}:
            yield from value
        elif isinstance(value, (dict, list)):
            yield from _containers(value)


def launcher_problems(document: Any) -> Iterator[str]:
    """By Ray's own schema, and what it leaves open."""
    if problems := list(by_schema(document, LAUNCHER)):
        yield from problems
        return
    if not IMAGE.match(document.get("docker", {}).get("image", "")):
        yield f"the image is not sgi2v-batch:{VERSION}"
    if not document.get("idle_timeout_minutes"):
        yield "idle machines stay"
    types = document["available_node_types"]
    head, workers = types.get(document.get("head_node_type")), types.get("gpu", {})
    if head is None:
        yield "head_node_type is none of the types"
        return
    spot = {"aws": _is_spot_on_aws, "gcp": _is_spot_on_gcp}[document["provider"]["type"]]
    if spot(head["node_config"]) or not spot(workers.get("node_config", {})):
        yield "the workers, and they alone, are spot machines"
    if workers.get("max_workers") != document["max_workers"] or workers.get("min_workers"):
        yield "max_workers and min_workers of the GPU machines are not the file's and 0"
    starts = " ".join(document["head_start_ray_commands"])
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in starts:
        yield "the head starts without an autoscaler"
    if not any("--address=$RAY_HEAD_IP:6379" in line for line in document["worker_start_ray_commands"]):
        yield "workers do not join the head"
    if "--dashboard-host" in starts:
        yield "the dashboard has no token, and listens on more than the loopback address"


def _is_spot_on_aws(node: Any) -> bool:
    return bool(node.get("InstanceMarketOptions", {}).get("MarketType") == "spot")


def _is_spot_on_gcp(node: Any) -> bool:
    return any(each.get("preemptible") is True for each in node.get("scheduling", ()))


def sky_problems(document: Any) -> Iterator[str]:
    if problems := list(by_schema(document, schemas.SKY)):
        yield from problems
        return
    yield from command_problems(document["run"])
    if document["resources"].get("use_spot") is not True:
        yield "not a spot machine"
    if document["resources"].get("job_recovery") != {"recover_on_exit_codes": [3]}:
        yield "only a lost store or a bug is worth another machine"
    if "-c constraints.txt" not in document.get("setup", ""):
        yield "the versions are not pinned"


CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "kubernetes/rayjob.yaml": rayjob_problems,
    "kubernetes/kustomization.yaml": kustomization_problems,
    **{f"overlays/{name}/kustomization.yaml": kustomization_problems for name in OVERLAYS},
    "cluster/aws.yaml": launcher_problems,
    "cluster/gcp.yaml": launcher_problems,
    "sky.yaml": sky_problems,
}
"""File in `jobs/` -> what says what is wrong with it."""
