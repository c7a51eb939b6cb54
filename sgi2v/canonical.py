"""Canonical JSON: equal values have equal text, so the text can be hashed and compared."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, tuples as lists, non-ASCII characters escaped.

    Used for fingerprints of settings and for digests of manifest rows. Raises TypeError for a value that JSON has no
    type for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
