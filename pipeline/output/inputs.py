"""Compare the rows and images that finished samples were made from with the manifest and the images of today."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.access import Access, display_uri, stored_uri, without_secrets
from manifests.schema import known_columns, row_digest, rows_of
from manifests.urls import read_image_bytes, resolve_uri
from manifests.validate import PARALLEL_READS
from pipeline.output.catalog import Catalog
from pipeline.output.records import Status
from sgi2v.errors import ErrorCode, SampleError, StorageError
from sgi2v.locations import split_protocol
from sgi2v.retry import with_retries

DIGEST_BATCH_ROWS = 5000
"""Rows that are held in memory as Python objects while they are digested."""
IMAGE_ATTEMPTS = 4
"""Consecutive attempts to read an image before its row fails. Few, since thousands of rows may name a server that is
down."""
BATCH_ROWS = 1000
"""Records that are held in memory as Python objects while their images are compared."""
MASK = "***"
"""What `without_secrets` puts in place of a secret."""


@dataclass
class ImageComparison:
    """What became of the images of finished samples."""

    changed: dict[str, str] = field(default_factory=dict)
    """Samples whose image is another one than they were made from, each with the place of the image."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Samples whose image cannot be read now, each with the reason."""
    unrecorded: int = 0
    """Committed samples whose record has no digest, because an earlier version made them."""

    def note(self, record: dict[str, Any], place: str, now: str | Exception) -> None:
        """Compare the image of one sample. now: the digest of what lies at its place, or why that cannot be read."""
        if isinstance(now, Exception):
            self.unreadable[record["sample_id"]] = without_secrets(str(now))
        elif now != record["image_sha256"]:
            self.changed[record["sample_id"]] = shown_uri(place)


def shown_uri(uri: str) -> str:
    """The URI of an image as a record keeps it: without secrets, and without the data of an inline image."""
    return uri.partition(",")[0] if split_protocol(uri)[0] == "data" else stored_uri(uri)


def changed_rows(manifest: pa.Table, index: pa.Table) -> list[str]:
    """The samples of an index whose row of the manifest is another one than they were made from."""
    positions = pc.index_in(manifest["sample_id"], value_set=index["sample_id"].combine_chunks())
    rows = known_columns(manifest).append_column("_digest", index["row_digest"].take(positions))
    return [
        row["sample_id"]
        for batch in rows.filter(pc.is_valid(positions)).to_batches(max_chunksize=DIGEST_BATCH_ROWS)
        for row in rows_of(pa.Table.from_batches([batch]))
        if row_digest(row) != row["_digest"]
    ]


def compare_images(
    catalog: Catalog,
    rows: pa.Table | None,
    manifest: str,
    access: Access,
    as_recorded: bool = False,
) -> ImageComparison:
    """Read the images of finished samples again, and compare their digests with those of the records.

    rows: of the manifest, at `manifest`. Their samples are compared, with the images that the rows name. as_recorded:
    all samples are compared, with the images that their records name. Where a record had to leave out a secret, the
    row's image is read.
    """
    comparison = ImageComparison()
    now: dict[str, str | Exception] = {}
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for records in _records(catalog, rows, as_recorded):
            places = {}
            for record in records:
                sample_id = record["sample_id"]
                if record["image_sha256"] is None:
                    comparison.unrecorded += record["status"] == "committed"
                    continue
                try:
                    places[sample_id] = _place(record, manifest, access, as_recorded)
                except SampleError as error:
                    comparison.unreadable[sample_id] = error.message
            unread = list({place for place in places.values() if place is not None and place not in now})
            now.update(zip(unread, pool.map(lambda place: _digest(place, access), unread), strict=True))
            for record in records:
                place = places.get(record["sample_id"])
                if place is not None:
                    comparison.note(record, place, now[place])
    return comparison


def _records(catalog: Catalog, rows: pa.Table | None, with_others: bool) -> Iterator[list[dict[str, Any]]]:
    """The samples to compare in batches: sample_id, status, image_uri, image_sha256, and the row's image or null.

    with_others: also samples without a row.
    """
    statuses: tuple[Status, ...] = ("committed", "failed")
    for status in statuses:
        for table in catalog.tables(status):
            table = table.select(["sample_id", "status", "image_uri", "image_sha256"])
            if rows is None:
                table = table.append_column("image", pa.nulls(table.num_rows, pa.string()))
            else:
                positions = pc.index_in(table["sample_id"], value_set=rows["sample_id"].combine_chunks())
                table = table.append_column("image", rows["image"].take(positions))
                table = table if with_others else table.filter(pc.is_valid(positions))
            for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                yield batch.to_pylist()


def _place(record: dict[str, Any], manifest: str, access: Access, as_recorded: bool) -> str | None:
    """Where a sample's image lies now; None if it is inline, so that the row's digest covers it.

    Raises SampleError if the place is not allowed or not known.
    """
    recorded: str = record["image_uri"]
    image: str | None = recorded if as_recorded and MASK not in recorded else record["image"]
    if image is None:
        raise SampleError(ErrorCode.IMAGE_MISSING, f"{recorded} had secrets, which the record does not keep")
    return None if split_protocol(image)[0] == "data" else resolve_uri(image, manifest, access)


def fetch_image(uri: str, access: Access) -> bytes:
    """The bytes of an image file, after several attempts. Raises as `read_image_bytes`, and StorageError."""
    return with_retries(f"reading {display_uri(uri)}", lambda: read_image_bytes(uri, access=access), IMAGE_ATTEMPTS)


def _digest(uri: str, access: Access) -> str | Exception:
    """The digest of an image file's bytes, or why it cannot be read."""
    try:
        data = fetch_image(uri, access)
    except (SampleError, StorageError, OSError) as error:
        return error
    return hashlib.sha256(data).hexdigest()
