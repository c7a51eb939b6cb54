"""The three stages as plain callables, without Ray."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import sgi2v.compiled
import sgi2v.estimate
import sgi2v.memory
import sgi2v.retry
from manifests.io import read_manifest
from manifests.masks import png_of
from pipeline.config import RunConfig, resolve
from pipeline.flow.attempts import MAX_ATTEMPTS, Ledger
from pipeline.flow.commit import Commit
from pipeline.flow.generate import Generate
from pipeline.flow.load import Load
from pipeline.flow.row import RUN_ERRORS, InFlight, state_of
from pipeline.output.inputs import IMAGE_ATTEMPTS
from pipeline.output.records import SampleRecord
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import MemoryTier, ModelConfig
from sgi2v.errors import ClusterError, ConfigError, ErrorCode, SampleError
from sgi2v.generate import Generation
from sgi2v.trajectory import BoxTracks
from tests.pipeline.flow.test_attempts import OnNode
from tests.pipeline.runs import FRAMES, SIDE, picture, row, write_good, write_rows
from tests.stand_in import StandIn

GENERATE_MODULE = import_module("sgi2v.generate")
"""Not `sgi2v.generate`, which is the function."""


def config_of(manifest: Path, model: str = "embedded") -> RunConfig:
    sampler = {"height": SIDE, "width": SIDE, "num_frames": FRAMES, "steps": 2}
    flags = {"model": {"source": model}, "sampler": sampler}
    return resolve(str(manifest), str(manifest.parent / "out"), {}, flags)[0]


def rows_of(manifest: Path) -> pa.Table:
    return InFlight.begin(read_manifest(str(manifest)))


@pytest.mark.slow
def test_a_row_goes_from_the_manifest_to_its_record(tmp_path: Path) -> None:
    manifest = write_good(tmp_path, 1)
    config = config_of(manifest)
    (outcome,) = Commit(config, 1)(Generate(config, "cpu")(Load(config)(rows_of(manifest)))).to_pylist()
    record = SampleRecord.from_json(outcome["record"].encode())
    assert (record.sample_id, record.status, record.attempts) == ("s00", "committed", 1)
    assert (tmp_path / "out" / str(record.file_name)).stat().st_size == record.video_bytes
    assert outcome["fatal"] is None


def test_a_failed_row_passes_every_stage_to_its_record(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path / "m.parquet", [row("a", image="none.png"), row("b", image="none.png", boxes=[])])
    config = config_of(manifest)
    outcomes = Commit(config, 1)(Generate(config, "cpu")(Load(config)(rows_of(manifest)))).to_pylist()
    records = [SampleRecord.from_json(outcome["record"].encode()) for outcome in outcomes]
    assert [record.error_code for record in records] == ["image_missing", "trajectory_invalid"]
    assert not (tmp_path / "out" / "videos").exists()


def test_a_row_that_ends_its_loader_is_quarantined(tmp_path: Path) -> None:
    config = config_of(write_rows(tmp_path / "m.parquet", [row("a", boxes=[[0.0] * 4] * 100_000)]))
    ledger = OnNode(Ledger(lambda: {"one"}, 1), "one")
    for expected in (ErrorCode.TRAJECTORY_INVALID, ErrorCode.WORKER_DIED):
        state = state_of(Load(config, ledger)(rows_of(Path(config.manifest))))
        assert state.error_code == expected, "the row is parsed within the attempt"
        for _ in range(MAX_ATTEMPTS):
            ledger.start("load", "a")


def test_weights_that_do_not_load_end_the_run_without_a_record(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(open_checkpoint(ModelConfig(source="embedded")).path, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    manifest = write_good(tmp_path, 1)
    config = config_of(manifest, str(model))
    (outcome,) = Commit(config, 1)(Generate(config, "cpu")(Load(config)(rows_of(manifest)))).to_pylist()
    assert (outcome["record"], outcome["fatal"]) == (None, "ModelError")
    assert str(model) in outcome["message"]
    assert not (tmp_path / "out" / "records").exists()


@pytest.mark.slow
def test_a_store_that_refuses_ends_the_run(tmp_path: Path) -> None:
    manifest = write_good(tmp_path, 1)
    config = config_of(manifest)
    commit = Commit(config, 1)
    Path(config.output).write_text("a file has taken the folder's place")
    (outcome,) = commit(Generate(config, "cpu")(Load(config)(rows_of(manifest)))).to_pylist()
    assert (outcome["record"], outcome["fatal"]) == (None, "StorageError")
    assert f"writing {config.output}/videos/s00." in outcome["message"]


class LostLedger:
    """A ledger whose actor is lost for good."""

    crash_reports = None

    def fail(self, *arguments: str) -> Any:
        raise ClusterError("the ledger is lost")

    start = finish = admit = release = fail


@pytest.mark.parametrize("lost_in", ["load", "generate", "commit"])
def test_a_lost_ledger_ends_the_run_and_fails_no_row(tmp_path: Path, lost_in: str) -> None:
    manifest = write_good(tmp_path, 1)
    config = config_of(manifest)
    lost = {lost_in: LostLedger()}
    loaded = Load(config, lost.get("load"))(rows_of(manifest))
    generated = StandIn(config, "cpu", lost.get("generate"))(loaded)
    (outcome,) = Commit(config, 1, lost.get("commit"))(generated).to_pylist()
    assert (outcome["record"], outcome["fatal"], outcome["message"]) == (None, "ClusterError", "the ledger is lost")
    assert RUN_ERRORS[outcome["fatal"]] is ClusterError
    assert not (tmp_path / "out" / "records").exists()


@pytest.mark.parametrize("missing_in", ["load", "generate", "commit"])
def test_a_package_that_is_missing_on_a_node_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing_in: str
) -> None:
    manifest = write_good(tmp_path, 1)
    config = config_of(manifest)

    def fail(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'av.video'", name="av.video")

    method = {"load": (Load, "_with_conditions"), "generate": (StandIn, "_sample"), "commit": (Commit, "_finish")}
    monkeypatch.setattr(*method[missing_in], fail)
    generated = StandIn(config, "cpu")(Load(config)(rows_of(manifest)))
    (outcome,) = Commit(config, 1)(generated).to_pylist()
    assert (outcome["record"], outcome["fatal"]) == (None, "ClusterError")
    assert outcome["message"].startswith(f"the Python package av is missing on {socket.gethostname()}: install")
    assert not (tmp_path / "out" / "records").exists()


def test_a_worker_without_temporary_files_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_good(tmp_path, 1)
    config = config_of(manifest)
    generated = StandIn(config, "cpu")(Load(config)(rows_of(manifest)))
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    (outcome,) = Commit(config, 1)(generated).to_pylist()
    assert (outcome["record"], outcome["fatal"]) == (None, "StorageError")
    assert "['/proc']; make room there" in outcome["message"]
    assert not (tmp_path / "out" / "records").exists()


@contextmanager
def web_server(folder: Path, fails: Callable[[str, int], bool]) -> Iterator[str]:
    """The URL of a folder, served on this machine.

    fails: whether to answer 503 to a path, after so many calls for any path.
    """
    calls: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def send_head(self) -> Any:
            calls.append(self.path)
            return self.send_error(503) if fails(self.path, len(calls) - 1) else super().send_head()

        def log_message(self, *arguments: object) -> None:
            """Write nothing to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("fails", "code", "fatal"),
    [
        (lambda path, calls: calls < 2 * IMAGE_ATTEMPTS, None, None),
        (lambda path, calls: path == "/s00.png", "image_missing", None),
        (lambda path, calls: True, None, "StorageError"),
    ],
    ids=["for a while", "for the image alone", "for good"],
)
def test_an_image_in_the_runs_own_store_when_the_store_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[[str, int], bool],
    code: str | None,
    fatal: str | None,
) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)
    manifest = write_good(tmp_path, 1)
    with web_server(tmp_path, fails) as url:
        config = dataclasses.replace(config_of(manifest), manifest=f"{url}/m.parquet")
        state = state_of(Load(config)(rows_of(manifest)))
    assert (state.error_code, state.fatal) == (code, fatal)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class RunsOut:
    """`generate` that fails in some memory tiers and is the real one in the others."""

    def __init__(self, *too_much: MemoryTier, error: Exception = OUT_OF_MEMORY) -> None:
        self.too_much = too_much
        self.error = error
        self.tried: list[MemoryTier] = []
        self.real = GENERATE_MODULE.generate

    def __call__(self, *args: Any, memory: MemoryTier, **more: Any) -> Generation:
        self.tried.append(memory)
        if memory in self.too_much:
            raise self.error
        return self.real(*args, memory=memory, **more)


