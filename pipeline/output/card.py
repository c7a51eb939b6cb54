"""README.md of an output: its dataset card, for people and for Hugging Face `datasets`.

The `configs` in its front matter tell `load_dataset` which files are the dataset. Without them it guesses from words
and endings in the names of files, so from sample ids. See docs/output-format.md, Dataset card.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.card_parts import CITATION, DISTRIBUTIONS, NOTES, dataset_version, licences, plain
from pipeline.output.card_picture import PICTURE, draw_distributions
from pipeline.output.catalog import Catalog, count, counts_of, failed_by_code, mean_fidelity, mean_of
from pipeline.output.labels import LABELS
from pipeline.output.lease import check_epoch
from pipeline.output.records import FLAT_SCHEMA, RECORD_SCHEMA, VIDEOS
from pipeline.output.run_file import RUN_FILE, RunFile, require_run
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, METADATA
from sgi2v.locations import split_protocol
from sgi2v.wording import counted, ranked

CARD = "README.md"
PREVIEW = "preview.mp4"
"""A copy of one video. Only where the videos' own names would not tell `datasets` that they are videos."""
SPLIT_FOLDER = "train"
"""A folder of links to the table and the videos. Only where ids hold words that `datasets` takes for split names."""
METRICS: Mapping[str, tuple[str, str, str]] = {
    "objmc_px": ("pixels", "lower", "mean distance between the measured and the asked centre of a box"),
    "objmc_norm": ("share", "lower", "`objmc_px` / the frame's diagonal"),
    "endpoint_error_px": ("pixels", "lower", "that distance at the last counted frame"),
    "direction_cosine": ("", "higher", "cosine between the measured and the asked displacement"),
    "static_objmc_px": ("pixels", "", "what a frozen first frame would score"),
    "control_gain": ("", "higher", "1 - `objmc_px` / `static_objmc_px`: 1 follows exactly, 0 is a still image"),
    "objmc_nulls_frozen_px": ("pixels", "lower", "`objmc_px`, or `static_objmc_px` of a box that is not measured"),
    "track_box_iou": ("share", "higher", "overlap of the asked box and the box at the measured centre"),
    "failure": ("share", "lower", "share of the frames in which the object is lost or more than 30 px off"),
    "identity": ("8-bit levels", "lower", "change of what is in the box"),
    "round_trip_px": ("pixels", "lower", "the tracker's own error"),
    "visible_fraction": ("share", "higher", "share of the tracked points that is visible"),
    "background_change": ("8-bit levels", "lower", "change of the background, apart from its motion"),
    "background_motion_px": ("pixels", "lower", "how far the background as a whole is from its place in frame 0"),
    "bg_object_distance_px": ("pixels", "higher", "difference between the displacements of object and scene (TTM)"),
    "still_drift_px": ("pixels", "lower", "how far a held object is from its place in frame 0"),
    "first_frame_psnr_db": ("dB", "higher", "PSNR of the first frame against the given image"),
    "flicker": ("8-bit levels", "lower", "mean second difference of the frames over time"),
    "mean_flow_px": ("pixels", "", "mean optical flow between consecutive frames; it sees no motion of smooth ground"),
    "baseline_objmc_px": ("pixels", "", "`objmc_px` of the baseline: plain SVD with the same noise"),
    "baseline_control_gain": ("", "", "`control_gain` of the baseline"),
    "baseline_background_change": ("8-bit levels", "", "`background_change` of the baseline"),
    "baseline_background_motion_px": ("pixels", "", "`background_motion_px` of the baseline"),
    "gain_over_baseline": ("", "higher", "1 - `objmc_px` / `baseline_objmc_px`, over boxes that both measure"),
}
"""Measured columns: unit, which direction is better, meaning."""

