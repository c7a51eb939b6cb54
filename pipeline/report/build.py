"""report: one static folder that shows an output, opens from a disk or a bucket, and needs neither server nor network.

    index.html gallery.html failures.html sample.html    the pages; index.html is written last
    assets/                                              script, style, and Plotly's script
    data/<build>/index.js, samples-<n>.js                numbers of all samples; details, a few samples a file
    thumbs/ videos/ figures/                             first frames; copies of videos; what `inspect` drew

The data are scripts, because a page of file:// may load scripts and may not fetch files.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from manifests.access import display_uri
from pipeline.output.nested import check_not_nested
from pipeline.output.storage import Storage
from pipeline.report.columns import Columns
from pipeline.report.needs import check_installed
from pipeline.report.pages import write_pages
from pipeline.report.pictures import thumbnail
from pipeline.report.samples import derived_numbers, details_of, numbers_of, paths_of, shown_text, significant
from pipeline.report.source import Batch, Row, Source
from sgi2v.errors import ConfigError
from sgi2v.locations import split_protocol

MARK = "report.json"
"""The file by which a folder is known as a report, also if it was not finished: it is written first."""
SAMPLES_A_FILE = 20
"""Samples whose details are in one file: a gallery page that is sorted needs as many files as it has samples."""
THREADS = 8
"""Videos that are read at the same time."""
EXAMPLES = 3
"""Failures of each code that the overview shows."""

OnProgress = Callable[[str, int, int], None]
"""Called with a noun, how many are done, and of how many."""
Made = tuple[Row, Row, Row, dict[str, float]]
"""Details, record, own columns and numbers of a sample."""


@dataclass
class Built:
    """What a report shows."""

    location: str
    samples: int = 0
    committed: int = 0
    failed: int = 0
    videos_missing: int = 0
    """Samples whose video is not there, or is not a video."""
    plays: bool = True
    """Whether its pages reach the videos."""
    names: list[str] = field(default_factory=list)
    """Of the output and its baselines."""
    failures: dict[str, list[Row]] = field(default_factory=dict)
    """Examples of failures by code."""


def default_target(output: str, what: str = "report") -> str:
    """Where a report on an output lies, if nobody says: beside it. Raises ConfigError for a bucket or a disk's root."""
    url = output.rstrip("/")
    if "/" not in split_protocol(url)[1].strip("/") and "://" in url:
        raise ConfigError(f"{display_uri(output)} has no folder beside it: say where the {what} goes with -o")
    return f"{url}-{what}"


def check_target(target: str, output: str) -> Storage:
    """The place of a report. Raises ConfigError if something else lies there."""
    storage = Storage(target)
    check_not_nested(storage)
    if storage.root == Storage(output).root:
        raise ConfigError(f"{storage.url} is the output itself: give the report another folder with -o")
    # a report deletes what it does not need in folders called data, thumbs and videos
    others = [] if storage.get(MARK) is not None else [name for name in storage.names("") if not name.startswith(".")]
    if others:
        raise ConfigError(
            f"{storage.url} holds {others[0]} and is no report: give the report an empty or a new folder with -o"
        )
    return storage


def build_report(
    output: str,
    baselines: Sequence[str] = (),
    target: str | None = None,
    copy_videos: bool = False,
    inspections: str | None = None,
    on_progress: OnProgress | None = None,
) -> Built:
    """Write the report of an output, compared with others by sample. Returns what it shows.

    target: folder or URL; None: beside the output. inspections: where `inspect` wrote; None: beside the output.
    Pictures and copies that are there from an earlier report of it are kept. Raises ConfigError, StorageError.
    """
    check_installed()
    sources = [Source(each) for each in (output, *baselines)]
    store = check_target(target or default_target(output), output)
    return _Builder(sources, store, copy_videos, on_progress or (lambda *_: None)).build(inspections)


