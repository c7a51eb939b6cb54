"""The options of commands that make samples, each declared once.

A command takes a class of options with `@takes(RunOptions)`. An option is one field of the class: its name is the
flag's (`retry_failed` is `--retry-failed`, a bool has `--no-retry-failed` too), and `Sets` names the setting that it
changes. From here the option reaches `run`, `submit`, `bench` and the table in README.md (`python -m tools.reference`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from pipeline.cli.lines import print_progress

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from sgi2v.checkpoint import Checkpoint

NOT_GIVEN: tuple[object, ...] = (None, [])


class Sets(NamedTuple):
    """The setting that an option changes: its TOML section and its name there."""

    section: str
    name: str


def option(help: str, *flags: str, words: tuple[str, ...] = (), **more: Any) -> Any:
    """A Typer option. help: ends with `[default: ...]`. flags: only where the field's name does not say them.

    words: values that the shell completes.
    """
    if words:
        more["autocompletion"] = lambda: words
    return typer.Option(*flags, help=help, show_default=False, **more)


@dataclass(frozen=True)
class SampleOptions:
    """Options of every command that makes samples."""

    model: Annotated[
        str | None,
        Sets("model", "source"),
        option(
            "Hugging Face id, folder or URL of an SVD checkpoint, or `embedded` (small, in the package).  "
            "[default: stabilityai/stable-video-diffusion-img2vid]",
            words=("embedded",),
        ),
    ] = None
    revision: Annotated[
        str | None, Sets("model", "revision"), option("Branch, tag or commit of a Hugging Face model.")
    ] = None
    dtype: Annotated[
        str | None,
        Sets("model", "dtype"),
        option(
            "Type of the weights: auto, float32, float16 or bfloat16.  [default: auto]",
            words=("auto", "float32", "float16", "bfloat16"),
        ),
    ] = None
    config: Annotated[str | None, option("TOML settings file; options win over it.", metavar="FILE.toml")] = None
    preset: Annotated[
        str | None,
        Sets("run", "preset"),
        option(
            "paper: the checkpoint's own settings; fast: 29 % of the work; scene: what no box comes near stays where "
            "it is, for the work of paper (shown on the embedded checkpoint, unproven on SVD).  [default: paper]",
            words=("paper", "fast", "scene"),
        ),
    ] = None
    height: Annotated[
        int | None,
        Sets("sampler", "height"),
        option("Frame height, pixels; SVD: a multiple of 64.  [default: the checkpoint's]"),
    ] = None
    width: Annotated[
        int | None,
        Sets("sampler", "width"),
        option("Frame width, pixels; SVD: a multiple of 64.  [default: the checkpoint's]"),
    ] = None
    frames: Annotated[
        int | None, Sets("sampler", "num_frames"), option("Frames per video.  [default: the checkpoint's]")
    ] = None
    steps: Annotated[int | None, Sets("sampler", "steps"), option("Denoising steps.  [default: the checkpoint's]")] = (
        None
    )
    unguided: Annotated[bool, option("Make plain SVD videos with the same noise, as a baseline.")] = False
    memory: Annotated[
        str | None,
        Sets("run", "memory"),
        option(
            "Memory tier: high, medium or low. A lower one takes less memory and more time. auto takes the fastest "
            "that fits, and a lower one when memory runs out.  [default: auto]",
            words=("auto", "high", "medium", "low"),
        ),
    ] = None
    compile: Annotated[
        bool | None,
        Sets("run", "compile"),
        option(
            "Compile the U-Net first, minutes once per machine; `bench --compile` shows whether it pays.  "
            "[default: off]"
        ),
    ] = None


@dataclass(frozen=True)
class AccessOptions:
    """Options of every command that reads the images of a manifest."""

    untrusted: Annotated[
        bool | None,
        Sets("run", "untrusted"),
        option("Refuse images outside the manifest's folder and every --root, and web redirects.  [default: off]"),
    ] = None
    root: Annotated[
        list[str] | None,
        Sets("run", "roots"),
        option("Folder or URL prefix that an --untrusted manifest may name; repeatable.", metavar="PREFIX"),
    ] = None


@dataclass(frozen=True)
class CheckOptions(AccessOptions):
    """Options of every command that checks the rows of a manifest."""

    strict: Annotated[
        bool,
        option(
            "Refuse a manifest whose rows look wrong (other units, [y, x], paths far outside, boxes that a crop "
            "loses, stretched pictures). "
            "Without it, `run` warns, after a look at the first 10000 rows and 50 images; with it, it looks at all "
            "of them first."
        ),
    ] = False


@dataclass(frozen=True)
class RunOptions(CheckOptions, SampleOptions):
    """Options of a run, here or on a cluster."""

    output: Annotated[
        str | None,
        option("Folder or URL for the results.  [default: runs/<manifest name>]", "--output", "-o"),
    ] = None
    workers: Annotated[
        str | None,
        Sets("run", "workers"),
        option(
            "Ray actors that hold a model: at most N, or MIN:MAX. On a cluster, workers on GPUs start as nodes join.  "
            "[default: one per GPU, else one per CPU]",
            metavar="N|MIN:MAX",
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        Sets("run", "gpus_per_worker"),
        option(
            "GPUs for each worker; a run that is given a number above 0 does not start without them.  "
            "[default: 1 where there is one, else 0]"
        ),
    ] = None
    accelerator_type: Annotated[
        str | None,
        Sets("run", "accelerator_type"),
        option("Ray's name of the GPUs that workers may run on, such as A100.  [default: any]", metavar="NAME"),
    ] = None
    wait_for_gpus: Annotated[
        float | None,
        Sets("run", "wait_for_gpus_s"),
        option(
            "Seconds to wait for nodes that can hold the workers; Ray's autoscaler is asked for them.  "
            "[default: 900 on a cluster, 0 on one machine]",
            metavar="SECONDS",
        ),
    ] = None
    seed: Annotated[
        int | None, Sets("run", "seed"), option("Seed for rows without a `seed` value.  [default: 817]")
    ] = None
    fit: Annotated[
        str | None,
        Sets("run", "fit"),
        option(
            "How a picture fills a video of another shape: crop (around the boxes and paths), pad (black bars), "
            "stretch, or bucket (a video of about its shape, and no more pixels); the column `fit` wins.  "
            "[default: crop]",
            words=("crop", "pad", "stretch", "bucket"),
        ),
    ] = None
    candidates: Annotated[
        int | None,
        Sets("candidates", "number"),
        option(
            "Try up to N seeds for each row and keep the best video: one that passes --keep before one that does not, "
            "then the one with the highest control gain.  [default: 1]",
            metavar="N",
        ),
    ] = None
    keep: Annotated[
        str | None,
        Sets("candidates", "keep"),
        option(
            'Condition on the metrics of a video that passes, such as "control_gain > 0.6 and background_change < 2".',
            metavar="CONDITION",
        ),
    ] = None
    stop_early: Annotated[
        bool | None,
        Sets("candidates", "stop_early"),
        option("Try no other seed for a row once one of its videos passes --keep.  [default: off]"),
    ] = None
    baseline: Annotated[
        str | None,
        Sets("run", "baseline"),
        option(
            "unguided: beside each guided video also make plain SVD with the same noise, and record what guidance "
            "gained.  [default: none]",
            words=("unguided",),
        ),
    ] = None
    shard: Annotated[
        str | None,
        option(
            "Run one of N parts of the manifest, I from 0, into OUTPUT/shards/I; `sgi2v-batch merge` joins them.",
            metavar="I/N",
        ),
    ] = None
    limit: Annotated[int | None, option("Run only the first N rows of the manifest.", min=1, metavar="N")] = None
    retry_failed: Annotated[bool, option("Run rows again that have failed before.")] = False
    allow_failed: Annotated[
        bool,
        option("End with exit code 0 although rows failed; for schedulers that start a failed job again, as KubeRay."),
    ] = False
    redo_changed: Annotated[
        bool, option("Make finished samples again whose manifest row or image file has changed.")
    ] = False
    check_images: Annotated[
        bool, option("Read the images of finished samples again, and stop if one is not the image it was made from.")
    ] = False
    another_manifest: Annotated[
        bool,
        option("Take finished samples of a manifest at another location as rows of this one, if they compare equal."),
    ] = False
    sample_timeout: Annotated[
        float | None,
        Sets("run", "sample_timeout_s"),
        option(
            "Seconds a stage may spend on one sample, or on each video of one that has several, before its worker is "
            "killed.  [default: 3600]",
            metavar="SECONDS",
        ),
    ] = None
    notify: Annotated[
        str | None,
        option(
            "Tell how the run has ended: POST a JSON summary to an http(s) URL, or run a shell command with it. "
            "`$NAME` takes the target from that environment variable.",
            metavar="URL|COMMAND",
        ),
    ] = None
    report: Annotated[
        bool, option("Write pages that show the results to OUTPUT-report at the end; needs the extra [report].")
    ] = False
    take_over: Annotated[bool, option("Take the output from another run at once, even if it seems alive.")] = False
    dry_run: Annotated[
        bool, option("Print the plan, the problems, and the estimated time and memory; change nothing.")
    ] = False


@dataclass(frozen=True)
class LocalRunOptions(RunOptions):
    """Options of `run`; `submit` has an `--address` of its own, the dashboard's."""

    address: Annotated[
        str | None, Sets("run", "address"), option("Ray cluster to attach to.  [default: Ray on this machine]")
    ] = None