_SPLIT_WORDS = r"(^|[-._0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)([-._0-9]|$)"
"""Ids that `datasets` 5 takes for parts of a split, as an RE2 pattern."""
_MARK = re.compile(r"<!-- sgi2v-batch keeps this file up to date while it is as written: ([0-9a-f]{64}) -->\n")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def write_card(catalog: Catalog, epoch: int) -> bool:
    """Write the card for what the output holds now, and what else `datasets` needs to load it.

    Returns False, and leaves the card alone, if a person has written or changed it. Call it after the tables. epoch: of
    the run's lease. Raises LeaseError if the run has lost it, StorageError.
    """
    storage, index = catalog.storage, catalog.index
    check_epoch(storage, epoch)
    committed = index.filter(pc.equal(index["status"], "committed"))
    misleading = _have_misleading_endings(committed["sample_id"])
    if misleading and storage.get(PREVIEW) is None:
        storage.put(PREVIEW, storage.get(committed["file_name"][0].as_py()) or b"")
    if storage.is_local and committed.num_rows and _has_split_words(index["sample_id"]):
        _link_split_folder(Path(storage.root))
    existing = storage.get(CARD)
    if existing is not None and not is_own_card(existing):
        return False
    picture = draw_distributions(committed)
    if picture is not None and picture != storage.get(PICTURE):
        storage.put(PICTURE, picture)
    videos = PREVIEW if misleading else f"{VIDEOS}/*.mp4"
    card = _marked(_card(storage, require_run(storage), index, videos, has_picture=picture is not None))
    if card != existing:
        storage.put(CARD, card)
    return True


def is_own_card(data: bytes) -> bool:
    """Whether a README.md is as this program wrote it."""
    text = data.decode(errors="replace")
    mark = _MARK.search(text)
    return mark is not None and _digest(text.replace(mark[0], "", 1)) == mark[1]


def _marked(text: str) -> bytes:
    return f"{text}<!-- sgi2v-batch keeps this file up to date while it is as written: {_digest(text)} -->\n".encode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _have_misleading_endings(ids: pa.ChunkedArray) -> bool:
    """Whether `datasets` could take the videos for other files: it counts every part of a name behind a dot."""
    dotted = ids.filter(pc.match_substring(ids, ".")).to_pylist()
    endings = Counter(part.lower() for sample_id in dotted for part in sample_id.split(".")[1:])
    del endings["mp4"]
    return any(number >= len(ids) for number in endings.values())


def _has_split_words(ids: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(ids, _SPLIT_WORDS)).as_py())


def _link_split_folder(root: Path) -> None:
    """Make `load_dataset("videofolder", data_dir=...)`, which reads no card, find the table and the videos.

    It takes the files of a folder `train` and no others. A disk without links lacks this form of loading only.
    """
    folder = root / SPLIT_FOLDER
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for name in (METADATA, VIDEOS):
            link = folder / name
            if not link.is_symlink():
                link.symlink_to(Path("..") / name)