class _Builder:
    def __init__(self, sources: list[Source], target: Storage, copy_videos: bool, on_progress: OnProgress) -> None:
        self.sources, self.target, self.copy_videos = sources, target, copy_videos
        self.on_progress = on_progress
        self.names = _unique([each.name for each in self.sources])
        self.bases = [
            f"videos/{number}/" if copy_videos else video_base(each.storage, target)
            for number, each in enumerate(self.sources)
        ]
        self.folder = f"data/{uuid.uuid4().hex[:12]}"
        self.there = {key for folder in ("thumbs", "videos") for key in target.keys(folder)}
        self.used: set[str] = set()
        self.videos = [set(each.storage.keys("videos")) for each in self.sources]
        self.columns = Columns()
        self.samples: list[tuple[str, bool, str | None]] = []
        self.built = Built(target.url, plays=self.bases[0] is not None, names=self.names)
        self.others = [_by_id(each) for each in sources[1:]]
        for name in self.names[1:]:
            self.columns.name_baseline(f"gain over {name}", f"control_gain minus that in {name}")

    def build(self, inspections: str | None) -> Built:
        source, target = self.sources[0], self.target
        target.put(MARK, _marked(self.sources, self.folder))
        self.figures = self._copy_figures(inspections)
        total = source.index.num_rows
        waiting: list[Made] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for batch in self._batches(source):
                waiting += pool.map(self._sample, batch.records, batch.own, batch.labels)
                while len(waiting) >= SAMPLES_A_FILE:
                    self._put_details(waiting[:SAMPLES_A_FILE])
                    waiting = waiting[SAMPLES_A_FILE:]
                self.on_progress("sample", len(self.samples) + len(waiting), total)
            self._put_details(waiting)
        self._put_script("index", "sgi2vIndex", self._index())
        self.built.samples = len(self.samples)
        versioned = {"folder": self.folder, "names": self.names, "bases": self.bases}
        write_pages(target, self.sources, self.built, versioned)
        self._delete_old()
        return self.built

    def _batches(self, source: Source) -> Iterator[Batch]:
        yield from source.batches("committed")
        yield from source.batches("failed")

    def _sample(self, record: Row, own: Row, labels: Sequence[Row]) -> Made:
        """What the report says of a sample. Makes its picture, and copies its video. Runs in a thread."""
        paths = paths_of(record, own, labels)
        details = details_of(record, own, paths)
        sample_id = record["sample_id"]
        numbers = derived_numbers(record, paths)
        details["thumb"], details["video"] = self._picture(record), self._video(0, record["file_name"])
        details["lost"] = record["status"] == "committed" and details["thumb"] is None
        details["figure"] = self.figures.get(sample_id)
        details["baselines"] = compared = []
        if record.get("baseline_file_name"):
            gains = {name: record.get(f"baseline_{name}") for name in ("objmc_px", "control_gain")}
            name = "the baseline of the same run"
            compared.append(self._compared(name, 0, {"file_name": record["baseline_file_name"], **gains}))
        for number, (name, rows) in enumerate(zip(self.names[1:], self.others, strict=True), 1):
            other = rows.get(sample_id)
            if other is None:
                continue
            compared.append(self._compared(name, number, other))
            numbers.update(_differences(name, record, other))
        return details, record, own, numbers

    def _compared(self, name: str, source: int, other: Row) -> Row:
        values = {each: significant(other.get(each)) for each in ("objmc_px", "control_gain")}
        return {"name": name, "source": source, "video": self._video(source, other["file_name"]), **values}

    def _picture(self, record: Row) -> str | None:
        """The name of a sample's first frame, which is made if it is not there; None without a video."""
        key = record.get("file_name")
        if key is None or not self._is_there(0, key):
            return None
        name = hashlib.sha256(f"{key} {record.get('video_sha256')}".encode()).hexdigest()[:20]
        file = f"thumbs/{name}.webp"
        if file not in self.there:
            picture = thumbnail(self.sources[0].storage.get(key) or b"")
            if picture is None:
                return None
            self.target.put(file, picture)
        self.used.add(file)
        return name

    def _video(self, number: int, key: str | None) -> str | None:
        """The end of a video's URL, after the base of its output; None without one. Copies it if that was asked for."""
        if key is None or not self._is_there(number, key):
            return None
        if not self.copy_videos:
            return quote(key)
        name = posixpath.basename(key)
        copy = f"videos/{number}/{name}"
        if copy not in self.there:
            self.target.put(copy, self.sources[number].storage.get(key) or b"")
        self.used.add(copy)
        return quote(name)

    def _is_there(self, number: int, key: str | None) -> bool:
        """Whether a video exists, as far as a listing tells. A key that leads out of the output is none."""
        if not key or not is_inside(key):
            return False
        return key in self.videos[number] or not key.startswith("videos/")

    def _put_details(self, samples: Sequence[Made]) -> None:
        if not samples:
            return
        number = len(self.samples) // SAMPLES_A_FILE
        self._put_script(f"samples-{number}", "sgi2vSamples", number, [details for details, *_ in samples])
        for details, record, own, numbers in samples:
            is_committed = record["status"] == "committed"
            self.columns.add(record, own, numbers)
            self.samples.append((details["id"], is_committed, details["thumb"]))
            self.built.committed += is_committed
            self.built.failed += not is_committed
            self.built.videos_missing += details["lost"]
            if not is_committed:
                examples = self.built.failures.setdefault(details["code"] or "unknown", [])
                if len(examples) < EXAMPLES:
                    examples.append({"id": details["id"], "message": details["message"] or ""})

    def _index(self) -> Row:
        """What the gallery needs of every sample."""
        numbers = self.columns.numbers()
        known = {column["name"] for column in numbers}
        pairs = [
            {"name": name, "objmc": f"objmc_px of {name}", "gain": f"control_gain of {name}"} for name in self.names[1:]
        ]
        same_run = {"name": "the same run's baseline", "objmc": "baseline_objmc_px", "gain": "baseline_control_gain"}
        return {
            "ids": [sample_id for sample_id, _, _ in self.samples],
            "committed": [int(is_committed) for _, is_committed, _ in self.samples],
            "thumbs": [thumb for _, _, thumb in self.samples],
            "columns": numbers,
            "texts": self.columns.texts(),
            "pairs": [pair for pair in (same_run, *pairs) if {pair["objmc"], pair["gain"]} & known],
            "a_file": SAMPLES_A_FILE,
            "folder": self.folder,
            "bases": self.bases,
            "replays": self.sources[0].run is not None,
        }

    def _copy_figures(self, inspections: str | None) -> dict[str, str]:
        """Copy what `inspect` drew. Returns where, by sample id."""
        if inspections is None:
            try:
                inspections = default_target(self.sources[0].url, "inspect")
            except ConfigError:
                return {}
        storage = Storage(inspections)
        figures = {}
        for key in storage.keys(""):
            data = storage.get(key) if key.endswith(".png") and "/" not in key else None
            if data:
                self.target.put(f"figures/{key}", data)
                figures[key.removesuffix(".png")] = f"figures/{quote(key)}"
        return figures

    def _put_script(self, name: str, function: str, *arguments: Any) -> None:
        """Write data as a script that calls a function of the page."""
        # no character of a text may end the script
        values = ",".join(json.dumps(each, allow_nan=False, separators=(",", ":")) for each in arguments)
        values = values.replace("<", "\\u003c")
        self.target.put(f"{self.folder}/{name}.js", f"{function}({values});".encode())

    def _delete_old(self) -> None:
        """Delete what an earlier report left, after the pages no longer name it."""
        old = [key for key in self.target.keys("data") if not key.startswith(f"{self.folder}/")]
        self.target.delete_many([*old, *(key for key in self.there if key not in self.used)])


