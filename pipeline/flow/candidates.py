"""The candidates of one sample: several seeds, of which the best video is kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import CandidatesConfig, candidate_seed
from pipeline.output.candidates import KEEPABLE, Candidate, keep_condition, rank, why_not
from sgi2v.errors import ErrorCode, SampleError

if TYPE_CHECKING:
    from sgi2v.generate import Generation

Make = Callable[[int, int], "Generation"]
"""Makes the video of a candidate, by its number and seed."""
Measure = Callable[[NDArray[np.uint8]], Mapping[str, Any]]
"""The metrics of frames [T, H, W, 3], as they are measured on the mp4."""


class Candidates:
    """The candidates of one sample. Only the frames of the best one so far are held."""

    def __init__(self, config: CandidatesConfig, seed: int) -> None:
        """seed: of the sample."""
        self.rows: list[dict[str, Any]] = []
        """A row of Candidate and KEEPABLE for each candidate, also where all of them failed."""
        self.seconds = 0.0
        """Making and measuring them all."""
        self._config = config
        self._seed = seed
        self._condition = None if config.keep is None else keep_condition(config.keep)
        self._kept: int | None = None
        self._generation: Generation | None = None

    def best(self, make: Make, measure: Measure) -> Generation:
        """Make the candidates, and return the video of the best one.

        A candidate that fails is recorded and left out. Raises SampleError, that of the first one, if all of them fail.
        """
        start = time.perf_counter()
        try:
            self._make_all(make, measure)
        finally:
            self.seconds = time.perf_counter() - start
        if self._generation is None:
            raise SampleError(ErrorCode(self.rows[0]["error_code"]), self.rows[0]["message"])
        return self._generation

    @property
    def kept(self) -> dict[str, Any]:
        """The row of the candidate whose video is kept."""
        assert self._kept is not None
        return self.rows[self._kept]

    def _make_all(self, make: Make, measure: Measure) -> None:
        """Make the candidates, one after the other, and judge them."""
        # a candidate is measured on the CPU while the next one is made, unless it depends on the result whether it is
        with ThreadPoolExecutor(1, thread_name_prefix="measure") as measuring:
            waiting: tuple[int, Generation, Future[Mapping[str, Any]]] | None = None
            for number in range(self._config.number):
                generation = self._made(number, make)
                if waiting is not None:
                    self._judge(*waiting)
                waiting = None
                if generation is not None:
                    waiting = number, generation, measuring.submit(measure, generation.frames)
                    if self._config.stop_early:
                        self._judge(*waiting)
                        waiting = None
                        if self.rows[number]["passed"]:
                            break
            if waiting is not None:
                self._judge(*waiting)

    def _made(self, number: int, make: Make) -> Generation | None:
        """The video of a candidate; None if it fails."""
        seed = candidate_seed(self._seed, number)
        start = time.perf_counter()
        generation, fields = None, {}
        try:
            generation = make(number, seed)
            digest = hashlib.sha256(generation.frames.tobytes()).hexdigest()
            fields = {"frames_sha256": digest, "decode_chunk": generation.decode_chunk}
        except SampleError as error:
            fields = {"error_code": str(error.code), "message": error.message}
        seconds = round(time.perf_counter() - start, 4)
        self.rows.append({**asdict(Candidate(number, seed, seconds)), **dict.fromkeys(KEEPABLE), **fields})
        return generation

    def _judge(self, number: int, generation: Generation, measured: Future[Mapping[str, Any]]) -> None:
        """Fill in the row of a candidate, and keep its video if it is the best."""
        row = self.rows[number]
        try:
            metrics = measured.result()
        except SampleError as error:
            row.update(error_code=str(error.code), message=error.message)
            return
        row.update({name: metrics[name] for name in KEEPABLE})
        if self._condition is not None:
            row["passed"] = self._condition.holds(metrics)
            row["why_not"] = None if row["passed"] else why_not(self._condition, metrics)
        if self._kept is None or rank(row) > rank(self.kept):
            if self._kept is not None:
                self.kept["kept"] = False
            row["kept"] = True
            self._kept, self._generation = number, generation