def _card(storage: Storage, run: RunFile, index: pa.Table, videos: str, *, has_picture: bool) -> str:
    """The text of the card. videos: pattern of a file or files that show `datasets` what the dataset is of."""
    parts = [
        _front_matter(run, index, videos),
        f"# {_title(run)}\n\n{_summary(run)}",
        f"## Samples\n\n{_counts(run, index)}" + (DISTRIBUTIONS if has_picture else ""),
        f"## How to load it\n\n{_loading(storage, run)}",
        f"## How it was made\n\n{_making(run)}",
        f"## Licences\n\n{licences(storage, run)}",
        f"## Columns\n\n{_columns(storage, run)}",
        NOTES,
        CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _title(run: RunFile) -> str:
    return f"Videos of {plain(_manifest_name(run))}"


def _manifest_name(run: RunFile) -> str:
    """The manifest's file name. Its folder is the maker's business."""
    return split_protocol(run.manifest)[1].partition("?")[0].rstrip("/").rpartition("/")[2]


def _front_matter(run: RunFile, index: pa.Table, videos: str) -> str:
    samples = count(index, "committed")
    names = sorted(name for name in index["file_name"].to_pylist() if name is not None)
    version = dataset_version(["\n".join(names).encode()])  # a video's name is new each time that it is made
    size = next((name for limit, name in _SIZES if samples < limit), "n>10M")
    return "\n".join(
        [
            "---",
            "license: other",
            f"pretty_name: {json.dumps(_title(run))}",
            "task_categories:\n- image-to-video",
            "tags:\n- video\n- synthetic\n- trajectory-control\n- sg-i2v",
            f"size_categories:\n- {size}",
            f"configs:\n- config_name: default\n  version: {version}\n  data_files:\n  - split: train\n    path:",
            f"    - {METADATA}\n    - {videos}",
            "---",
        ]
    )


def _summary(run: RunFile) -> str:
    sampler = run.deciding["sampler"]
    frames, height, width, fps = (sampler[name] for name in ("num_frames", "height", "width", "fps"))
    shape = " or of another shape and no more pixels" if run.deciding["fit"] == "bucket" else ""
    size = f"{frames} frames of {height} x {width} px{shape} at {fps} per second"
    how = "The boxes of a row follow its trajectories" if run.is_guided else "Nothing guides its objects"
    return (
        f"One row is one video, {size}, without sound. It was generated from one image by SG-I2V on a Stable Video "
        f"Diffusion model. {how}. The metrics of a row were measured on its video.\n\n"
        f"`{LABELS}` says of each box where it was asked to be, and where its object was measured, in every frame: the "
        "asked path is what was wanted, the measured one is what the video shows.\n\n"
        "The columns `image_uri` and `host` name folders and machines of whoever made it."
    )


def _counts(run: RunFile, index: pa.Table) -> str:
    committed, failed = count(index, "committed"), count(index, "failed")
    limited = "" if run.limit_of is None else f" (the first of {run.limit_of})"
    lines = [
        "| | samples |\n| --- | --- |",
        f"| rows of the manifest{limited} | {run.asked_rows} |",
        f"| finished samples of other rows | {run.other_samples} |",
        f"| made | {committed} |",
        f"| failed | {failed} |",
        *(f"| failed with `{code}` | {number} |" for code, number in failed_by_code(index).items()),
        f"| left | {run.rows_left(index.num_rows)} |",
    ]
    return "\n".join([*lines, *_measured(index)])


def _measured(index: pa.Table) -> list[str]:
    """A paragraph with means of the metrics, and how many samples have none, in lines; empty without any."""
    lines = []
    means = mean_fidelity(index)
    shown = _means(objmc_px=means.objmc_px, static_objmc_px=means.static_objmc_px, control_gain=means.control_gain)
    if shown:
        lines.append(f"Means over {counted(means.measured, 'measured sample')}: {shown}.")
    shown = _means(objmc_px=means.objmc_nulls_frozen_px, control_gain=means.control_gain_nulls_frozen)
    if shown:
        lines.append(
            f"Over {counted(means.with_paths, 'sample')} with what is not measured counted as frozen: {shown}."
        )
    made = index.filter(pc.equal(index["status"], "committed"))
    unmeasured = made.filter(pc.is_null(made["objmc_px"]))
    if unmeasured.num_rows:
        reasons = ranked(counts_of(unmeasured, "null_reason"))
        lines.append(f"Not measured: {counted(unmeasured.num_rows, 'sample')} ({reasons}).")
    background = [(name, mean_of(index, name)) for name in ("background_change", "background_motion_px")]
    if shown := _means(**dict(background)):
        lines.append(f"Of the backgrounds that are measured: {shown}.")
    return ["", *lines] if lines else []


def _means(**means: float | None) -> str:
    return ", ".join(f"`{name}` {value:.2f}" for name, value in means.items() if value is not None)


def _loading(storage: Storage, run: RunFile) -> str:
    location = "s3://bucket/folder" if storage.is_local else storage.url
    baseline = ""
    if "baseline" in run.deciding:
        baseline = '\ndataset = dataset.cast_column("baseline", Video(decode=False))  # plain SVD with the same noise'
    return f"""```python
from datasets import Video, load_dataset

dataset = load_dataset("FOLDER", split="train")  # this folder on a disk, or its id on the Hugging Face Hub
dataset = dataset.cast_column("video", Video(decode=False))  # paths in place of frames, which need torchcodec{baseline}

dataset = load_dataset(  # from an object store, without a copy
    "videofolder", data_files={{"train": "{location}/{METADATA}"}}, split="train", streaming=True
)
```

`load_dataset("videofolder", data_dir="FOLDER")` reads no card. On a disk with links it gives the same rows. In a copy
without links it does so only if no sample id holds a word such as `train` or `test`.

The table without its videos, for `pandas`; `file_name` is the path of a video in this folder:

```python
import pandas

table = pandas.read_parquet("FOLDER/{METADATA}")
good = table[(table["control_gain"] > 0.6) & (table["background_change"] < 2)]
videos = "FOLDER/" + good["file_name"]
```

The labels, a row a box, for `pyarrow`; boxes are `[x0, y0, x1, y1]` in pixels of the video, one a frame, and null where
the object was not seen:

```python
import pyarrow.parquet

for batch in pyarrow.parquet.ParquetFile("FOLDER/{LABELS}").iter_batches(100):
    for label in batch.to_pylist():
        asked, measured = label["asked_boxes"], label["measured_boxes"]
        scale_x, shift_x, scale_y, shift_y = label["source_to_video"]  # from pixels of the image
```

```sql
-- the same in DuckDB, with the metrics of the sample
SELECT sample_id, box, still, asked_centres, measured_centres, control_gain
FROM 'FOLDER/{LABELS}' JOIN 'FOLDER/{METADATA}' USING (sample_id) WHERE control_gain > 0.6
```

The failed samples are a table of their own, `{FAILURES}`.
`sgi2v-batch verify FOLDER` compares every video with its checksum, `video_sha256`."""


def _making(run: RunFile) -> str:
    source = str(run.model.get("source"))
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None and not Path(source).exists()
    shown = f"[{source}](https://huggingface.co/{source})" if is_hub_id else f"`{plain(source)}`"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))
    return f"""- Model: {shown}, revision `{plain(run.model_revision)}`.
- Method: {_method(run)}
- Measured with the tracker `{plain(run.deciding["metrics"]["tracker"])}`, on the mp4 as it is here.
- Manifest: `{plain(_manifest_name(run))}`, SHA-256 `{run.manifest_sha256}`. The images are those that it names:
  `image_uri` and `image_sha256` of each row.
- Seeds: column `seed`; rows without one have a seed derived from `{run.deciding["seed"]}` and their `sample_id`.
{_choice(run)}- Versions: {plain(versions)}

The settings that decide the results:

```json
{json.dumps(run.deciding, indent=2, sort_keys=True)}
```

`{RUN_FILE}` has the others."""


