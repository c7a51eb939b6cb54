"""What the files in `jobs/` may hold: the fields that they use, with the types that KubeRay 1.7, Kubernetes, Kustomize
and SkyPilot give them. A field that is not here is a slip of the keyboard, or is to be added here.

Ray's own schema of a cluster launcher file is in Ray.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
POSITIVE: Schema = {"type": "integer", "minimum": 1}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {"anyOf": [COUNT, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}]}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


def list_of(item: Schema, least: int = 1) -> Schema:
    return {"type": "array", "items": item, "minItems": least}


def fields(properties: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


MATCH = fields(
    {"key": TEXT, "operator": one_of("In", "NotIn", "Exists", "DoesNotExist"), "values": list_of(TEXT)},
    "key",
    "operator",
)
TERM = fields({"matchExpressions": list_of(MATCH)}, "matchExpressions")
AFFINITY = fields(
    {
        "nodeAffinity": fields(
            {
                "requiredDuringSchedulingIgnoredDuringExecution": fields(
                    {"nodeSelectorTerms": list_of(TERM)}, "nodeSelectorTerms"
                ),
                "preferredDuringSchedulingIgnoredDuringExecution": list_of(
                    fields(
                        {"weight": {"type": "integer", "minimum": 1, "maximum": 100}, "preference": TERM},
                        "weight",
                        "preference",
                    )
                ),
            }
        )
    }
)
AMOUNTS = fields({"cpu": QUANTITY, "memory": QUANTITY, "nvidia.com/gpu": COUNT}, "cpu", "memory")
RESOURCES = fields({"requests": AMOUNTS, "limits": AMOUNTS}, "requests", "limits")
USER = fields({"runAsNonRoot": FLAG, "runAsUser": COUNT, "runAsGroup": COUNT, "fsGroup": COUNT})
CONTAINER = fields(
    {
        "name": NAME,
        "image": TEXT,
        "imagePullPolicy": one_of("Always", "IfNotPresent", "Never"),
        "command": list_of(TEXT),
        "resources": RESOURCES,
        "ports": list_of(fields({"name": NAME, "containerPort": POSITIVE}, "containerPort")),
        "env": list_of(fields({"name": TEXT, "value": TEXT}, "name", "value")),
        "envFrom": list_of(fields({"secretRef": fields({"name": NAME, "optional": FLAG}, "name")}, "secretRef")),
        "lifecycle": fields({"preStop": fields({"exec": fields({"command": list_of(TEXT)}, "command")}, "exec")}),
        "securityContext": USER,
        "volumeMounts": list_of(
            fields({"name": NAME, "mountPath": {"type": "string", "pattern": "^/"}}, "name", "mountPath")
        ),
    },
    "name",
    "image",
)
VOLUME = fields(
    {
        "name": NAME,
        "emptyDir": fields({"medium": one_of("Memory"), "sizeLimit": QUANTITY}),
        "hostPath": fields(
            {"path": {"type": "string", "pattern": "^/"}, "type": one_of("Directory", "DirectoryOrCreate")}, "path"
        ),
    },
    "name",
)
TOLERATION = fields(
    {
        "key": TEXT,
        "operator": one_of("Exists", "Equal"),
        "value": TEXT,
        "effect": one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
    },
    "key",
    "operator",
)
POD = fields(
    {
        "spec": fields(
            {
                "terminationGracePeriodSeconds": POSITIVE,
                "securityContext": USER,
                "affinity": AFFINITY,
                "tolerations": list_of(TOLERATION),
                "nodeSelector": TEXTS,
                "initContainers": list_of(CONTAINER),
                "containers": list_of(CONTAINER),
                "volumes": list_of(VOLUME),
            },
            "containers",
        )
    },
    "spec",
)
AUTOSCALER = fields(
    {
        "version": one_of("v1", "v2"),
        "upscalingMode": one_of("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": POSITIVE,
        "resources": RESOURCES,
    }
)
GROUP = fields(
    {
        "groupName": NAME,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": TEXTS,
        "template": POD,
    },
    "groupName",
    "minReplicas",
    "maxReplicas",
    "template",
)
CLUSTER = fields(
    {
        "rayVersion": TEXT,
        "authOptions": fields({"mode": one_of("token", "disabled")}, "mode"),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": AUTOSCALER,
        "headGroupSpec": fields({"rayStartParams": TEXTS, "template": POD}, "rayStartParams", "template"),
        "workerGroupSpecs": list_of(GROUP),
    },
    "rayVersion",
    "headGroupSpec",
)
RAYJOB = fields(
    {
        "apiVersion": one_of("ray.io/v1"),
        "kind": one_of("RayJob"),
        "metadata": fields({"name": {**NAME, "maxLength": 47}, "labels": TEXTS}, "name"),
        "spec": fields(
            {
                "entrypoint": TEXT,
                "runtimeEnvYAML": TEXT,
                "backoffLimit": COUNT,
                "shutdownAfterJobFinishes": FLAG,
                "ttlSecondsAfterFinished": COUNT,
                "suspend": FLAG,
                "submitterConfig": fields({"backoffLimit": COUNT}),
                "rayClusterSpec": CLUSTER,
            },
            "entrypoint",
            "rayClusterSpec",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)
KUSTOMIZATION = fields(
    {
        "apiVersion": one_of("kustomize.config.k8s.io/v1beta1"),
        "kind": one_of("Kustomization"),
        "resources": list_of(TEXT),
        "images": list_of(fields({"name": TEXT, "newName": TEXT, "newTag": TEXT}, "name")),
        "labels": list_of(fields({"pairs": TEXTS}, "pairs")),
        "patches": list_of(
            fields({"target": fields({"kind": one_of("RayJob")}, "kind"), "patch": TEXT}, "target", "patch")
        ),
    },
    "apiVersion",
    "kind",
    "resources",
)
PATCH = list_of(
    {
        "oneOf": [
            fields(
                {"op": one_of("add", "replace"), "path": {"type": "string", "pattern": "^/"}, "value": {}},
                "op",
                "path",
                "value",
            ),
            fields({"op": one_of("remove"), "path": {"type": "string", "pattern": "^/"}}, "op", "path"),
        ]
    }
)
SKY = fields(
    {
        "name": NAME,
        "workdir": TEXT,
        "resources": fields(
            {
                "accelerators": {"type": "object", "additionalProperties": POSITIVE},
                "use_spot": FLAG,
                "disk_size": POSITIVE,
                "job_recovery": fields(
                    {"recover_on_exit_codes": list_of({"type": "integer", "minimum": 1, "maximum": 255})}
                ),
            }
        ),
        "secrets": {"type": "object", "additionalProperties": {"type": "string"}},
        "setup": TEXT,
        "run": TEXT,
    },
    "run",
)
