"""The stage that measures a video: a row of a source -> its result, as one line of JSON."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa

from manifests.access import without_secrets
from manifests.schema import row_digest, rows_of
from pipeline.evaluate.clips import load_clip
from pipeline.evaluate.config import EvaluationConfig, suffix_of
from pipeline.flow.attempts import LedgerClient, attempt
from pipeline.flow.row import RUN_ERRORS
from pipeline.output.inputs import shown_uri
from pipeline.output.labels import labels_of
from sgi2v.errors import ConfigError, ErrorCode, SampleError, SGI2VError
from sgi2v.metrics.objmc import METRICS_VERSION
from sgi2v.metrics.protocols import PROTOCOLS
from sgi2v.tracking.learned import LearnedTracker

MEASURED_SCHEMA = pa.schema([(name, pa.string()) for name in ("result", "fatal", "message")])
"""A measured row as the driver gets it: the result as JSON, or name and message of an error that ends the run."""
MESSAGE_LIMIT = 2000


class Measure:
    """Rows of a source -> results."""

    def __init__(self, config: EvaluationConfig, ledger: LedgerClient | None = None) -> None:
        self.config = config
        self.ledger = ledger
        self.trackers = config.load_trackers()

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._row(row) for row in rows_of(table)], MEASURED_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        result: dict[str, Any] = {
            "sample_id": row["sample_id"],
            "file_name": row["_video"],
            "video_uri": row["_video"],
            "row_digest": row_digest(row),
            "image_uri": None if row["_image"] is None else shown_uri(row["_image"]),
            "status": "measured",
        }
        try:
            with attempt(self.ledger, "measure", row["sample_id"], self.config.execution.sample_timeout_s):
                for tracker in self.trackers:
                    if isinstance(tracker, LearnedTracker):
                        tracker.load()  # what it lacks ends the evaluation, and is no fault of a video
                result.update(self._measured(row))
        except ConfigError as error:  # weights or code that this node lacks
            return {"fatal": type(error).__name__, "message": without_secrets(str(error))}
        except SampleError as error:
            result |= {"status": "failed", "error_code": str(error.code), "message": _shortened(error.message)}
        except SGI2VError as error:
            return {"fatal": type(error).__name__, "message": without_secrets(str(error))}
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            result |= {"status": "failed", "error_code": str(ErrorCode.UNKNOWN), "message": _shortened(message)}
        result["seconds_measure"] = round(time.perf_counter() - start, 4)
        return {"result": json.dumps(result, allow_nan=False)}

    def _measured(self, row: dict[str, Any]) -> dict[str, Any]:
        loaded = load_clip(row, self.config.fit)
        first = self.trackers[0]
        by = {"tracker": first.name, "tracker_version": first.version, "metrics_version": METRICS_VERSION}
        values = {**loaded.fields, **by}
        for tracker in self.trackers:
            suffix = suffix_of(self.config.trackers, tracker.name)
            for name in self.config.per_video:
                measured = PROTOCOLS[name].measure(loaded.clip, tracker)
                values |= {f"{column}{suffix}": value for column, value in measured.items()}
        left, top, _, _ = loaded.fields["picture_box"]
        values["labels"] = labels_of(*loaded.clip.followed(first), first, (left, top))
        return values


def result_of(row: dict[str, Any]) -> dict[str, Any]:
    """The result in a row of MEASURED_SCHEMA. Raises the error that ends the run."""
    if row["fatal"] is not None:
        raise RUN_ERRORS.get(row["fatal"], ConfigError)(row["message"])
    result: dict[str, Any] = json.loads(row["result"])
    return result


def _shortened(message: str) -> str:
    return without_secrets(message)[:MESSAGE_LIMIT]
