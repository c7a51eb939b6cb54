"""`sgi2v-batch manifest ...`: look at a manifest, check it, or make one; nothing here starts Ray or a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import exit_codes, manifest_draw, manifest_make, manifest_sources
from pipeline.cli.options import CheckOptions, errors_name_flags, settings_of, takes
from pipeline.cli.run import Manifest
from sgi2v.wording import counted, did_you_mean

app = typer.Typer(
    help="Check, look at and make manifests.\n\nExample: sgi2v-batch manifest validate manifest.parquet",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(manifest_make.app)
app.add_typer(manifest_draw.app)
app.add_typer(manifest_sources.app)


@app.command(epilog="Example: sgi2v-batch manifest validate manifest.parquet")
@takes(CheckOptions)
def validate(
    manifest: Manifest,
    options: CheckOptions,
    images: Annotated[
        bool, typer.Option(help="Fetch and decode every image, and check that the boxes lie inside it.")
    ] = True,
) -> None:
    """Print every problem of every row, and a warning of each kind of row that looks wrong.

    Exit 0 where there is no problem, 2 otherwise; with --strict, 2 for warnings too. Pictures that are stretched, or
    cropped too much for their boxes, are found by `run --dry-run`, which knows the size of the videos.
    """
    from manifests.io import read_manifest
    from manifests.plausible import describe
    from manifests.validate import check
    from pipeline.cli.lines import checked
    from pipeline.config import ExecutionConfig

    with errors_name_flags(options):
        access = ExecutionConfig(**settings_of(options).get("run", {})).access
    table = read_manifest(manifest)
    findings = check(table, manifest, images, access, on_image=checked())
    problems, warnings = findings.problems, describe(findings.warnings)
    for line in [*map(str, problems), *warnings]:
        typer.echo(line)
    rows = counted(table.num_rows, "row")
    if not problems:
        unseen = "" if images else " (images not looked at)"
        typer.echo(f"{rows}, no problems{unseen}")
    else:
        bad = len({problem.row for problem in problems})
        typer.echo(f"{counted(len(problems), 'problem')} in {bad} of {rows}")
    if problems or (options.strict and warnings):
        raise typer.Exit(exit_codes.BAD_INPUT)


@app.command(epilog="Example: sgi2v-batch manifest show manifest.parquet cat -o cat.png")
def show(
    manifest: Manifest,
    sample_id: Annotated[str | None, typer.Argument(help="Which sample.  [default: the first]")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Picture to write.  [default: <sample_id>.png]")
    ] = None,
    height: Annotated[int, typer.Option(min=1, help="Frame height of the video, pixels.")] = 576,
    width: Annotated[int, typer.Option(min=1, help="Frame width of the video, pixels.")] = 1024,
    fit: Annotated[
        str, typer.Option(help="crop, pad, stretch or bucket, as in `run`; the row's own `fit` wins.")
    ] = "crop",
) -> None:
    """Draw a sample's first frame, as `run` makes it of the image, with its boxes and where they should go.

    Boxes that are told to stay are grey. Of a box with a mask, the object is tinted.
    """
    import numpy as np

    from manifests.draw import draw_sample, save_picture
    from manifests.fit import FITS, VideoSize, place
    from manifests.images import load_image
    from manifests.io import read_manifest
    from manifests.masks import masks_of
    from manifests.plausible import describe, row_warnings
    from manifests.schema import parse_row, rows_of
    from sgi2v.config import SamplerConfig
    from sgi2v.errors import ConfigError, StorageError

    if fit not in FITS:
        raise ConfigError(f"--fit must be one of {', '.join(FITS)}, not {fit!r}{did_you_mean(fit, FITS)}")
    video_size = VideoSize(height, width, fit)
    table = read_manifest(manifest)
    ids = [str(one) for one in table.column("sample_id").to_pylist()]
    wanted: str = ids[0] if sample_id is None else sample_id
    if wanted not in ids:
        raise ConfigError(_unknown_id(manifest, wanted, ids))
    sample = parse_row(rows_of(table.slice(ids.index(wanted), 1))[0])
    try:
        image_HWC = load_image(sample.image, manifest)
    except OSError as error:
        raise StorageError(f"the image of {wanted} cannot be read now ({error}): try again later") from error
    image_size = image_HWC.shape[:2]
    tracks = sample.tracks(SamplerConfig().num_frames, *image_size)
    placement = place(tracks, video_size, sample.fit)
    title = f"{sample.sample_id}, {placement.fit} of {image_size[1]} x {image_size[0]} px"
    if sample.masks is not None:
        masks = masks_of(sample.masks, sample.boxes_N4, *image_size)
        tracks = replace(tracks, masks_NHW=np.stack([placement.mask(mask_HW) for mask_HW in masks]))
    picture = draw_sample(placement.image(image_HWC), placement.tracks(tracks), title)
    target = output or Path(f"{sample.sample_id}.png")
    save_picture(picture, target)
    typer.echo(f"wrote {target}")
    for _, lost in placement.lost_boxes(tracks):
        typer.echo(f"problem: {lost.message}. Runs fail this row")
    for line in describe(list(row_warnings(sample, image_size, video_size))):
        typer.echo(line)


def _unknown_id(manifest: str, wanted: str, ids: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(wanted, ids, n=5, cutoff=0.5)
    others = f"near matches: {', '.join(near)}" if near else f"the first are: {', '.join(ids[:5])}"
    return f"{manifest} has no sample {wanted!r}; {others}"
