"""What one run is: its inputs, its settings, and which of them decide the results.

Order of settings, the later wins: the checkpoint's own, the preset, the TOML file, the command line.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from manifests.access import Access
from manifests.fit import Fit, VideoSize
from sgi2v.canonical import canonical_json
from sgi2v.checkpoint import Checkpoint, check_layers, open_checkpoint
from sgi2v.config import GuidanceConfig, ModelConfig, Preset, SamplerConfig, apply_preset
from sgi2v.errors import ConfigError
from sgi2v.locations import without_query
from sgi2v.settings import Settings
from sgi2v.wording import did_you_mean, escaped

WAIT_ON_CLUSTER_S = 900.0
"""Seconds that a run waits for nodes of a cluster that can hold its workers."""
Toml = Mapping[str, Mapping[str, Any]]
"""Plain values by section."""


FIRST_FIT: Fit = "stretch"
"""What every output has that says nothing of `fit`: earlier versions made it."""
FIRST_METRICS = "objmc/v1"
"""Version of the metrics in every output that names none in its settings: earlier versions measured it."""


class MetricsConfig(Settings):
    """How motion fidelity is measured."""

    section: ClassVar[str] = "metrics"

    tracker: str = "lucas-kanade"
    """Name of the point tracker."""

    @field_validator("tracker")
    @classmethod
    def _is_known(cls, tracker: str) -> str:
        from sgi2v.tracking import TRACKERS

        if tracker not in TRACKERS:
            hint = did_you_mean(tracker, TRACKERS)
            raise ValueError(f"there is no tracker {tracker!r}{hint}: use one of {', '.join(sorted(TRACKERS))}")
        return tracker


class CandidatesConfig(Settings):
    """How many seeds are tried for a sample, and which of their videos is kept."""

    section: ClassVar[str] = "candidates"

    number: Annotated[int, Field(ge=1)] = 1
    """Seeds that are tried for each sample at most. The best video is kept: one that passes `keep` before one that does
    not, then the one with the highest `control_gain`."""
    keep: Annotated[str, Field(min_length=1)] | None = None
    """Condition on the metrics of a video that passes, as `pipeline.output.conditions` reads it; None: none is asked
    for."""
    stop_early: bool = False
    """Try no other seed for a sample once one of its videos passes."""

    @model_validator(mode="after")
    def _stops_at_a_condition(self) -> Self:
        if self.stop_early and (self.keep is None or self.number == 1):
            raise ValueError(
                "candidates.stop_early has no effect without candidates.keep and a candidates.number above 1: give "
                'both (--candidates 4 --keep "control_gain > 0.6"), or leave it out'
            )
        return self

    @property
    def are_measured(self) -> bool:
        """Whether videos are measured before one of them is kept: there are several, or one has to pass."""
        return self.number > 1 or self.keep is not None


Baseline = Literal["unguided"]


class ExecutionConfig(Settings):
    """Where and how wide a run goes; none of it decides the results, down to the last bits of arithmetic."""

    section: ClassVar[str] = "run"

    workers: int | str | None = None
    """Ray actors that hold a model: at most so many, or `MIN:MAX`; None: one per GPU, or per CPU where there is no GPU.
    """
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """GPUs that each worker takes, which a run without them waits for; None: 1 where the cluster has one, else 0."""
    accelerator_type: Annotated[str, Field(min_length=1)] | None = None
    """Ray's name of the GPUs that workers may run on, such as `A100`; None: any."""
    wait_for_gpus_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Seconds to wait for nodes that can hold the workers; None: WAIT_ON_CLUSTER_S on a cluster, 0 on one machine."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPU threads of a worker without a GPU; the same number gives the same bits."""
    sample_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds a stage may spend on one sample, or on each video of one that has several, before its worker is killed
    and the sample is started again."""
    memory: Literal["auto", "high", "medium", "low"] = "auto"
    """Memory tier of the samples; auto: the fastest that the device has room for, and a lower one when a sample runs
    out of memory."""
    compile: bool = False
    """Compile the U-Net's blocks before a worker's first sample."""
    untrusted: bool = False
    """Refuse images outside the manifest's folder and `roots`, and web redirects."""
    roots: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Folders and URL prefixes that an untrusted manifest may name as well."""
    address: str | None = None
    """Ray cluster to attach to; None: starts Ray on this machine."""

    @field_validator("workers", mode="before")
    @classmethod
    def _is_number_or_range(cls, workers: object) -> object:
        """The number of `4`, and the text of `1:8`."""
        if workers is None:
            return None
        match = re.fullmatch(r"(-?\d+)(?::(\d+))?", str(workers).strip())
        if match is None:
            raise ValueError(f"it is a number, such as 4, or a range, such as 1:8, and not {workers!r}")
        least, most = int(match[1]), int(match[2] or match[1])
        if least < 1:
            raise PydanticCustomError("greater_than_equal", "", {"ge": 1})
        if least > most:
            raise ValueError(f"the range {workers} ends before it begins: write {most}:{least}")
        return least if match[2] is None else f"{least}:{most}"

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"a worker takes a part of one GPU or whole ones, and not {gpus:g}")
        return gpus

    @field_validator("roots")
    @classmethod
    def _roots_absolute(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(absolute(root) for root in roots)

    @model_validator(mode="after")
    def _roots_need_untrusted(self) -> Self:
        if self.roots and not self.untrusted:
            raise ValueError("run.roots has no effect without run.untrusted: add --untrusted or remove --root")
        return self

    @model_validator(mode="after")
    def _accelerator_needs_gpus(self) -> Self:
        if self.accelerator_type is not None and self.gpus_per_worker == 0:
            raise ValueError("run.accelerator_type has no effect with run.gpus_per_worker 0: leave out one of them")
        return self

    @property
    def min_workers(self) -> int:
        """Workers that a run does not begin without."""
        return int(self.workers.partition(":")[0]) if isinstance(self.workers, str) else 1

    @property
    def max_workers(self) -> int | None:
        """Workers that a run has at most; None: as many as there is room for."""
        return int(self.workers.partition(":")[2]) if isinstance(self.workers, str) else self.workers

    @property
    def demands_gpus(self) -> bool:
        """Whether the workers run on GPUs or not at all."""
        return bool(self.gpus_per_worker) or self.accelerator_type is not None

    @property
    def access(self) -> Access:
        """Where images may lie."""
        return Access(self.roots if self.untrusted else None)


class RunSettings(ExecutionConfig):
    """The [run] section: how a run is executed, and what its samples start from."""

    preset: Preset = "paper"
    """`paper`: the checkpoint's own settings; `fast`: less than a third of the work; `scene`: what no box comes
    near stays where it is."""
    seed: int = 817
    """Seed for rows without a `seed` value."""
    fit: Fit = "crop"
    """How a picture fills a video of another shape, where its row does not say: crop, pad, stretch, or bucket (a video
    of about the picture's shape)."""
    baseline: Baseline | None = None
    """`unguided`: beside each guided video also plain SVD with the same noise; None: none."""


SECTIONS: Mapping[str, type[Settings]] = {
    each.section: each
    for each in (ModelConfig, SamplerConfig, GuidanceConfig, MetricsConfig, CandidatesConfig, RunSettings)
}
"""Sections of a settings file."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is made of."""

    manifest: str
    """Path or URL of the manifest."""
    output: str
    """Folder or URL that the results go to."""
    model: ModelConfig
    model_revision: str
    """Commit or digest of the weights."""
    sampler: SamplerConfig
    guidance: GuidanceConfig | None
    """None generates without control."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    baseline: Baseline | None = None
    """What is made beside each guided video."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    seed: int = 817
    """Seed for rows without a `seed` value."""
    fit: Fit = "crop"
    """How a picture fills a video of another shape, where its row does not say."""
    size_multiple: int = 64
    """Height and width that the model can make are multiples of this, pixels. The weights' revision decides it."""
    shard: str | None = None
    """Which part of the manifest the output is of, such as `0/3`; None: all of it."""

    @cached_property
    def video_size(self) -> VideoSize:
        """The size of the videos, and how pictures are fitted into it."""
        return VideoSize(self.sampler.height, self.sampler.width, self.fit, self.size_multiple)

    def deciding(self) -> dict[str, Any]:
        """What decides the results, as plain values: two runs may share an output only if it is equal.

        Candidates and the baseline are left out where they are off, as in earlier versions.
        """
        from sgi2v.metrics import METRICS_VERSION

        return {
            "model": {"revision": self.model_revision, "dtype": self.model.dtype},
            "sampler": self.sampler.plain(),
            "guidance": None if self.guidance is None else self.guidance.plain(),
            "metrics": self.metrics.plain(),
            "metrics_version": METRICS_VERSION,
            "seed": self.seed,
            "fit": self.fit,
            **({"candidates": self.candidates.plain()} if self.candidates != CandidatesConfig() else {}),
            **({"baseline": self.baseline} if self.baseline is not None else {}),
        }

    @property
    def fingerprint(self) -> str:
        """Digest of what decides the results. It knows `fit` unless that is FIRST_FIT, as in earlier versions."""
        deciding = self.deciding()
        if self.fit == FIRST_FIT:
            del deciding["fit"]
        return hashlib.sha256(canonical_json(deciding).encode()).hexdigest()[:16]


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for every setting that differs between two plain configurations: `sampler.steps: 50 before, 25 now`."""
    lines: list[str] = []
    for key in sorted({*recorded, *current}):
        old, new = recorded.get(key), current.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif canonical_json(old) != canonical_json(new):
            lines.append(f"{prefix}{key}: {_shown(old)} before, {_shown(new)} now")
    return lines


def _shown(value: Any) -> str:
    """A plain value as a message shows it; a whole section is on, and an absent value is off."""
    if value is None or value is False:
        return "off"
    if value is True or isinstance(value, Mapping):
        return "on"
    return value if isinstance(value, str) else canonical_json(value)


def read_toml(path: str) -> dict[str, dict[str, Any]]:
    """Read a settings file, local or by URL. Raises ConfigError for unreadable TOML and unknown sections."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as stream:
            settings = tomllib.loads(stream.read().decode("utf-8-sig"))  # Notepad writes a mark
    except Exception as error:  # a store's client raises its own library's errors
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    for section, values in settings.items():
        if section not in SECTIONS:
            hint = did_you_mean(section, SECTIONS)
            raise ConfigError(f"{path}: unknown section [{section}]{hint}: known are {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} must be a section, [{section}], not {values!r}")
    return settings


def merge(toml: Toml, flags: Toml) -> dict[str, dict[str, Any]]:
    """The settings of a file and of the command line by section; the command line wins.

    `--no-untrusted` drops the file's `roots` too, which have no effect then.
    """
    merged = {name: {**toml.get(name, {}), **flags.get(name, {})} for name in SECTIONS}
    if flags.get("run", {}).get("untrusted") is False and "roots" not in flags["run"]:
        merged["run"].pop("roots", None)
    return merged


def check_settings(settings: Toml) -> None:
    """Raise ConfigError for a setting that no checkpoint could use. Nothing is fetched."""
    for section, values in settings.items():
        SECTIONS[section].parse(values)


def default_output(manifest: str) -> str:
    """`runs/<manifest name>`, on this machine."""
    return f"runs/{Path(without_query(manifest).rstrip('/')).stem}"


def cluster_address(execution: ExecutionConfig) -> str | None:
    """The Ray cluster to attach to: the one named, or that of the job that this process belongs to.

    None for an empty address and for Ray's own word `local`: then Ray is started on this machine, for this run alone.
    """
    address = execution.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def waiting_seconds(execution: ExecutionConfig) -> float:
    """Seconds to wait for nodes that can hold the workers."""
    if execution.wait_for_gpus_s is not None:
        return execution.wait_for_gpus_s
    return WAIT_ON_CLUSTER_S if cluster_address(execution) else 0.0


def check_output_location(output: str) -> None:
    """Raise ConfigError for a location that is a slip of the keyboard or of a script, not a folder.

    Results would go into a folder of this machine that nobody looks for, and that a container loses at its end.
    """
    if not output.strip():
        raise ConfigError("--output is empty: check the variable that it comes from, or leave it out")
    if output.startswith("="):
        raise ConfigError(f"--output is {output}: write `-o {output[1:]}` or `--output{output}`")
    if cut := re.match(r"(?i)(s3a?|gcs|gs|az|abfss?|adl|hf|https?|file|local|memory):/(?!/)", output):
        raise ConfigError(f"--output is {output}: a URL begins with {cut[1]}://, and this would be a local folder")


def check_text(what: str, location: str) -> None:
    """Raise ConfigError for a name of a file that is no text in this process's encoding.

    Python has a way to pass its bytes on; JSON, Parquet and other processes have not.
    """
    if re.search(r"[\ud800-\udfff]", location):
        raise ConfigError(
            f"{what} is {escaped(location)}, which is not UTF-8 text: set LC_ALL=C.UTF-8 if the system has another "
            "encoding, or rename the file or folder"
        )


def absolute(location: str) -> str:
    """A local path made absolute, for processes that start in another folder; a URL unchanged."""
    if "://" in location:
        return location
    # Path.expanduser raises where `~x` is no user, as in the name of an editor's copy
    return str(Path(os.path.expanduser(location)).absolute())  # noqa: PTH111


def resolve(
    manifest: str,
    output: str | None,
    toml: Toml,
    flags: Toml,
    unguided: bool = False,
    weights: bool = True,
) -> tuple[RunConfig, Checkpoint]:
    """Settle every setting, and open the checkpoint far enough to know that the model can use them.

    toml, flags: values by section; flags hold only what was given. weights: fetch the weights too, if this machine
    will need them. Raises ConfigError or ModelError.
    """
    if output is not None:
        check_output_location(output)
    check_text("the manifest's location", absolute(manifest))
    check_text("--output", absolute(output or default_output(manifest)))
    settings = merge(toml, flags)
    run = RunSettings.parse(settings["run"])
    execution = ExecutionConfig(**{name: getattr(run, name) for name in ExecutionConfig.model_fields})
    if unguided and run.baseline is not None:
        raise ConfigError("run.baseline has no effect on unguided videos: leave out --unguided or run.baseline")
    model = ModelConfig.parse(settings["model"])
    checkpoint = open_checkpoint(model, weights=weights and not cluster_address(execution))
    sampler, guidance = apply_preset(run.preset, checkpoint.sampler(), checkpoint.guidance())
    sampler = sampler.replace(**settings["sampler"])
    guidance = guidance.replace(**settings["guidance"])
    checkpoint.check_size(sampler.height, sampler.width)
    guidance.step_indices(sampler.steps)
    check_layers(checkpoint.configs["unet"], guidance)
    config = RunConfig(
        manifest=absolute(manifest),
        output=absolute(default_output(manifest) if output is None else output),
        model=model,
        model_revision=checkpoint.revision,
        sampler=sampler,
        guidance=None if unguided else guidance,
        metrics=MetricsConfig.parse(settings["metrics"]),
        candidates=CandidatesConfig.parse(settings["candidates"]),
        baseline=run.baseline,
        execution=execution,
        seed=run.seed,
        fit=run.fit,
        size_multiple=checkpoint.size_multiple,
    )
    return config, checkpoint


def sample_seed(sample_id: str, base: int) -> int:
    """The 63-bit seed of a row without a `seed` value: the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(f"{base}:{sample_id}".encode()).digest()[:8], "big") >> 1


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a sample's candidate: of number 0 the sample's own, of the others 63 bits that follow from it."""
    return seed if number == 0 else sample_seed(f"candidate-{number}", seed)
