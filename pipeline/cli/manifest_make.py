"""`sgi2v-batch manifest make` and `stats`: a manifest from pictures or videos, and a picture of what one holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.lines import Counting
from pipeline.cli.manifest_sources import make_from_videos, named_values, proposer_of
from pipeline.cli.options import flag_of, option
from sgi2v.errors import ConfigError
from sgi2v.wording import counted, ranked

if TYPE_CHECKING:
    from manifests.fit import VideoSize
    from manifests.make import Made

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: sgi2v-batch manifest make photos -o manifest.parquet --samples 1000 "
    "--motions objects=0.7,camera=0.2,both=0.1"
)
def make(
    place: Annotated[
        str | None,
        typer.Argument(help="Folder, glob or fsspec URL of pictures, or videos.", metavar="PLACE", show_default=False),
    ] = None,
    output: Annotated[str | None, option("Manifest to write, .parquet.", "--output", "-o")] = None,
    from_videos: Annotated[
        bool,
        option(
            "PLACE has videos: the first frame of a clip is the picture, and what moved in it gives the paths.  "
            "`manifest from-videos` does the same, and has more options."
        ),
    ] = False,
    samples: Annotated[int | None, option("Samples to make.  [default: one per picture]")] = None,
    per_image: Annotated[int | None, option("Most samples of one picture.  [default: no limit]")] = None,
    motions: Annotated[
        str | None,
        option(
            "Share of the samples for each of objects, camera and both, or for motions and camera moves by name.  "
            "[default: objects=0.7,camera=0.2,both=0.1]"
        ),
    ] = None,
    seed: Annotated[int | None, option("The same seed and pictures give the same manifest.  [default: 0]")] = None,
    boxes: Annotated[
        str | None, option("Where boxes come from: salient, masks, detections, grid or whole.  [default: salient]")
    ] = None,
    boxes_option: Annotated[
        list[str] | None,
        option("Option of --boxes as NAME=VALUE; may be given more than once.", metavar="NAME=VALUE"),
    ] = None,
    still: Annotated[
        str | None, option("others: boxes that do not move are told to stay. none: no such boxes.  [default: none]")
    ] = None,
    fit: Annotated[
        str | None,
        option("Column `fit` of every row: crop, pad, stretch or bucket.  [default: no column; the run decides]"),
    ] = None,
    height: Annotated[
        int | None, option("Height of the videos, by which boxes are chosen and pictures cropped.  [default: 576]")
    ] = None,
    width: Annotated[int | None, option("Width of the videos.  [default: 1024]")] = None,
    frames: Annotated[
        int | None, option("Frames of the videos; each path has a point for each.  [default: 14]")
    ] = None,
    recipe: Annotated[
        str | None, option("TOML file of all settings; options win over it.", metavar="FILE.toml")
    ] = None,
    print_recipe: Annotated[bool, option("Print the settings as TOML, and make nothing.")] = False,
    processes: Annotated[
        int | None, option("Processes that work.  [default: one per CPU, where that pays]", min=1)
    ] = None,
) -> None:
    """Make a manifest from pictures: boxes, paths, sizes and camera moves, spread evenly over their strata.

    With --from-videos, make it of what really moved in videos: sizes, boxes and filters of the recipe count then.
    What was left out and why is in skipped.parquet beside the manifest. The settings are stored in the manifest.
    """
    from manifests.make import make_manifest
    from manifests.recipe import Recipe, parse_shares, read_recipe

    sections: dict[str, Any] = read_recipe(recipe) if recipe else {}
    given = {
        "samples": samples,
        "per_image": per_image,
        "shares": None if motions is None else parse_shares(motions),
        "seed": seed,
        "still": still,
        "fit": fit,
        "height": height,
        "width": width,
        "frames": frames,
    }
    _put(sections, "sample", given)
    if boxes is not None:  # the file's options are those of another proposer
        sections["boxes"] = {"name": boxes}
    _put(sections, "boxes", {})
    if boxes_option:
        _put(sections["boxes"], "options", named_values(boxes_option, "--boxes-option"))
    if from_videos:
        of_pictures = {"samples": samples, "per_image": per_image, "motions": motions}
        of_pictures |= {"seed": seed, "still": still, "fit": fit}
        for name, value in of_pictures.items():
            if value is not None:
                raise ConfigError(f"{flag_of(name)} has no effect on --from-videos: leave it out")
    with _errors_name_flags(given):
        resolved = Recipe.parse(sections)
    proposer = proposer_of(resolved.boxes.name, resolved.boxes.options)
    if not from_videos:
        resolved = resolved.with_boxes(proposer)
    if print_recipe:
        typer.echo(resolved.toml(), nl=False)
        return
    if place is None or output is None:
        raise ConfigError("give a PLACE of pictures or videos, and the manifest to write with --output")
    if from_videos:
        from manifests.sources.clips import ClipSettings

        sample = resolved.sample
        settings = ClipSettings(frames=sample.frames, fps=sample.fps, height=sample.height, width=sample.width)
        make_from_videos(place, output, settings, proposer, resolved.filters, processes)
        return
    made = make_manifest(place, output, resolved, proposer, processes, Counting())
    for line in _summary(made, output, resolved.sample.samples or made.asked, resolved.sample.video_size):
        typer.echo(line)


@contextmanager
def _errors_name_flags(given: dict[str, Any]) -> Iterator[None]:
    """Let a ConfigError about a setting that was given as an option name it: `--per-image` for `sample.per_image`."""
    flags = {name: "--motions" if name == "shares" else flag_of(name) for name in given if given[name] is not None}
    try:
        yield
    except ConfigError as error:
        named = re.sub(r"\bsample\.(\w+)", lambda match: flags.get(match[1], match[0]), str(error))
        raise ConfigError(named) from error


def _put(sections: dict[str, Any], name: str, given: dict[str, Any]) -> None:
    """Let the options that were given win over the file's."""
    section = sections.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{name} must be a section of settings, not {section!r}")
    section.update({key: value for key, value in given.items() if value is not None})


