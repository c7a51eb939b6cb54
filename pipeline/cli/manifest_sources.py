"""`sgi2v-batch manifest from-...`: make a manifest of data that somebody has; nothing here starts Ray or a model."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import flag_of, option
from sgi2v.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from manifests.boxes.filters import BoxFilters
    from manifests.boxes.proposer import BoxProposer
    from manifests.sources.clips import ClipSettings
    from manifests.sources.made import Made

app = typer.Typer(rich_markup_mode=None)


def _checked(output: str) -> str:
    """The manifest to write. Raises ManifestError for a name of another format, before hours of work."""
    from manifests.io import check_format

    check_format(output)
    return output


Output = Annotated[
    str, typer.Option("--output", "-o", help="Manifest to write: .parquet, .csv or .jsonl.", callback=_checked)
]
Processes = Annotated[
    int | None, option("Files that are read at the same time, each in its own process.  [default: one per CPU]", min=1)
]


@app.command("from-sgi2v", epilog="Example: sgi2v-batch manifest from-sgi2v examples -o manifest.parquet")
def from_sgi2v(
    folder: Annotated[str, typer.Argument(help="Folder of example folders that hold img.png and traj.npy each.")],
    output: Output,
) -> None:
    """Make a manifest of example folders in the layout that SG-I2V was published with."""
    from manifests.skipped import folder_of
    from manifests.sources.sgi2v import from_sgi2v as read_folders

    _write(read_folders(folder, relative_to=folder_of(output)), output)
    _print_next(output)


@app.command(
    "from-videos",
    epilog="Example: sgi2v-batch manifest from-videos videos -o manifest.parquet --clips 3",
)
def from_videos(
    place: Annotated[str, typer.Argument(help="Folder, glob or URL of videos; subfolders are read too.")],
    output: Output,
    boxes: Annotated[str, option("Where boxes come from: salient, masks, detections, grid.  [default: salient]")] = (
        "salient"
    ),
    boxes_option: Annotated[list[str] | None, option("Option of --boxes; repeatable.", metavar="NAME=VALUE")] = None,
    filter: Annotated[list[str] | None, option("Filter of the boxes; repeatable.", metavar="NAME=VALUE")] = None,
    frames: Annotated[int | None, option("Points of a path: frames of the videos to make.  [default: 14]")] = None,
    fps: Annotated[float | None, option("Frames a second of the videos to make.  [default: 7]")] = None,
    clips: Annotated[
        int | None, option("Clips of one video, at most, spread evenly over it.  [default: as many as fit]")
    ] = None,
    objects: Annotated[int | None, option("Boxes of one clip that move, at most.  [default: 4]")] = None,
    min_path: Annotated[
        float | None,
        option("Smallest distance from an object's start, as a share of the picture's diagonal.  [default: 0.02]"),
    ] = None,
    min_zoom: Annotated[
        float | None, option("Change of an object's size that counts as motion too.  [default: 0.1]")
    ] = None,
    height: Annotated[
        int | None, option("Height of the videos to make, pixels, by which small boxes are left out.  [default: 576]")
    ] = None,
    width: Annotated[int | None, option("Width of these videos, pixels.  [default: 1024]")] = None,
    processes: Processes = None,
) -> None:
    """Make a manifest of what moves in videos: the first frame of a clip, boxes in it, and their true paths.

    The first frames are written to a folder beside the manifest. What was left out is in skipped.parquet there.
    """
    from manifests.boxes.filters import BoxFilters
    from manifests.sources.clips import ClipSettings

    with errors_name_flags("videos"):
        settings = ClipSettings(
            **_given(
                frames=frames,
                fps=fps,
                clips=clips,
                objects=objects,
                min_path=min_path,
                min_zoom=min_zoom,
                height=height,
                width=width,
            )
        )
    proposer = proposer_of(boxes, named_values(boxes_option, "--boxes-option"))
    filters = BoxFilters(**named_values(filter, "--filter"))
    make_from_videos(place, output, settings, proposer, filters, processes)


def make_from_videos(
    place: str,
    output: str,
    settings: ClipSettings,
    proposer: BoxProposer,
    filters: BoxFilters,
    processes: int | None,
) -> None:
    """Write the manifest of what moves in the videos of a place, with its pictures and `skipped.parquet`."""
    from manifests.skipped import folder_of
    from manifests.sources.videos import OWN_COLUMNS, FilteredBoxes, Target, recipe_of
    from manifests.sources.videos import from_videos as read_videos
    from pipeline.cli.lines import checked

    chosen = FilteredBoxes(proposer, filters, settings.height, settings.width)
    target = Target(folder_of(output), f"{Path(output).stem}-frames")
    made = read_videos(place, target, chosen.propose, settings, processes or _cpus(), checked("video"))
    _write_made(made, OWN_COLUMNS, recipe_of(settings, chosen), place, output)


@app.command(
    "from-vipseg", epilog="Example: sgi2v-batch manifest from-vipseg VIPSeg_720P --list val.txt -o manifest.parquet"
)
def from_vipseg(
    folder: Annotated[str, typer.Argument(help="Folder with imgs (or images) and panomasks.")],
    output: Output,
    list_file: Annotated[
        str | None,
        option("File with the ids of the videos, one a line.  [default: val.txt there, else all]", "--list"),
    ] = None,
    frames: Annotated[int | None, option("Annotated frames of a path, the first ones.  [default: 14]")] = None,
    regions: Annotated[
        str | None,
        option("things, or all: stuff too.  [default: things]", words=("things", "all")),
    ] = None,
    min_area: Annotated[float | None, option("Smallest area, as a share of the frame.  [default: 0.01]")] = None,
    min_side: Annotated[
        float | None, option("Smallest side of a box, pixels of the videos to make.  [default: 32]")
    ] = None,
    height: Annotated[int | None, option("Height of these videos, pixels.  [default: 576]")] = None,
    width: Annotated[int | None, option("Width of these videos, pixels.  [default: 1024]")] = None,
    max_objects: Annotated[int | None, option("Objects of a video, the largest ones.  [default: 4]")] = None,
    min_left: Annotated[
        float | None,
        option("Smallest share of its first area that an object keeps; else it vanishes.  [default: 0.2]"),
    ] = None,
    min_part: Annotated[
        float | None, option("Smallest share of its largest connected part; else it is split.  [default: 0.8]")
    ] = None,
    border: Annotated[
        str | None,
        option("drop or keep objects that touch the first frame's border.  [default: drop]", words=("drop", "keep")),
    ] = None,
    path: Annotated[
        str | None,
        option(
            "centroid: what the mask's centroid moves by; box: centres of the frames' own boxes.  [default: centroid]",
            words=("centroid", "box"),
        ),
    ] = None,
    min_path: Annotated[
        float | None,
        option("Smallest distance from the start, as a share of the diagonal; else it is static.  [default: 0.02]"),
    ] = None,
    static: Annotated[
        str | None,
        option(
            "still: static objects are told to stay; keep: they follow their paths; drop.  [default: still]",
            words=("still", "keep", "drop"),
        ),
    ] = None,
    masks: Annotated[
        str | None,
        option(
            "none: features are compared in the whole box; objects: under the object's mask.  [default: none]",
            words=("none", "objects"),
        ),
    ] = None,
    processes: Processes = None,
) -> None:
    """Make a manifest of VIPSeg: boxes from the masks of the first frame, paths from those of the first frames.

    The publication of SG-I2V does not say how it does this: the options are the choices, and the manifest has them in
    its column `recipe`. What was left out is in skipped.parquet beside it.
    """
    from manifests.skipped import folder_of
    from manifests.sources.vipseg import OWN_COLUMNS, VipsegSettings, recipe_of
    from manifests.sources.vipseg import from_vipseg as read_data_set
    from pipeline.cli.lines import checked

    with errors_name_flags("vipseg"):
        settings = VipsegSettings(
            **_given(
                frames=frames,
                regions=regions,
                min_area=min_area,
                min_side=min_side,
                height=height,
                width=width,
                max_objects=max_objects,
                min_left=min_left,
                min_part=min_part,
                border=border,
                path=path,
                min_path=min_path,
                static=static,
                masks=masks,
            )
        )
    made, listed_by = read_data_set(
        folder, folder_of(output), settings, list_file, processes or _cpus(), checked("video")
    )
    _write_made(made, OWN_COLUMNS, recipe_of(settings, listed_by), folder, output)


@app.command("from-mc-bench", epilog="Example: sgi2v-batch manifest from-mc-bench MC-Bench -o manifest.parquet")
def from_mc_bench(
    folder: Annotated[str, typer.Argument(help="Folder with Fine_grained_control and object_control.")],
    output: Output,
    frames: Annotated[int | None, option("Points of a path.  [default: 16]")] = None,
    metadata: Annotated[
        str | None,
        option(
            "new-first or old-first: which of meta_data_new.json and meta_data.json counts.  [default: new-first]",
            words=("new-first", "old-first"),
        ),
    ] = None,
    drags: Annotated[
        str | None,
        option(
            "one: leave out samples with several drags; parts: each moves its part of the mask.  [default: one]",
            words=("one", "parts"),
        ),
    ] = None,
    one_point: Annotated[
        str | None,
        option(
            "A drag of one point is published: a path by (1, 1) px; still: told to stay.  [default: published]",
            words=("published", "still"),
        ),
    ] = None,
) -> None:
    """Make a manifest of MC-Bench, the benchmark of MotionPro, and say how many samples entered.

    What was left out is in skipped.parquet beside the manifest, and the choices are in its column `recipe`.
    """
    from manifests.skipped import folder_of
    from manifests.sources.mc_bench import OWN_COLUMNS, McBenchSettings, entered, recipe_of
    from manifests.sources.mc_bench import from_mc_bench as read_benchmark

    with errors_name_flags("mc_bench"):
        settings = McBenchSettings(**_given(frames=frames, metadata=metadata, drags=drags, one_point=one_point))
    made = read_benchmark(folder, folder_of(output), settings)
    for line in entered(made):
        typer.echo(line)
    _write_made(made, OWN_COLUMNS, recipe_of(settings), folder, output)


@contextmanager
def errors_name_flags(section: str) -> Iterator[None]:
    """Let a ConfigError about a setting of the section name its option: `--min-area` for `vipseg.min_area`."""
    from sgi2v.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(rf"\b{section}\.(\w+)", lambda match: flag_of(match[1]), str(error))) from error


def proposer_of(name: str, options: dict[str, Any]) -> BoxProposer:
    """The box proposer of that name. Errors name its options as the command line does: `--boxes-option place`."""
    from manifests.boxes import load_proposer
    from sgi2v.errors import ConfigError

    try:
        return load_proposer(name, **options)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bboxes\.(\w+)", r"--boxes-option \1", str(error))) from error


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def named_values(words: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """The values of `NAME=VALUE`, each as TOML reads it, else as text."""
    from sgi2v.errors import ConfigError

    values: dict[str, Any] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{flag} {word} is not NAME=VALUE: write for example {flag} max_boxes=4")
        try:
            values[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = text
    return values


def _cpus() -> int:
    return os.cpu_count() or 1


def _write_made(
    made: Made, own_columns: Sequence[pa.Field[Any]], recipe: dict[str, Any], place: str, output: str
) -> None:
    """Write the manifest, and beside it the table of what is not in it."""
    from manifests.skipped import SHOWN_CODES, SkippedTable, folder_of
    from sgi2v.errors import ConfigError

    with SkippedTable(folder_of(output)) as skipped:
        for each in made.skipped:
            skipped.add(each)
    if not made.rows:
        raise ConfigError(f"{place} gives no sample; {skipped.reasons()}")
    reasons = [f"{number:6}  {code}" for code, number in skipped.counts.most_common(SHOWN_CODES)]
    lines = [f"left out, by reason (see {skipped.place}):", *reasons] if reasons else ["nothing was left out"]
    _write(made.manifest(own_columns, recipe, place), output)
    for line in lines:
        typer.echo(line)
    _print_next(output)


def _write(table: pa.Table, output: str) -> None:
    from manifests.io import write_manifest

    write_manifest(table, output)
    typer.echo(f"wrote {output}: {counted(table.num_rows, 'sample')}")


def _print_next(output: str) -> None:
    typer.echo(f"next: sgi2v-batch manifest validate {output}")