def _method(run: RunFile) -> str:
    """The method and what it stands on."""
    base = "[Stable Video Diffusion](https://arxiv.org/abs/2311.15127)"
    guidance = run.deciding["guidance"]
    if guidance is None:
        return f"{base} without guidance."
    return f"[SG-I2V](https://arxiv.org/abs/2411.04989), guidance of the latents, on {base}. Its settings are below."


def _choice(run: RunFile) -> str:
    """How each video was chosen, as lines of a list; empty where there was no choice."""
    candidates = run.deciding.get("candidates")
    if candidates is None or candidates["number"] == 1:
        return ""
    condition = f", one with `{plain(candidates['keep'])}` before the others" if candidates["keep"] else ""
    return (
        f"- Choice: each video is the best of up to {counted(candidates['number'], 'seed')} by its `control_gain`"
        f"{condition}. So the means\n  above are of chosen videos. Column `candidates` has all of them.\n"
    )


def _columns(storage: Storage, run: RunFile) -> str:
    schema: pa.Schema | None = storage.read(
        METADATA, lambda stream: pq.ParquetFile(stream, pre_buffer=False).schema_arrow
    )
    version = plain(run.deciding["metrics_version"])
    lines = [
        f"Metrics follow the definitions `{version}` of sgi2v-batch (its page `docs/metrics.md`, column",
        "`metrics_version`), with the tracker of the columns `tracker` and `tracker_version`. What to mind:",
        "",
        "- Do not compare them with ObjMC figures of papers, whose protocols differ.",
        "- A metric that could not be measured is null, and `null_reason` says why. A mean over the others leaves such",
        "  samples out: see the means above that count them as frozen. `..._per_box` has the values of each box.",
        "- A tracker follows texture, not objects. The whole scene can move along: read `control_gain` beside",
        "  `background_change` and `background_motion_px`. `round_trip_px` and `tracker_error_px` are its errors.",
        "- The size of a measured box is that of frame 0: only its place is measured.",
        "",
        "| metric | unit | better | meaning |\n| --- | --- | --- | --- |",
        *(f"| `{name}` | {unit} | {better} | {meaning} |" for name, (unit, better, meaning) in METRICS.items()),
    ]
    own = [] if schema is None else [field for field in schema if field.name not in RECORD_SCHEMA.names]
    if own:
        lines += [
            "\nColumns of the manifest:\n",
            "| column | type |\n| --- | --- |",
            *(f"| `{plain(field.name)}` | `{plain(str(field.type))}` |" for field in own),
        ]
    others = [name for name in FLAT_SCHEMA.names if name not in METRICS and not name.endswith("_per_box")]
    lines += ["\nThe other columns say how a row was made (`seconds_*` are seconds, `*_bytes` are bytes):\n"]
    lines += [", ".join(f"`{name}`" for name in others if name not in {"error_code", "message"}) + "."]
    return "\n".join(lines)
