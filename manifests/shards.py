"""Shards of a manifest: parts that separate jobs run, each on a cluster of its own.

A row belongs to the shard that its id says: the first 8 bytes of the SHA-256 of `sample_id`, as a big-endian number,
modulo the number of shards. So a row keeps its shard when the manifest grows or is sorted.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from manifests.io import Manifest
from sgi2v.errors import ConfigError

FOLDER = "shards"
"""Folder of an output that the shards' own outputs lie in."""


@dataclass(frozen=True)
class Shard:
    """One of several parts of a manifest."""

    number: int
    """From 0."""
    count: int
    """Shards of the manifest."""

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard of `1/3`. Raises ConfigError."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if match is None:
            raise ConfigError(f"--shard is {text}: write I/N, such as 0/3 for the first of three shards")
        number, count = int(match[1]), int(match[2])
        if number >= count:
            raise ConfigError(f"--shard is {text}: the shards of {count} are 0/{count} to {max(count - 1, 0)}/{count}")
        return cls(number, count)

    def output_below(self, output: str) -> str:
        """Where the results of this shard lie, below the output of the whole manifest."""
        return f"{output.rstrip('/')}/{FOLDER}/{self.number}"

    def rows_of(self, table: pa.Table) -> pa.Table:
        """The rows of this shard, in their order."""
        numbers = np.fromiter((shard_of(name, self.count) for name in table["sample_id"].to_pylist()), np.int64)
        return table.filter(pa.array(numbers == self.number, pa.bool_()))

    def part_of(self, manifest: Manifest) -> Manifest:
        """The manifest with the rows of this shard only."""
        return replace(manifest, table=self.rows_of(manifest.table))


def shard_of(sample_id: str, count: int) -> int:
    """The number of the shard of a sample, from 0."""
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big") % count