def records_with(generator: RunsOut, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Records of the manifest's rows, which one worker makes one after the other."""
    monkeypatch.setattr(GENERATE_MODULE, "generate", generator)
    rows, worker = rows_of(Path(config.manifest)), Generate(config, "cpu")
    outcomes = [
        Commit(config, 1)(worker(Load(config)(rows.slice(at, 1)))).to_pylist()[0] for at in range(rows.num_rows)
    ]
    return [json.loads(outcome["record"]) for outcome in outcomes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "without_room", "tried", "stays"),
    [
        (OUT_OF_MEMORY, [MemoryTier.HIGH, MemoryTier.MEDIUM], ["high", "medium", "low", "low"], "low"),
        (RuntimeError("CUDA error: out of memory"), [MemoryTier.HIGH], ["high", "medium", "medium"], "medium"),
    ],
)
def test_a_worker_that_runs_out_of_memory_stays_in_a_lower_tier(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    without_room: list[MemoryTier],
    tried: list[str],
    stays: str,
) -> None:
    generator = RunsOut(*without_room, error=error)
    records = records_with(generator, config_of(write_good(tmp_path, 2)), monkeypatch)
    assert generator.tried == tried
    assert [(record["status"], record["memory"]) for record in records] == [("committed", stays)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "tried"), [("auto", ["high", "medium", "low"]), *((tier, [tier]) for tier in ("high", "medium", "low"))]
)
def test_a_sample_that_fits_in_no_tier_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, tried: list[str]
) -> None:
    generator = RunsOut(*MemoryTier)
    config = config_of(write_good(tmp_path, 1))
    config = dataclasses.replace(config, execution=config.execution.replace(memory=memory))
    (record,) = records_with(generator, config, monkeypatch)
    assert generator.tried == tried
    assert (record["status"], record["error_code"]) == ("failed", "out_of_memory")
    assert "2.00 GiB.: make the frames smaller or fewer" in record["message"]


