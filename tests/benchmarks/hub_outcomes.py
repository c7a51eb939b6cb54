"""What becomes of a run where the Hugging Face Hub fails, and how often workers ask it:

    python -m tests.benchmarks.hub_outcomes

A stand-in on the loopback address takes the Hub's place, and a folder of temporary files that of the local cache.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.hub_stand_in import COMMIT, MODEL, Fault, Hub, hub_stand_in

FAULTS: dict[str, Fault] = {
    **{"none": None, "401": 401, "403": 403, "404": 404, "429": 429, "503": 503},
    "gone in the middle of the weights": "cut",
}
WORKERS = 20
GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint"


def outcome(revision: str | None = None) -> str:
    """What opening the model comes to, in a line."""
    from sgi2v.checkpoint import open_checkpoint
    from sgi2v.config import ModelConfig
    from sgi2v.errors import ModelError

    try:
        checkpoint = open_checkpoint(ModelConfig(source=MODEL, revision=revision))
    except ModelError as error:
        return "refused: " + " / ".join(str(error).splitlines())
    note = getattr(checkpoint, "note", None)
    return f"{checkpoint.revision[:7]}" + (f", with the note: {note}" if note else "")


def table(hub: Hub, caches: list[Path]) -> None:
    """Print the outcome for each fault, with an empty and with a full cache."""

    def empty() -> None:
        for cache in caches:
            shutil.rmtree(cache, ignore_errors=True)

    for cache in ("empty", "full"):
        for name, fault in FAULTS.items():
            hub.fault = None
            empty()
            if cache == "full":
                outcome()
            hub.fault, hub.requests = fault, 0
            print(f"{cache:5} cache, {name}: {outcome()} [{hub.requests} requests]", flush=True)
    for name, fault in {"none": None, "429": 429}.items():
        hub.fault = None
        empty()
        outcome()
        hub.fault, hub.requests = fault, 0
        outcomes = {outcome(COMMIT) for _ in range(WORKERS)}
        print(f"{WORKERS} workers on the cached revision, {name}: {outcomes} [{hub.requests} requests]")


def main() -> None:
    with TemporaryDirectory() as folder, hub_stand_in(shutil.copytree(GOLDEN, Path(folder, "model"))) as hub:
        caches = [Path(folder, "hub"), Path(folder, "ours")]
        # before the Hub's library is imported, which reads them once
        os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=str(caches[0]), HF_HUB_DISABLE_XET="1")
        os.environ["SGI2V_CACHE"] = str(caches[1])
        table(hub, caches)


if __name__ == "__main__":
    main()
