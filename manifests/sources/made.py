"""What a source makes: rows, and a table of what is in none of them and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from manifests.schema import MANIFEST_SCHEMA, conform
from sgi2v.canonical import canonical_json

RECIPE_KEY = "sgi2v_batch.recipe"
"""Key of the recipe in the metadata of a manifest's Parquet file; its own column `recipe` has it in every row."""
MAX_NAME_CHARS = 100

REFERENCE = pa.struct(
    [
        pa.field("uri", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("frames", pa.list_(pa.string())),
    ]
)
"""Type of the own column `reference`: the true motion, which a generated video can be compared with.

`uri` is a video or a folder of pictures, absolute or relative to the manifest as `image` is. Of a video, the point p of
the P points of a path is `start_s + p * (end_s - start_s) / (P - 1)` seconds after the first frame, and `frames` is
null. Of a folder, it is the file `frames[p]`, and the seconds are null.
"""

SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("box", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Skipped:
    """A file, a clip of it or a box that is in no row."""

    key: str
    """Of the file or folder, relative to the place that was asked for."""
    code: str
    message: str
    start_s: float | None = None
    """Where the clip begins, for a clip or a box in it."""
    box: list[float] | None = None
    """xyxy, pixels of the source image, for a box."""


@dataclass
class Made:
    """Rows, and what is in none of them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def skipped_by_code(self) -> dict[str, int]:
        """How many entries each code has, most first."""
        return dict(Counter(one.code for one in self.skipped).most_common())

    def skipped_table(self) -> pa.Table:
        """The table of what was left out; it has its columns also where that is nothing."""
        return pa.Table.from_pylist([asdict(one) for one in self.skipped], schema=SKIPPED_SCHEMA)

    def manifest(self, own_columns: Sequence[pa.Field[Any]], recipe: dict[str, Any], source: str) -> pa.Table:
        """The conformed manifest with these columns, and with the recipe in its metadata and in every row.

        Raises ManifestError where there are no rows.
        """
        text = canonical_json(recipe)
        further = [column for column in own_columns if column.name not in MANIFEST_SCHEMA.names]
        schema = pa.schema([*MANIFEST_SCHEMA, *further, pa.field("recipe", pa.string())])
        rows = [row | {"recipe": text} for row in self.rows]
        table = conform(pa.Table.from_pylist(rows, schema=schema), source)
        return table.replace_schema_metadata({RECIPE_KEY: text})


def still_of(stay: Sequence[bool]) -> list[bool]:
    """The column `still` of boxes that stay or not: none is still where all stay, since a row needs one that is not."""
    return [stays and not all(stay) for stays in stay]


def together(parts: Sequence[Made]) -> Made:
    """The rows and entries of all parts, in their order."""
    return Made([row for part in parts for row in part.rows], [one for part in parts for one in part.skipped])


def names_of(stems: Sequence[str]) -> list[str]:
    """A valid sample id for each text, or the begin of one. No two are equal, not even where capitals do not count."""
    names: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:MAX_NAME_CHARS] or "sample"
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names