def test_an_unguided_sample_is_tried_in_one_tier_since_its_tiers_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = RunsOut(*MemoryTier)
    config = dataclasses.replace(config_of(write_good(tmp_path, 1)), guidance=None)
    (record,) = records_with(generator, config, monkeypatch)
    assert generator.tried == [MemoryTier.HIGH]
    assert (record["status"], record["error_code"]) == ("failed", "out_of_memory")


@pytest.mark.whole
def test_a_worker_that_starts_in_the_medium_tier_falls_back_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sgi2v.estimate, "choose_tier", lambda *_: MemoryTier.MEDIUM)
    generator = RunsOut(MemoryTier.MEDIUM)
    (record,) = records_with(generator, config_of(write_good(tmp_path, 1)), monkeypatch)
    assert generator.tried == [MemoryTier.MEDIUM, MemoryTier.LOW]
    assert (record["status"], record["memory"]) == ("committed", "low")


@pytest.mark.whole
def test_a_worker_tries_the_tier_that_it_has_left_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.memory, "SAMPLES_BEFORE_RETRY", 1)
    generator = RunsOut(MemoryTier.HIGH)

    def neighbour_ends(*_: object) -> None:
        generator.too_much = ()

    monkeypatch.setattr(torch.cuda, "empty_cache", neighbour_ends)
    records = records_with(generator, config_of(write_good(tmp_path, 3)), monkeypatch)
    assert generator.tried == ["high", "medium", "medium", "high"]
    assert [record["memory"] for record in records] == ["medium", "medium", "high"]


