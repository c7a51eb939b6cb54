"""`submit --kubernetes --print`: the RayJob of a run, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.rayjob import filled, job_name
from tests.jobs.cluster_files import BASE, VERSION, rayjob_problems
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import row, write_good, write_rows

S3_JOB = ("s3://bucket/m m.parquet", "--output", "s3://bucket/moves")
ON_KUBERNETES = ("--kubernetes", "--print", "--image", f"registry.io/sgi2v-batch:{VERSION}")


def printed(*words: str) -> tuple[str, Any]:
    """The text that `submit` prints, and the job in it."""
    result = here("submit", *S3_JOB, *ON_KUBERNETES, *words)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout, yaml.safe_load(result.stdout)


def group_of(job: Any) -> Any:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


@pytest.mark.slow
def test_the_options_are_in_the_job_and_the_comments_are_kept() -> None:
    text, job = printed("--workers", "2:16", "--gpus-per-worker", "2", "--steps", "25", "--env", "MARK=two words")
    assert list(rayjob_problems(job)) == ["--workers 16 are not the 2 x 16 GPUs"]  # a worker takes both GPUs of a pod
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["sgi2v-batch", "run", S3_JOB[0]]
    given = ("--output", S3_JOB[2], "--workers", "2:16", "--gpus-per-worker", "2.0", "--steps", "25", "--allow-failed")
    assert sorted(words[3:]) == sorted(given)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "MARK": "two words"}
    }
    group, base = group_of(job), group_of(yaml.safe_load((BASE / "rayjob.yaml").read_text()))
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 16)
    assert group["rayStartParams"] == base["rayStartParams"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"] == {
        "cpu": "8",
        "memory": "48Gi",
        "nvidia.com/gpu": 2,
    }
    before = (BASE / "rayjob.yaml").read_text().splitlines()
    assert [line for line in before if line.lstrip().startswith("#") and line not in text.splitlines()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "replicas", "gpus"),
    [
        ((), (0, 8), 1),
        (("--workers", "12"), (0, 12), 1),
        (("--workers", "3:8", "--gpus-per-worker", "0.25"), (1, 2), 1),
        (("--workers", "4", "--gpus-per-worker", "0"), (0, 4), 0),
    ],
)
def test_pods_for_workers(words: tuple[str, ...], replicas: tuple[int, int], gpus: int) -> None:
    _, job = printed(*words)
    group = group_of(job)
    assert (group["minReplicas"], group["maxReplicas"]) == replicas
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == gpus


@pytest.mark.slow
def test_the_autoscaler_learns_what_gpus_a_pod_has() -> None:
    _, job = printed("--accelerator-type", "A100")
    resources = group_of(job)["rayStartParams"]["resources"]
    assert json.loads(json.loads(resources)) == {"accelerator_type:A100": 1}  # a string in a string, as Ray reads it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kubernetes", "--image", "i"), "--kubernetes sends nothing itself: add --print"),
        (("--kubernetes", "--print"), "a RayJob needs --image"),
        (("--print", "--address", "http://h:8265"), "--print has no effect without --kubernetes"),
        (("--image", "i", "--address", "http://h:8265"), "--image has no effect without --kubernetes"),
        ((*ON_KUBERNETES, "--address", "http://h:8265"), "--address has no effect with --kubernetes"),
        ((*ON_KUBERNETES, "--ship"), "--ship has no effect with --kubernetes"),
        ((), "give --address, the URL of a Ray cluster's dashboard (http://HEAD:8265), or --kubernetes --print"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], message: str) -> None:
    result = here("submit", *S3_JOB, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.slow
def test_files_of_this_machine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[run]\nworkers = 3\n")
    result = here("submit", *S3_JOB, *ON_KUBERNETES, "--config", tmp_path / "s.toml")
    assert result.returncode == 2
    assert "a RayJob carries no files: give it a URL" in result.stderr
    result = here("submit", tmp_path / "m.parquet", "--output", "s3://b/o", *ON_KUBERNETES)
    assert result.returncode == 2
    assert "the cluster cannot see these locations" in result.stderr


@pytest.mark.slow
def test_failed_rows_start_no_new_cluster(tmp_path: Path) -> None:
    manifest = write_rows(write_good(tmp_path, 1).parent / "two.parquet", [row("s00"), row("gone")])
    with without_ray():
        result = run_tiny_here(manifest, tmp_path / "out", "--allow-failed")
    assert result.returncode == 0, result
    lines = result.stdout.splitlines()
    assert any(line.startswith("1 made, 1 failed") for line in lines), result.stdout
    assert "The exit code is 0 although 1 row failed, as --allow-failed asks." in result.stderr.splitlines()


def test_a_value_is_filled_in_and_all_else_stays() -> None:
    text = "a: 1  # one\nb:\n  - {c: x}  # two\n  - d: >-\n      long\n      text\n# three\ne: 2\n"
    assert filled(text, {("a",): "new", ("b", 0, "c"): [1], ("b", 1, "d"): "short"}) == (
        'a: "new"  # one\nb:\n  - {c: [1]}  # two\n  - d: "short"\n# three\ne: 2\n'
    )


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("s3://b/Big_Moves.v2/", "sgi2v-big-moves-v2"),
        ("s3://b/" + "x" * 80, "sgi2v-" + "x" * 34),
        ("s3://b/-", "sgi2v"),
    ],
)
def test_a_name_that_kubernetes_takes(location: str, name: str) -> None:
    assert job_name(location) == name
