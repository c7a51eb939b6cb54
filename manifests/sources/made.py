"""What a source makes: rows, and what is in none of them and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from manifests.recipe import METADATA_KEY
from manifests.schema import EXTENSION_SCHEMA, MANIFEST_SCHEMA, conform
from manifests.skipped import Skipped
from sgi2v.canonical import canonical_json

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


@dataclass
class Made:
    """Rows, and what is in none of them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def manifest(self, own_columns: Sequence[pa.Field[Any]], recipe: dict[str, Any], source: str) -> pa.Table:
        """The conformed manifest with these columns, and with the recipe in its metadata and in every row.

        Columns of EXTENSION_SCHEMA that no row uses are left out. Raises ManifestError where there are no rows.
        """
        text = canonical_json(recipe)
        unused = [name for name in EXTENSION_SCHEMA.names if all(row.get(name) is None for row in self.rows)]
        further = [column for column in own_columns if column.name not in unused]
        schema = pa.schema([*MANIFEST_SCHEMA, *further, pa.field("recipe", pa.string())])
        rows = [row | {"recipe": text} for row in self.rows]
        table = conform(pa.Table.from_pylist(rows, schema=schema), source)
        return table.replace_schema_metadata({METADATA_KEY: text})


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
