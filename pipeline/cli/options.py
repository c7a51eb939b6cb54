"""The options that `run` and `submit` share: declared once, and turned back into a command line for a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Manifest = Annotated[str, typer.Argument(help="Manifest: Parquet, CSV or JSONL; a path or any fsspec URL.")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="Folder or URL for the results.  [default: runs/<manifest name>]")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hugging Face id, folder or URL of an SVD checkpoint, or `embedded` (small, in the package).  "
        "[default: stabilityai/stable-video-diffusion-img2vid]",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hugging Face model.")]
DType = Annotated[
    str | None, typer.Option("--dtype", help="Weights: auto, float32, float16 or bfloat16.  [default: auto]")
]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE.toml", help="Settings file; flags win over it.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", help="paper: the checkpoint's own settings; fast: less than a third of the work.  [default: paper]"
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Model-holding actors.  [default: one per GPU, else per CPU]")
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", min=0, help="GPUs each worker takes.  [default: 1 where there is one, else 0]"),
]
Height = Annotated[int | None, typer.Option("--height", min=1, help="Frame height, px.  [default: the checkpoint's]")]
Width = Annotated[int | None, typer.Option("--width", min=1, help="Frame width, px.  [default: the checkpoint's]")]
Frames = Annotated[int | None, typer.Option("--frames", min=2, help="Frames per video.  [default: the checkpoint's]")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.  [default: the checkpoint's]")]
Seed = Annotated[int | None, typer.Option("--seed", help="Base seed of rows that bring none.  [default: 817]")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows of the manifest.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Do the rows again that have failed before.")]
Unguided = Annotated[bool, typer.Option("--unguided", help="Plain SVD with the same noise, as a baseline.")]
SampleTimeout = Annotated[
    float | None,
    typer.Option("--sample-timeout", metavar="SECONDS", help="Most that a sample may take a worker.  [default: 3600]"),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="auto, high, medium or low: lower takes less memory, more time.  [default: auto]"),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the U-Net first, minutes once on a machine; bench tells if it pays.")
]
Untrusted = Annotated[
    bool, typer.Option("--untrusted", help="Refuse images outside the manifest's folder and every --root.")
]
Roots = Annotated[
    list[str] | None,
    typer.Option("--root", metavar="PREFIX", help="Folder or URL that an --untrusted manifest may name; repeatable."),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take the output from another run at once, even if it seems alive.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, what is done, what is wrong, and the cost.")
]

SECTION_OF: Mapping[str, tuple[str, str]] = {
    "model": ("model", "source"),
    "revision": ("model", "revision"),
    "dtype": ("model", "dtype"),
    "preset": ("run", "preset"),
    "workers": ("run", "workers"),
    "gpus_per_worker": ("run", "gpus_per_worker"),
    "seed": ("run", "seed"),
    "untrusted": ("run", "untrusted"),
    "root": ("run", "roots"),
    "memory": ("run", "memory"),
    "compile": ("run", "compile"),
    "sample_timeout": ("run", "sample_timeout_s"),
    "height": ("sampler", "height"),
    "width": ("sampler", "width"),
    "frames": ("sampler", "num_frames"),
    "steps": ("sampler", "steps"),
}
"""Flag -> the section and name of its setting."""


def by_section(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings among the flags that were given, by section."""
    sections: dict[str, dict[str, Any]] = {}
    for flag, value in flags.items():
        if flag in SECTION_OF and value is not None and value is not False and value != []:
            section, name = SECTION_OF[flag]
            sections.setdefault(section, {})[name] = value
    return sections


def command_line(manifest: str, flags: Mapping[str, Any]) -> list[str]:
    """The `sgi2v-batch run` of these options, each that was given carried over."""
    words = ["sgi2v-batch", "run", manifest]
    for flag, value in flags.items():
        name = "--" + flag.replace("_", "-")
        if value is True:
            words.append(name)
        elif isinstance(value, list):
            words += [word for each in value for word in (name, str(each))]
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words
