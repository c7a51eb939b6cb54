"""The files that a cluster is started from: whole as they are, and every mistake in them is found."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.cluster_files import (
    BASE,
    CHECKS,
    JOBS,
    OVERLAYS,
    ROOT,
    command_problems,
    rayjob_problems,
    read,
    rendered,
)
from tests.jobs.dockerfile import dockerfile_problems

DOCKERFILE = (JOBS / "image" / "Dockerfile").read_text()
GONE = object()
"""In place of a value: the key is taken out."""
JOB = "spec.rayClusterSpec"
GROUP = f"{JOB}.workerGroupSpecs.0"
POD = f"{GROUP}.template.spec"
HEAD = f"{JOB}.headGroupSpec.template.spec"

MISTAKES: dict[str, dict[str, Any]] = {
    "kubernetes/rayjob.yaml": {
        "apiVersion": "ray.io/v1alpha1",
        "metadata.name": "Moves",
        "spec.backofLimit": 3,
        "spec.backoffLimit": 0,
        "spec.shutdownAfterJobFinishes": False,
        "spec.submissionMode": "K8sJob",
        "spec.entrypoint": "sgi2v-batch run s3://b/m --output s3://b/o --gpus 1 --workers 1:8 --allow-failed",
        "spec.runtimeEnvYAML": "env_vars: {RAY_JOB_STOP_WAIT_TIME_S: '3'}",
        f"{JOB}.rayVersion": "2.59.0",
        f"{JOB}.authOptions": GONE,
        f"{JOB}.autoscalerOptions.idleTimeoutSecond": 60,
        f"{JOB}.headGroupSpec.rayStartParams.num-gpus": 0,
        f"{HEAD}.terminationGracePeriodSeconds": 30,
        f"{HEAD}.containers.0.lifecycle": GONE,
        f"{HEAD}.containers.0.image": "rayproject/ray:2.60.0",
        f"{HEAD}.volumes": [],
        f"{GROUP}.maxReplicas": 4,
        f"{GROUP}.minReplicas": "0",
        f"{GROUP}.replicas": 9,
        f"{POD}.terminationGracePeriodSeconds": 45,
        f"{POD}.tolerations": GONE,
        f"{POD}.tolerations.0.operator": "Exist",
        f"{POD}.securityContext": GONE,
        f"{POD}.containers.0.resources.limits.nvidia.com/gpu": "one",
        f"{POD}.containers.0.resources.limits.memory": "24 GB",
        f"{POD}.containers.0.envFrom": GONE,
        f"{POD}.containers.0.env.0.value": 45,
        f"{POD}.containers.0.volumeMounts.0.name": "shm",
        f"{POD}.containers.0.volumeMounts.1.mountPath": "/weights",
        f"{POD}.volumes.0.emptyDir.medium": GONE,
    },
    "kubernetes/kustomization.yaml": {"resource": ["rayjob.yaml"], "resources": []},
    "overlays/one-gpu/kustomization.yaml": {"images.0.newTag": "0.0.1", "patches.0.target": GONE},
    "overlays/eight-gpus/kustomization.yaml": {
        "resources": ["../../kubernetes", 8],
        "patches.0.patch": "- {op: replaces, path: /spec/entrypoint, value: x}",
    },
    "overlays/spot/kustomization.yaml": {
        "patches.0.patch": "- {op: add, path: spec/backoffLimit, value: 6}",
        "images": {},
    },
    "overlays/kueue/kustomization.yaml": {"labels.0.pairs.kueue.x-k8s.io/queue-name": 1, "commonLabels": {"a": "b"}},
    "cluster/aws.yaml": {
        "idle_timeout": 5,
        "idle_timeout_minutes": 0,
        "max_workers": "8",
        "docker.image": "rayproject/ray:2.60.0",
        "head_node_type": "heads",
        "available_node_types.gpu.node_config.InstanceMarketOptions": GONE,
        "available_node_types.head.node_config.InstanceMarketOptions": {"MarketType": "spot"},
        "available_node_types.gpu.max_worker": 8,
        "available_node_types.gpu.min_workers": 2,
        "head_start_ray_commands": ["ray start --head"],
    },
    "cluster/gcp.yaml": {
        "provider": GONE,
        "docker.images": "x",
        "available_node_types.gpu.resources": GONE,
        "available_node_types.gpu.node_config.scheduling.0.preemptible": False,
        "available_node_types.gpu.max_workers": 9,
        "worker_start_ray_commands": ["ray start"],
        "head_start_ray_commands.1": "ray start --autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=::",
    },
    "sky.yaml": {
        "run": "sgi2v-batch run s3://b/m --outputs s3://b/o",
        "resource": {},
        "resources.use_spot": False,
        "resources.job_recovery.max_restarts_on_errors": 3,
        "resources.accelerators": "L4:one",
        "setup": "pip install .",
    },
}
"""File -> place in it -> a wrong value there."""

DOCKER_MISTAKES = {
    "ARG PYTHON=3.12": "ARG PYTHON=3.10",
    "ARG VERSION=0.1.0": "ARG VERSION=0.2.0",
    "ARG RAY=2.60.0": "ARG RAY=2.59.0",
    "whl/cu130": "whl/cpu",
    '"$(ls wheels/*.whl)$EXTRAS"': "sgi2v-batch",
    "RUN pip wheel": "RUN pip download",
    "install --constraint constraints.txt --index-url": "install --index-url",
    "COPY manifests manifests\n": "",
    "COPY pipeline pipeline": "COPY pipelines pipelines",
    "USER 1000:1000\n": "",
    "USER 1000:1000": "USERS 1000:1000",
    "SGI2V_CACHE=/cache/": "SGI2V_CACHE=/tmp/",
    "procps ": "",
    "COPY --from=build --chown=ray:ray /opt/sgi2v /opt/sgi2v\n": "",
    "ray.__version__ != '${RAY}'": "False",
    "FROM python:${PYTHON}-slim-bookworm\n": "FROM debian:bookworm-slim\n",
}
"""A part of the Dockerfile -> a mistake in its place."""


def changed(document: Any, place: str, value: Any) -> Any:
    """A copy with another value at a place; keys may have dots themselves."""
    copy = deepcopy(document)
    parent, rest = copy, place
    while True:
        if isinstance(parent, list):
            step, _, rest = rest.partition(".")
            key: Any = int(step)
        else:
            key = max((each for each in parent if rest == each or rest.startswith(f"{each}.")), key=len, default=rest)
            rest = rest[len(key) + 1 :]
        if not rest:
            break
        parent = parent[key]
    if value is GONE:
        del parent[key]
    else:
        parent[key] = value
    assert copy != document
    return copy


@pytest.mark.parametrize("name", CHECKS)
def test_a_file_is_as_its_reader_wants_it(name: str) -> None:
    assert list(CHECKS[name](read(JOBS / name))) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_renders_to_a_whole_job(name: str) -> None:
    overlay = read(JOBS / "overlays" / name / "kustomization.yaml")
    assert [(JOBS / "overlays" / name / each).resolve() for each in overlay["resources"]] == [BASE]
    assert list(rayjob_problems(rendered(overlay, read(BASE / "rayjob.yaml")))) == []


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, places in MISTAKES.items() for place in places])
def test_a_mistake_is_found(name: str, place: str) -> None:
    assert set(MISTAKES) == set(CHECKS)
    assert list(CHECKS[name](changed(read(JOBS / name), place, MISTAKES[name][place]))) != []


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("one-gpu", "--workers 1 ", "--workers 2 "),
        ("eight-gpus", "nvidia.com/gpu: 8", "nvidia.com/gpu: 4"),
        ("eight-gpus", "maxReplicas", "maxReplica"),
        ("spot", "path: /spec/backoffLimit\n      value: 6", "path: /spec/backoffLimit\n  value: 0"),
        ("spot", "spec/affinity", "spec/affinities"),
        ("kueue", "enableInTreeAutoscaling\n  value: false", "enableInTreeAutoscaling\n  value: true"),
        ("kueue", "minReplicas\n  value: 4", "minReplicas\n  value: 0"),
    ],
)
def test_a_mistake_in_a_patch_is_found(name: str, before: str, after: str) -> None:
    overlay = read(JOBS / "overlays" / name / "kustomization.yaml")
    text = overlay["patches"][0]["patch"]
    before = before.replace("\n      ", "\n  ")
    assert before in text
    overlay["patches"][0]["patch"] = text.replace(before, after)
    try:
        problems = list(rayjob_problems(rendered(overlay, read(BASE / "rayjob.yaml"))))
    except LookupError as error:
        problems = [str(error)]
    assert problems != []


def test_the_hook_of_the_head_finds_the_run_and_not_itself() -> None:
    """`pkill -f` looks at whole command lines; the hook's own shell and the job's shell must go on."""
    head = read(BASE / "rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    command = head["lifecycle"]["preStop"]["exec"]["command"]
    patterns = set(re.findall(r"-f '([^']+)'", command[-1]))
    assert len(patterns) == 1
    (pattern,) = patterns
    assert re.search(pattern, "/opt/sgi2v/bin/python /opt/sgi2v/bin/sgi2v-batch run s3://b/m.parquet --output s3://b/o")
    for other in (
        " ".join(command),
        "/bin/sh -c sgi2v-batch run s3://b/m.parquet",
        "ray::Load",
        "bin/sgi2v-batch status",
    ):
        assert not re.search(pattern, other), other


def test_every_field_that_a_user_changes_is_commented() -> None:
    lines = (BASE / "rayjob.yaml").read_text().splitlines()
    for field in ("name: sgi2v-batch", "backoffLimit: 3", "maxReplicas", "minReplicas", "image:", "hostPath"):
        of_field = [line for line in lines if re.match(rf" *(- )?{field}", line)]
        assert of_field
        assert all("CHANGE" in line for line in of_field)
    assert sum("CHANGE" in line for line in lines) >= 15


def test_the_commands_of_the_page_have_options_that_are_there() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *(sgi2v-batch (?:run|submit) [^>\n]*)", page, re.M)
    assert len(lines) >= 3
    assert [problem for line in lines for problem in command_problems(line, line.split()[1])] == []
    files = set(re.findall(r"`?(jobs/[\w./-]+)", page))
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_image_holds_what_the_project_says() -> None:
    assert list(dockerfile_problems(DOCKERFILE, ROOT)) == []


@pytest.mark.parametrize("part", DOCKER_MISTAKES)
def test_a_mistake_in_the_dockerfile_is_found(part: str) -> None:
    assert part in DOCKERFILE
    assert list(dockerfile_problems(DOCKERFILE.replace(part, DOCKER_MISTAKES[part]), ROOT)) != []


def test_the_image_is_built_from_what_git_has() -> None:
    ignored = Path(JOBS / "image" / "Dockerfile.dockerignore").read_text().split()
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)", DOCKERFILE, re.M) for word in line.split()[:-1]}
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