def _summary(made: Made, output: str, asked: int, size: VideoSize) -> list[str]:
    """What was made, what was left out, and what to do next."""
    lines = [f"wrote {output}: {counted(made.rows, 'sample')} of {counted(made.used, 'picture')}"]
    if made.asked < asked:
        lines.append(f"{counted(asked, 'sample')} were asked for, and --per-image allows {made.asked}")
    if made.skipped:
        lines.append(f"left out, see {made.skipped_at}: {ranked(made.skipped)}")
    if made.left_out:
        lines.append(f"no picture has two boxes that lie apart, so there is no {', '.join(made.left_out)}")
    moved, dropped = made.refused.moved, made.refused.dropped
    if moved:
        planned = f"{counted(moved.total(), 'sample')} not in the direction, length and size that were planned"
        lines.append(f"{planned}, as no draw met the constraints: {ranked(moved)}")
    if dropped:
        lines.append(f"{counted(dropped.total(), 'sample')} dropped, by constraint: {ranked(dropped)}")
    lines.append(
        f"boxes and paths are for videos of {size.width} x {size.height} px with fit = {size.fit}: "
        "if yours have another shape, make it with their --height and --width"
    )
    lines.append(f"next: sgi2v-batch manifest validate {output}, sgi2v-batch manifest stats {output}")
    return lines


@app.command(epilog="Example: sgi2v-batch manifest stats manifest.parquet -o stats.png")
def stats(
    manifest: Annotated[str, typer.Argument(help="Manifest: .parquet, .csv or .jsonl.", show_default=False)],
    output: Annotated[Path, option("Picture to write.  [default: stats.png]", "--output", "-o")] = Path("stats.png"),
) -> None:
    """Draw what a manifest asks for: directions, lengths, speeds, sizes, starts, motions, boxes a sample.

    Beside it stands what its recipe asked for, if it has one.
    """
    from manifests.draw import save_picture
    from manifests.stats import draw_stats, measure

    measured = measure(manifest)
    save_picture(draw_stats(measured, manifest), output)
    for line in measured.lines():
        typer.echo(line)
    typer.echo(f"wrote {output}")