def video_base(source: Storage, target: Storage) -> str | None:
    """What comes before a video's key in a URL of the report: a relative way; None if there is none."""
    if source.is_local and target.is_local:
        return quote(posixpath.relpath(source.root, target.root)) + "/"
    protocols = {split_protocol(each.url)[0] for each in (source, target)}
    if source.is_local or target.is_local or len(protocols) > 1:
        return None
    (bucket, _, key), (own_bucket, _, own_key) = (each.root.lstrip("/").partition("/") for each in (source, target))
    if bucket != own_bucket:
        return None  # another bucket is another site
    return quote(posixpath.relpath(f"/{key}", f"/{own_key}")) + "/"


def is_inside(key: str) -> bool:
    """Whether a video's key leads to something below the output."""
    return not (re.match(r"[/\\]|[A-Za-z][A-Za-z0-9+.-]*:", key) or ".." in key.split("/"))


def _by_id(source: Source) -> dict[str, Row]:
    """The committed samples of a baseline."""
    columns = ["sample_id", "status", "file_name", "objmc_px", "control_gain"]
    return {row["sample_id"]: row for row in source.index.select(columns).to_pylist() if row["status"] == "committed"}


def _differences(name: str, record: Row, other: Row) -> dict[str, float]:
    numbers = numbers_of({f"{each} of {name}": other[each] for each in ("objmc_px", "control_gain")})
    own = numbers_of(record)
    if "control_gain" in own and f"control_gain of {name}" in numbers:
        numbers[f"gain over {name}"] = own["control_gain"] - numbers[f"control_gain of {name}"]
    return numbers


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with numbers where they repeat."""
    seen: dict[str, int] = {}
    unique = []
    for name in map(shown_text, names):
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _marked(sources: Sequence[Source], folder: str) -> bytes:
    content = {
        "made_by": "sgi2v-batch report",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "outputs": [display_uri(each.url) for each in sources],
        "data": folder,
    }
    return json.dumps(content, indent=2).encode()


def page_of(built: Built) -> str:
    """The page that a person opens."""
    storage = Storage(built.location)
    return Path(storage.root, "index.html").as_uri() if storage.is_local else f"{built.location}/index.html"
