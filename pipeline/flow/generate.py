"""Second stage: first frame and box tracks -> frames, on a worker that holds one model."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.flow.attempts import LedgerClient, attempt, wait_until_admitted
from pipeline.flow.candidates import Candidates
from pipeline.flow.delivered import deliver
from pipeline.flow.meters import BusyTime, label_output
from pipeline.flow.notes import Reporter, SendNote
from pipeline.flow.row import InFlight, as_row, map_rows, masks_of, pixels_of, sampler_of, state_of, tracks_of
from pipeline.flow.session import garbage_collection_paused
from sgi2v.checkpoint import pinned
from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.errors import (
    ClusterError,
    ConfigError,
    ErrorCode,
    ModelError,
    SampleError,
    StorageError,
    is_out_of_memory,
)
from sgi2v.room import limit_process, use_expandable_segments
from sgi2v.trajectory import BoxTracks

if TYPE_CHECKING:
    from sgi2v.generate import Generation
    from sgi2v.inspection import Inspector
    from sgi2v.model import VideoModel
    from sgi2v.tracking.tracker import PointTracker


class Generate:
    """First frame and box tracks -> frames. Loads its model once."""

    reporter: Reporter | None = None
    """Tells the driver about steps; None tells nobody."""
    busy = BusyTime()
    """Of this process, which has one worker."""
    inspector: Inspector | None = None
    """Reads the latents of guided steps, and the generation; None does not."""

    def __init__(
        self, config: RunConfig, device: str, ledger: LedgerClient | None = None, send_note: SendNote | None = None
    ) -> None:
        """device: `cuda` or `cpu`. send_note: gets the notes on progress; None sends them to the ledger, if any."""
        start = time.perf_counter()
        self.config = config
        self.ledger = ledger
        # an error travels with the first row: of an exception in a constructor, Ray would pass on the text only
        self.model: VideoModel | ConfigError
        with garbage_collection_paused():  # during the imports it takes a fifth of the time, and frees nothing
            self.model = self._load(device)
        if isinstance(self.model, ConfigError):
            return
        import torch

        from sgi2v.estimate import choose_tier
        from sgi2v.memory import TierKeeper

        self.device = torch.cuda.get_device_name() if device == "cuda" else device
        try:
            self.memory = choose_tier(config.execution.memory, self.model, config.sampler, config.guidance)
        except ConfigError as error:
            self.model = error
            return
        self.tiers = TierKeeper(self.memory)
        if config.execution.compile:
            self._compile(self.model)
        if isinstance(self.model, ConfigError):
            return
        if (send := send_note or (ledger.note if ledger is not None else None)) is not None:
            self.reporter = Reporter(send, time.perf_counter() - start, config.sampler.steps)

    def _load(self, device: str) -> VideoModel | ConfigError:
        """The model, or why it cannot be used."""
        use_expandable_segments()
        import torch

        from sgi2v.model import load_model, quiet_libraries

        quiet_libraries()
        config = self.config
        if device == "cpu":
            torch.set_num_threads(config.execution.threads_per_worker)
        try:
            if device == "cuda":
                limit_process(torch.device(device), min(1.0, config.execution.gpus_per_worker or 1.0))
            model = load_model(pinned(config.model, config.model_revision), device=device)
        except ConfigError as error:
            return error
        except ModuleNotFoundError:
            raise  # which says what is missing, and where
        except Exception as error:
            return ModelError(f"{config.model.source} cannot be loaded on {device}: {error}")
        revision = model.checkpoint.revision
        if revision != config.model_revision:
            message = f"{config.model.source} is {revision} on {socket.gethostname()}, but {config.model_revision}"
            return ModelError(f"{message} where the run was started: give every node the same weights")
        return model

    def _compile(self, model: VideoModel) -> None:
        """Compile before the first sample, so that no sample fails by it or is timed with it."""
        from sgi2v.compiled import cannot_compile, compile_blocks
        from sgi2v.trial import moving_box, shortest

        compile_blocks(model.unet)
        sampler, guidance = shortest(self.config.sampler, self.config.guidance)
        try:
            self._sample(model, *moving_box(sampler), sampler, guidance, seed=0)
        except Exception as error:
            # the real samples report an error of this kind themselves
            if not isinstance(error, SampleError) and not is_out_of_memory(error):
                self.model = cannot_compile(self.config.model.source, error)

    def __call__(self, table: pa.Table) -> pa.Table:
        return map_rows(table, "generate", self._generate)

    def _generate(self, table: pa.Table) -> pa.Table:
        state = state_of(table)
        if isinstance(self.model, ConfigError):
            return as_row(state.with_run_error(self.model), None, None)
        if state.error_code is not None or state.fatal is not None:
            return as_row(state, None, None)
        timeout_s = self.config.execution.sample_timeout_s
        candidates = Candidates(self.config.candidates, state.seed) if self.config.candidates.are_measured else None
        label_output(self.config.output)
        try:
            wait_until_admitted(self.ledger, state.sample_id)
            self.busy.begin()
            # a process that has lost its GPU exits, and another worker gets the row
            with attempt(self.ledger, "generate", state.sample_id, timeout_s, breaks_worker=_device_is_lost) as anew:
                return self._videos(table, state, candidates, anew)
        except (ClusterError, StorageError) as error:
            return as_row(state.with_run_error(error), None, None)
        except Exception as error:
            if candidates is not None:
                state.record_fields["candidates"] = candidates.rows
                state = state.with_seconds("candidates", candidates.seconds)
            return as_row(state.with_error(error), None, None)
        finally:
            self.busy.end()

    def _videos(
        self, table: pa.Table, state: InFlight, candidates: Candidates | None, set_deadline: Callable[[], None]
    ) -> pa.Table:
        """Make the videos of a row: that of its seed or the best of its candidates, and its baseline.

        set_deadline: called before each video.
        """
        assert not isinstance(self.model, ConfigError)
        model, sampler = self.model, sampler_of(state, self.config.sampler)
        image_HWC = pixels_of(table, "first_frame", (sampler.height, sampler.width, 3))
        tracks = replace(tracks_of(state, sampler), masks_NHW=masks_of(table))

        def make(guidance: GuidanceConfig | None, seed: int, video: str = "") -> Generation:
            if self.reporter is not None:
                self.reporter.begin(state.sample_id, video)
            set_deadline()
            try:
                return self._sample(model, image_HWC, tracks, sampler, guidance, seed)
            except Exception as error:
                if is_out_of_memory(error):
                    message = f"{error}: make the frames smaller or fewer"
                    raise SampleError(ErrorCode.OUT_OF_MEMORY, message) from error
                raise

        def make_candidate(number: int, seed: int) -> Generation:
            return make(self.config.guidance, seed, f"candidate {number + 1} of {self.config.candidates.number}")

        if candidates is None:
            generation = make(self.config.guidance, state.seed)
        else:
            generation = candidates.best(
                make_candidate,
                lambda frames_THWC: deliver(frames_THWC, table, state, sampler).measure(self._tracker),
            )
            kept = candidates.kept
            state = replace(state, seed=kept["seed"]).with_seconds("candidates", candidates.seconds)
            tried = {"candidates": candidates.rows, "kept_candidate": kept["number"], "passed": kept["passed"]}
            state.record_fields.update(tried)
        if self.inspector is not None:
            self.inspector.finished(generation)
        fields = {**state.record_fields, **self._record_fields(generation)}
        state = replace(state, seconds={**state.seconds, **generation.seconds}, record_fields=fields)
        baseline_frames = None
        if self.config.baseline is not None and generation.is_guided:
            start = time.perf_counter()
            baseline_frames = make(None, state.seed, "baseline").frames.tobytes()
            state = state.with_seconds("baseline", time.perf_counter() - start)
            state.record_fields["baseline_frames_sha256"] = hashlib.sha256(baseline_frames).hexdigest()
        first_frame, frames = table["first_frame"][0].as_py(), generation.frames.tobytes()
        return as_row(state, first_frame, frames, baseline_frames=baseline_frames)

    def _sample(
        self,
        model: VideoModel,
        image_HWC: NDArray[np.uint8],
        tracks: BoxTracks,
        sampler: SamplerConfig,
        guidance: GuidanceConfig | None,
        seed: int,
    ) -> Generation:
        """Make the video; if memory runs out, again in a lower memory tier, which this worker keeps for a while."""
        from sgi2v.estimate import choose_chunk
        from sgi2v.generate import generate
        from sgi2v.memory import with_oom_fallback

        # by the run's own size, whose cost is known; frames of another shape have no more pixels
        sampler = sampler.replace(decode_chunk_size=choose_chunk(model, self.config.sampler, guidance))

        def make(tier: MemoryTier) -> Generation:
            self.memory = tier
            on_stage = None if self.inspector is None else self.inspector.on_stage
            return generate(
                model,
                image_HWC,
                tracks,
                sampler,
                guidance,
                seed,
                on_stage=on_stage,
                memory=tier,
                on_step=self._note_step,
            )

        tried = self.tiers.next()
        try:
            return with_oom_fallback(make, tried, self.config.execution.memory, guidance)
        finally:
            self.tiers.finished(tried, self.memory)

    @cached_property
    def _tracker(self) -> PointTracker:
        """What measures the candidates."""
        from sgi2v.tracking import load_tracker

        return load_tracker(self.config.metrics.tracker)

    def _note_step(self, step: int) -> None:
        """A denoising step begins. step: its 0-based index."""
        self.busy.lap()
        if self.reporter is not None:
            self.reporter.step(step)

    def _record_fields(self, generation: Generation) -> dict[str, Any]:
        def column(values: NDArray[np.float64]) -> list[float | None]:
            return [float(value) if np.isfinite(value) else None for value in values.ravel()]

        assert not isinstance(self.model, ConfigError)
        return {
            "guided": generation.is_guided,
            "loss_first": column(generation.losses[:, :1]),
            "loss_last": column(generation.losses[:, -1:]),
            "skipped_updates": generation.skipped_updates,
            "latent_drift": generation.latent_drift,
            "peak_gpu_bytes": generation.peak_gpu_bytes,
            "memory": self.memory.value,
            "decode_chunk": generation.decode_chunk,
            "device": self.device,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "kernels": self.model.kernels,
            "host": socket.gethostname(),
            "frames_sha256": hashlib.sha256(generation.frames.tobytes()).hexdigest(),
        }


def _device_is_lost(error: BaseException) -> bool:
    """Whether the GPU has asserted or is gone: then every later sample of this process would fail too."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)
