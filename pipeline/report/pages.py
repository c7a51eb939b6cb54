"""The pages of a report, from templates; and the script and style that they share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from manifests.access import display_uri
from pipeline.inspect.phase import Phase
from pipeline.output.catalog import failed_by_code, mean_fidelity, mean_of
from pipeline.report.samples import shown_text
from pipeline.report.source import Row, Source
from sgi2v.wording import counted

if TYPE_CHECKING:
    from pipeline.output.storage import Storage
    from pipeline.report.build import Built

PAGES = ("gallery.html", "failures.html", "sample.html", "index.html")
"""In the order in which they are written: whoever opens the last one finds the others."""
ASSETS = ("report.css", "report.js", "gallery.js", "overview.js", "sample.js")
STATES: Mapping[Phase, str] = {
    Phase.FINISHED: "The run is finished.",
    Phase.INTERRUPTED: "The run was interrupted: the same command goes on.",
    Phase.FAILED: "The run ended with an error: the same command goes on.",
    Phase.DEAD: "The run was killed: the same command goes on.",
}


def write_pages(target: Storage, sources: Sequence[Source], built: Built, data: Mapping[str, Any]) -> None:
    """Write the shared files, then the pages. data: folder of the data, names and bases of the outputs."""
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    target.put("assets/plotly.min.js", get_plotlyjs().encode())
    folder = files("pipeline.report") / "assets"
    for name in ASSETS:
        target.put(f"assets/{name}", (folder / name).read_bytes())
    environment = Environment(loader=PackageLoader("pipeline.report"), autoescape=True, trim_blocks=True)
    context = {"data": data, **_context(sources, built)}
    for name in PAGES:
        template = "gallery.html" if name == "failures.html" else name
        page = environment.get_template(template).render(context, page=name.removesuffix(".html"))
        target.put(name, page.encode())


def _context(sources: Sequence[Source], built: Built) -> Row:
    source = sources[0]
    return {
        "title": shown_text(source.name),
        "location": display_uri(source.url),
        "state": _state(source),
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "built": built,
        "tiles": _tiles(source, built),
        "failed": failed_by_code(source.index),
        "notes": _notes(source, built),
        "facts": _facts(source),
        "settings": None if source.run is None else json.dumps(source.run.deciding, indent=2, sort_keys=True),
        "baselines": [{"name": name, "location": display_uri(each.url)} for name, each in _named(sources, built)],
        "quoted": shlex.quote(source.storage.root if source.storage.is_local else display_uri(source.url)),
        "counted": counted,
    }


def _named(sources: Sequence[Source], built: Built) -> list[tuple[str, Source]]:
    return list(zip(built.names[1:], sources[1:], strict=True))


def _state(source: Source) -> str:
    if source.status is None:
        return "No run wrote here: these are videos that exist, as they were measured."
    phase = source.status.phase
    return STATES.get(phase) or (
        f"A run is writing to this output ({phase.value}). These pages show what was there; build them again for more."
    )


def _tiles(source: Source, built: Built) -> list[Row]:
    """The numbers at the top of the overview."""
    means = mean_fidelity(source.index)
    rows, left = built.samples, 0
    if source.status is not None:
        rows, left = source.status.rows, source.status.left
    tiles: list[Row] = [
        {
            "label": "videos measured" if source.run is None else "videos made",
            "value": built.committed,
            "note": f"of {counted(rows, 'row')}",
        },
        {
            "label": "failed",
            "value": built.failed,
            "note": "" if built.failed else "none",
            "bad": built.failed,
        },
    ]
    if left:
        tiles.append({"label": "left", "value": left, "note": "not made yet"})
    if means.control_gain is not None:
        # fewer than have an ObjMC: a box that is asked to stay has no gain
        measured = counted(pc.count(source.index["control_gain"]).as_py(), "sample")
        note = f"mean over {measured}; 1 follows, 0 is a still image"
        tiles.append({"label": "control gain", "value": f"{means.control_gain:.2f}", "note": note})
    if means.objmc_px is not None and means.static_objmc_px is not None:
        note = f"a still image has {means.static_objmc_px:.1f} px"
        tiles.append({"label": "ObjMC", "value": f"{means.objmc_px:.1f} px", "note": note})
    if (change := mean_of(source.index, "background_change")) is not None:
        tiles.append({"label": "background change", "value": f"{change:.2f}", "note": "8-bit levels, mean"})
    return tiles


def _notes(source: Source, built: Built) -> list[str]:
    """What a reader should know before the numbers."""
    notes = []
    if not built.samples:
        notes.append("No sample is finished yet.")
    elif not built.committed:
        notes.append("No video was made: every sample has failed.")
    if built.videos_missing:
        notes.append(
            f"{counted(built.videos_missing, 'video')} could not be read: `sgi2v-batch verify` says what is wrong."
        )
    if not built.plays and built.committed:
        notes.append(
            f"The videos lie at {display_uri(source.url)}, which these pages cannot reach: build the report with "
            "--copy-videos, or in the same bucket or on the same disk."
        )
    if built.committed and not source.has_labels:
        notes.append("There are no labels, so only the asked paths are drawn, not the measured ones.")
    damaged = 0 if source.catalog is None else len(source.catalog.damaged)
    if damaged:
        notes.append(f"{counted(damaged, 'record')} cannot be used and count for no sample.")
    return notes


def _facts(source: Source) -> list[tuple[str, str]]:
    """How the videos were made, in words."""
    run = source.run
    if run is None:
        return []
    sampler, guidance = run.deciding["sampler"], run.deciding["guidance"]
    size = (
        f"{sampler['num_frames']} frames of {sampler['height']} x {sampler['width']} px at {sampler['fps']} per second"
    )
    how = "none: plain SVD"
    if guidance is not None:
        how = f"{guidance['iterations']} iterations a step, learning rate {guidance['learning_rate']:g}"
    facts = [
        ("Model", f"{run.model.get('source')} at {run.model_revision}"),
        ("Video", size),
        ("Steps", f"{sampler['steps']}"),
        ("Guidance", how),
        ("Seed", f"{run.deciding['seed']}"),
        ("Metrics", f"{run.deciding['metrics_version']}, tracker {run.deciding['metrics'].get('tracker')}"),
        ("Manifest", display_uri(run.manifest)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))),
    ]
    return [(name, shown_text(text)) for name, text in facts]
