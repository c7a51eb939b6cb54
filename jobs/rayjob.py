"""Fills the options of a run into the job for KubeRay. Nothing here talks to a cluster."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.submit import STOP_WAIT_S

NAME_LIMIT = 40
"""Characters of a RayJob's name; KubeRay adds to it, and takes 47 at most."""
GPU = "nvidia.com/gpu"
CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec", "template", "spec")
GROUP = (*CLUSTER, "workerGroupSpecs", 0)
WORKER = (*GROUP, "template", "spec")
CPUS_PER_GPU = 4
GIB_PER_GPU = 24
OBJECT_STORE_BYTES = "4000000000"

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value of a YAML text."""
RAYJOB = Path(__file__).parent / "kubernetes" / "rayjob.yaml"


def rayjob_yaml(
    words: Sequence[str],
    name: str,
    image: str,
    variables: Mapping[str, str],
    workers: tuple[int, int | None],
    gpus_per_worker: float,
    accelerator_type: str | None = None,
) -> str:
    """The text of `kubernetes/rayjob.yaml` with the values of a job, its comments kept.

    words: the command of the job. name: what its name is made from. workers: at least and at most; None: as the file
    has it. A worker without a GPU gets a pod of its own.
    """
    per_pod = max(1, int(1 / gpus_per_worker + 1e-6)) if gpus_per_worker else 1
    gpus = int(max(1, gpus_per_worker)) if gpus_per_worker else 0
    size = {"cpu": str(CPUS_PER_GPU * max(1, gpus)), "memory": f"{GIB_PER_GPU * max(1, gpus)}Gi", GPU: gpus}
    least, most = workers
    values: dict[Place, Any] = {
        ("metadata", "name"): job_name(name),
        ("spec", "entrypoint"): shlex.join(words),
        ("spec", "runtimeEnvYAML"): json.dumps(
            {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **variables}}
        ),
        (*HEAD, "containers", 0, "image"): image,
        (*WORKER, "initContainers", 0, "image"): image,
        (*WORKER, "containers", 0, "image"): image,
        (*GROUP, "minReplicas"): -(-least // per_pod),
        (*GROUP, "replicas"): -(-least // per_pod),
        (*WORKER, "containers", 0, "resources", "requests"): size,
        (*WORKER, "containers", 0, "resources", "limits"): size,
    }
    if most is not None:
        values[*GROUP, "maxReplicas"] = -(-most // per_pod)
    if accelerator_type is not None:  # the autoscaler must know it before there is a pod
        quoted = json.dumps(json.dumps({f"accelerator_type:{accelerator_type}": 1}))  # it ends up in a shell's words
        values[*GROUP, "rayStartParams"] = {"object-store-memory": OBJECT_STORE_BYTES, "resources": quoted}
    return filled(RAYJOB.read_text(), values)


def job_name(text: str) -> str:
    """A name that Kubernetes takes, from the last part of a location."""
    last = text.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9]+", "-", f"sgi2v-{last}")[:NAME_LIMIT].strip("-")


def filled(text: str, values: Mapping[Place, Any]) -> str:
    """A YAML text with other values at some places; all else stays as it is, comments too."""
    import yaml

    root = yaml.compose(text)
    spans = []
    for path, value in values.items():
        node = _node_at(root, path)
        is_block = isinstance(node, yaml.ScalarNode) and node.style in {"|", ">"}  # ends where the next line begins
        spans.append((node.start_mark.index, node.end_mark.index, json.dumps(value) + ("\n" if is_block else "")))
    for start, end, value in sorted(spans, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _node_at(node: Any, path: Place) -> Any:
    for step in path:
        node = node.value[step] if isinstance(step, int) else next(v for k, v in node.value if k.value == step)
    return node
