"""The one JSON text of a value, for fingerprints and digests."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The JSON text of a value: sorted keys, no spaces, tuples as lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