@pytest.mark.slow
def test_the_decoders_chunk_is_chosen_by_the_runs_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has counted the sizes of `--fit bucket`: on a small GPU each of their decodes would run out of memory."""
    asked: list[object] = []

    def choose_one(_model: object, sampler: object, _guidance: object) -> int:
        asked.append(sampler)
        return 1

    monkeypatch.setattr(sgi2v.estimate, "choose_chunk", choose_one)
    config = config_of(write_good(tmp_path, 1))
    (record,) = records_with(RunsOut(), config, monkeypatch)
    assert (record["decode_chunk"], asked) == (1, [config.sampler])


@pytest.mark.slow
def test_a_model_that_does_not_fit_ends_the_run_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> MemoryTier:
        raise ConfigError("4 frames of 64 x 64 px do not fit into the memory of a GPU")

    monkeypatch.setattr(sgi2v.estimate, "choose_tier", refuse)
    config = config_of(write_good(tmp_path, 1))
    (outcome,) = Commit(config, 1)(Generate(config, "cpu")(Load(config)(rows_of(Path(config.manifest))))).to_pylist()
    assert (outcome["record"], outcome["fatal"]) == (None, "ConfigError")
    assert "do not fit into the memory" in outcome["message"]


def with_compile(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, execution=config.execution.replace(compile=True))


@pytest.mark.slow
def test_a_worker_compiles_before_its_first_sample_and_then_knows_its_memory_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_units: list[object] = []
    monkeypatch.setattr(sgi2v.compiled, "compile_blocks", compiled_units.append)
    monkeypatch.setattr(GENERATE_MODULE, "generate", generator := RunsOut(MemoryTier.HIGH))
    config = with_compile(config_of(write_good(tmp_path, 1)))
    worker = Generate(config, "cpu")
    assert not isinstance(worker.model, ConfigError)
    assert compiled_units == [worker.model.unet]
    assert generator.tried == [MemoryTier.HIGH, MemoryTier.MEDIUM]
    (outcome,) = Commit(config, 1)(worker(Load(config)(rows_of(Path(config.manifest))))).to_pylist()
    record = json.loads(outcome["record"])
    assert (record["status"], record["memory"]) == ("committed", "medium")


def test_a_worker_that_cannot_compile_ends_the_run_and_fails_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working\nC++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(sgi2v.compiled.torch, "compile", lambda *_, **__: fails)
    config = with_compile(config_of(write_good(tmp_path, 1)))
    state = state_of(Generate(config, "cpu")(Load(config)(rows_of(Path(config.manifest)))))
    assert (state.fatal, state.error_code) == ("ModelError", None)
    assert "cannot be compiled on" in state.message
    assert state.message.endswith(
        "InvalidCxxCompiler: No working C++ compiler found: install a C++ compiler there, or leave --compile out"
    )


def test_a_trial_sample_that_fails_is_not_the_compilers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.compiled, "compile_blocks", lambda _: None)
    diverged = SampleError(ErrorCode.GUIDANCE_DIVERGED, "the latents became NaN")
    (record,) = records_with(
        RunsOut(*MemoryTier, error=diverged), with_compile(config_of(write_good(tmp_path, 1))), monkeypatch
    )
    assert (record["status"], record["error_code"]) == ("failed", "guidance_diverged")


@pytest.mark.parametrize("stage", [Load, Commit])
def test_a_stage_takes_several_rows_at_once(tmp_path: Path, stage: type[Load | Commit]) -> None:
    manifest = write_rows(tmp_path / "m.parquet", [row(name, image="none.png") for name in ("a", "b", "c")])
    config = config_of(manifest)
    table = Load(config)(rows_of(manifest))
    assert (table if stage is Load else Commit(config, 1)(table)).num_rows == 3


def test_a_record_counts_the_boxes_that_are_told_to_stay_and_scores_the_others(tmp_path: Path) -> None:
    boxes, paths = [[8.0, 8.0, 40.0, 40.0], [40.0, 40.0, 60.0, 60.0]], [[[24.0, 24.0], [27.0, 24.0]], None]
    still = pa.array([[False, True]])
    manifest = write_rows(tmp_path / "m.parquet", [row("a", boxes=boxes, trajectories=paths)], still=still)
    picture(0).save(tmp_path / "a.png")
    config = config_of(manifest)
    (outcome,) = Commit(config, 1)(StandIn(config, "cpu")(Load(config)(rows_of(manifest)))).to_pylist()
    record = SampleRecord.from_json(outcome["record"].encode())
    assert (record.status, record.num_boxes, record.num_still) == ("committed", 2, 1), record.message
    assert record.metrics["null_reason_per_box"][1] == "still"
    assert record.metrics["objmc_px"] == record.metrics["objmc_px_per_box"][0] < 1


def test_masks_reach_the_generator_at_the_size_of_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask_HW = np.zeros((2 * SIDE, 2 * SIDE), bool)
    mask_HW[16:48, 20:60] = True
    box = [[16.0, 16.0, 80.0, 80.0]]
    rows = [row("a", boxes=2 * box, trajectories=2 * [[[0.0, 0.0], [9.0, 0.0]]])] + [row(n, boxes=box) for n in "bc"]
    masks = pa.array([[png_of(mask_HW), None], [png_of(mask_HW[:9])], [None]], pa.list_(pa.binary()))
    manifest = write_rows(tmp_path / "m.parquet", rows, masks=masks)
    for name in "abc":
        picture(side=2 * SIDE).save(tmp_path / f"{name}.png")
    config, seen = config_of(manifest), []
    sample = StandIn._sample

    def look(self: StandIn, model: Any, image: Any, tracks: BoxTracks, *more: Any) -> Any:
        seen.append(tracks)
        return sample(self, model, image, tracks, *more)

    monkeypatch.setattr(StandIn, "_sample", look)
    first, small, none = map(state_of, map_one_by_one(StandIn(config, "cpu"), Load(config)(rows_of(manifest))))
    assert (small.error_code, first.message, none.message) == ("mask_invalid", None, None)
    masks_NHW = seen[0].masks_NHW
    assert masks_NHW is not None
    expected_HW = np.zeros((SIDE, SIDE), np.uint8)
    expected_HW[8:24, 10:30] = 255
    np.testing.assert_array_equal(masks_NHW, [expected_HW, np.full((SIDE, SIDE), 255)])
    assert seen[1].masks_NHW is None


def map_one_by_one(stage: Callable[[pa.Table], pa.Table], rows: pa.Table) -> list[pa.Table]:
    """What a stage makes of each row."""
    return [stage(rows.slice(number, 1)) for number in range(rows.num_rows)]