def takes(options_class: type[AccessOptions | SampleOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a Typer command the options of a class; it receives them as one object, its argument `options`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(options_class, include_extras=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
            for field in fields(options_class)
        ]
        own = [
            parameter.replace(kind=keyword)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "options"
        ]

        @wraps(command)
        def with_options(**values: Any) -> None:
            given = {parameter.name: values.pop(parameter.name) for parameter in shared}
            command(options=options_class(**given), **values)

        with_options.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        with_options.__annotations__ = {}
        return with_options

    return decorate


def settings_of(options: AccessOptions | SampleOptions) -> dict[str, dict[str, Any]]:
    """The settings that were given on the command line, by section."""
    sections: dict[str, dict[str, Any]] = {}
    for field, target in _targets(type(options)):
        value = getattr(options, field.name)
        if target is not None and value not in NOT_GIVEN:
            sections.setdefault(target.section, {})[target.name] = value
    return sections


@contextmanager
def errors_name_flags(options: AccessOptions | SampleOptions) -> Iterator[None]:
    """Let a ConfigError about a setting name the option that set it: `--workers` for `run.workers`."""
    from sgi2v.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        message = str(error)
        for field, target in _targets(type(options)):
            if target is not None and getattr(options, field.name) not in NOT_GIVEN:
                message = message.replace(f"{target.section}.{target.name}", flag_of(field.name))
        raise type(error)(message) from error


def settings_file_of(options: SampleOptions) -> dict[str, dict[str, Any]]:
    """The settings of the --config file, by section; none without a file. Raises ConfigError."""
    from pipeline.config import read_toml

    return read_toml(options.config) if options.config else {}


def settle(
    manifest: str, output: str | None, options: SampleOptions, weights: bool = True
) -> tuple[RunConfig, Checkpoint]:
    """Settle the options of a command that makes samples. Raises ConfigError or ModelError, as `resolve` does."""
    from pipeline.config import merge, resolve

    toml = settings_file_of(options)
    check_condition(merge(toml, settings_of(options)))
    with errors_name_flags(options):
        config, checkpoint = resolve(manifest, output, toml, settings_of(options), options.unguided, weights)
    if checkpoint.note is not None:
        print_progress(checkpoint.note)
    return config, checkpoint


def check_condition(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for a condition `candidates.keep` that cannot be used. settings: by section."""
    keep = settings["candidates"].get("keep")
    if isinstance(keep, str) and keep:  # what is no text is refused with the other settings
        from pipeline.output.candidates import keep_condition

        keep_condition(keep)


def flag_of(name: str) -> str:
    """The flag of an option: `--retry-failed` for `retry_failed`."""
    return "--" + name.replace("_", "-")


def command_line(manifest: str, options: RunOptions) -> list[str]:
    """The `sgi2v-batch run` command with these options."""
    words = ["sgi2v-batch", "run", manifest]
    for field in fields(RunOptions):
        value = getattr(options, field.name)
        flag = flag_of(field.name)
        if value in NOT_GIVEN or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [word for item in value for word in (flag, item)]
        else:
            words += [flag, str(value)]
    return words


def _targets(options_class: type[AccessOptions | SampleOptions]) -> Iterator[tuple[Field[Any], Sets | None]]:
    """Every option with the setting that it changes, or None."""
    hints = get_type_hints(options_class, include_extras=True)
    for field in fields(options_class):
        yield field, next((each for each in hints[field.name].__metadata__ if isinstance(each, Sets)), None)
