"""`evaluate`: sources, the mapping of boxes to frames, resuming, bad input, two trackers."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline.evaluate.run
from pipeline.evaluate.config import EvaluationConfig
from pipeline.output.labels import LABEL_SCHEMA
from sgi2v.tracking import TRACKERS, LucasKanade
from sgi2v.tracking.tracker import PointTracks
from sgi2v.video import encode_mp4
from tests.pipeline.evaluate.videos import BOX, STEP, H, T, W, folder_of, frames_of, row, write_rows, write_video
from tests.pipeline.in_process import here

pytestmark = pytest.mark.usefixtures("without_ray")
STATIC = STEP * np.arange(1, T).mean()
"""What a frozen video scores, pixels."""


def metadata(folder):
    return pq.read_table(folder / "metadata.parquet").to_pylist()


def test_a_folder_of_mp4s_with_a_table(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP, 0], scale=2)
    done = here("evaluate", folder, "-o", tmp_path / "out", "--protocol", "objmc/v2", "--protocol", "track-box-iou")
    assert done.returncode == 0, done.stderr
    assert "objmc_px" in done.stdout
    assert "tracker lucas-kanade: Apache-2.0" in done.stderr
    follows, frozen = metadata(tmp_path / "out")
    # boxes are in pixels of the picture, which is twice as large as the video
    assert follows["objmc_px"] == pytest.approx(0, abs=0.1)
    assert follows["grid_box_iou"] == pytest.approx(1, abs=0.03)
    assert frozen["objmc_px"] == pytest.approx(STATIC, abs=0.1)
    assert (follows["sample_id"], follows["file_name"]) == ("s0", "videos/s0.mp4")
    assert follows["video_uri"] == str(folder / "s0.mp4")
    assert (tmp_path / "out" / "videos" / "s0.mp4").read_bytes() == (folder / "s0.mp4").read_bytes()
    assert follows["source_box"] == [0, 0, 2 * W, 2 * H]
    assert follows["fps"] == 7
    assert follows["asked_displacement"] == pytest.approx(STEP * (T - 1) / np.hypot(H, W))
    assert (follows["num_moving"], follows["asks_camera"]) == (1, False)
    assert follows["boxes"] == [[2 * side for side in BOX]]
    labels = pq.read_table(tmp_path / "out" / "labels.parquet")
    assert labels.schema.equals(LABEL_SCHEMA)
    label = labels.to_pylist()[0]
    assert label["asked_centres"][-1] == [22 + STEP * (T - 1), 32]
    np.testing.assert_allclose(label["measured_centres"][-1], label["asked_centres"][-1], atol=0.2)
    assert label["source_to_video"] == [0.5, 0, 0.5, 0]


@pytest.mark.slow
def test_the_same_command_goes_on_and_takes_in_what_is_new(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "videos", [STEP, 0, 1])
    calls = []
    flow = pipeline.evaluate.run.measuring_flow

    def killed_after_one(rows, *rest):
        for number, result in enumerate(flow(rows, *rest)):
            calls.append(json.loads(result["result"])["sample_id"])
            if number == 1 and len(calls) == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(pipeline.evaluate.run, "measuring_flow", killed_after_one)
    interrupted = here("evaluate", folder, "-o", tmp_path / "out")
    assert interrupted.returncode == 130, interrupted.stderr
    assert "Interrupted with 2 videos left" in interrupted.stdout
    assert here("evaluate", folder, "-o", tmp_path / "out").returncode == 0
    assert calls == ["s0", "s1", "s1", "s2"]
    undisturbed = here("evaluate", folder, "-o", tmp_path / "other")
    assert undisturbed.returncode == 0
    seconds = {"seconds_measure": 0}
    assert [each | seconds for each in metadata(tmp_path / "out")] == [
        each | seconds for each in metadata(tmp_path / "other")
    ]
    del calls[:]
    assert here("evaluate", folder, "-o", tmp_path / "out").returncode == 0
    write_video(folder, "s3", frames_of(2, 9))
    write_rows(folder / "boxes.jsonl", [row(f"s{n}", video=f"s{n}.mp4", seed=5 if n == 1 else None) for n in range(4)])
    calls += ["kept"]
    assert here("evaluate", folder, "-o", tmp_path / "out").returncode == 0
    assert calls == ["kept", "s1", "s3"]  # the new one, and the one whose row has changed


def test_other_settings_and_other_folders_are_refused(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP])
    assert here("evaluate", folder, "-o", tmp_path / "out").returncode == 0
    other = here("evaluate", folder, "-o", tmp_path / "out", "--fit", "crop")
    assert other.returncode == 2
    assert "fit: stretch before, crop now" in other.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    refused = here("evaluate", folder, "-o", tmp_path / "run")
    assert refused.returncode == 2
    assert "is the output of a run" in refused.stderr
    table = (folder / "boxes.jsonl").rename(folder / "metadata.jsonl")
    into_itself = here("evaluate", folder, "-o", folder)
    assert into_itself.returncode == 2
    assert "holds metadata.jsonl and is no evaluation" in into_itself.stderr
    assert table.exists()


def test_an_evaluation_can_be_measured_again(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP], scale=2)
    assert here("evaluate", folder, "-o", tmp_path / "first").returncode == 0
    again = here("evaluate", tmp_path / "first", "-o", tmp_path / "second")
    assert again.returncode == 0, again.stderr
    first, second = metadata(tmp_path / "first")[0], metadata(tmp_path / "second")[0]
    assert {name: first[name] for name in ("objmc_px", "source_box", "video_uri")} == {
        name: second[name] for name in ("objmc_px", "source_box", "video_uri")
    }


@pytest.mark.parametrize("with_paths", ["traj", "manifest"])
def test_the_layouts_that_authors_publish(tmp_path, with_paths):
    """SG-I2V: `img.png`, `traj.npy` and an mp4. MotionPro: `first_frame.png`, and five pictures side by side."""
    frames = frames_of()
    x0, y0, x1, y1 = BOX
    for name in ("7", "12"):
        sample = tmp_path / "results" / name
        sample.mkdir(parents=True)
        centres = np.array([[22 + STEP * t, 32] for t in range(T)])
        if with_paths == "traj":
            Image.fromarray(frames[0]).save(sample / "img.png")
            np.save(sample / "traj.npy", np.concatenate([[[x0, y0], [x1, y1]], centres])[None].astype(float))
            (sample / "result.mp4").write_bytes(encode_mp4(frames, 7))
        else:
            Image.fromarray(frames[0]).save(sample / "first_frame.png")
            others = np.full((T, H, 4 * W, 3), 128, np.uint8)
            (sample / "all.mp4").write_bytes(encode_mp4(np.concatenate([others, frames], axis=2), 8))
    words = []
    if with_paths == "manifest":
        rows = [row(name) | {"image": f"results/{name}/first_frame.png"} for name in ("7", "12")]
        words = ["--manifest", write_rows(tmp_path / "paths.jsonl", rows)]
    protocols = ("--protocol", "objmc/v2", "--protocol", "mc-bench/md-vid")
    done = here("evaluate", tmp_path / "results", "-o", tmp_path / "out", *words, *protocols)
    assert done.returncode == 0, done.stderr
    for each in metadata(tmp_path / "out"):
        assert each["objmc_px"] == pytest.approx(0, abs=0.1)
        assert each["md_vid_px"] == pytest.approx(0, abs=0.2)
        assert each["first_frame_psnr_db"] > 25
        assert each["num_frames"] == T
        left = 0 if with_paths == "traj" else 4 * W  # labels are in pixels of the whole video
        assert (each["width"], each["picture_box"]) == (left + W, [left, 0, left + W, H])


def test_pictures_of_another_shape_are_fitted_as_said(tmp_path):
    """The video shows the middle of a picture that is twice as wide."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(encode_mp4(frames_of(), 7))
    wide = np.zeros((H, 2 * W, 3), np.uint8)
    wide[:, W // 2 : W // 2 + W] = frames_of()[0]
    Image.fromarray(wide).save(folder / "a.png")
    x0, y0, x1, y1 = BOX
    centres = [[22 + W // 2 + STEP * t, 32] for t in range(T)]
    cropped = row("a") | {"boxes": [[x0 + W // 2, y0, x1 + W // 2, y1]], "trajectories": [centres]}
    write_rows(folder / "boxes.jsonl", [cropped])
    assert here("evaluate", folder, "-o", tmp_path / "crop", "--fit", "crop").returncode == 0
    assert here("evaluate", folder, "-o", tmp_path / "stretch").returncode == 0
    (crop,), (stretch,) = metadata(tmp_path / "crop"), metadata(tmp_path / "stretch")
    assert crop["source_box"] == [W // 2, 0, W // 2 + W, H]
    assert crop["objmc_px"] == pytest.approx(0, abs=0.1)
    assert stretch["objmc_px"] is None or stretch["objmc_px"] > 1


def test_videos_that_cannot_be_measured_fail_and_the_others_go_on(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP, STEP, STEP, STEP, STEP])
    (folder / "s1.mp4").unlink()
    (folder / "s2.mp4").write_bytes((folder / "s2.mp4").read_bytes()[:-200])
    (folder / "s3.png").unlink()
    (folder / "s4.mp4").write_bytes(encode_mp4(frames_of(num_frames=1), 7))
    write_video(folder, "left-over", frames_of())
    done = here("evaluate", folder, "-o", tmp_path / "out", "--protocol", "objmc/v2", "--protocol", "mc-bench/md-vid")
    assert done.returncode == 1
    assert "1 mp4 without a row: not measured" in done.stderr
    assert "1 video of 1, 1 video of 8: paths are resampled" in done.stdout
    assert "published with CoTracker3 offline on videos of 16 frames; here with lucas-kanade" in done.stdout
    failures = {each["sample_id"]: each for each in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()}
    assert {name: each["error_code"] for name, each in failures.items()} == {
        "s1": "video_invalid",
        "s2": "video_invalid",
        "s3": "image_missing",
    }
    assert "no such file" in failures["s1"]["message"]
    assert "truncated" in failures["s2"]["message"]
    by_id = {each["sample_id"]: each for each in metadata(tmp_path / "out")}
    assert set(by_id) == {"s0", "s4"}
    assert (by_id["s4"]["md_vid_px"], by_id["s4"]["md_vid_null_reason"]) == (None, "one_frame")
    shutil.copy(folder / "s0.mp4", folder / "s1.mp4")
    again = here("evaluate", folder, "-o", tmp_path / "out", "--protocol", "objmc/v2", "--protocol", "mc-bench/md-vid")
    assert "1 measured, 2 before, 2 failed" in again.stdout


def test_ray_data_can_hash_the_settings():
    config = EvaluationConfig("videos", "out", weights={"tapir": "tapir.pt"})
    assert hash(config) == hash(EvaluationConfig("videos", "out", weights={"tapir": "tapir.pt"}))


def test_bad_input_is_refused_before_any_work(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP])
    table = tmp_path / "videos" / "boxes.jsonl"
    write_rows(tmp_path / "without.jsonl", [row("s0")])
    write_rows(tmp_path / "others.jsonl", [row("x1"), row("x2")])
    (tmp_path / "empty").mkdir()
    words = {
        ("missing",): "missing is not there",
        (tmp_path / "empty",): "has no mp4",
        (tmp_path / "without.jsonl",): "has no column `video`",
        (folder, "--manifest", tmp_path / "others.jsonl"): "the rows want x1.mp4, x2.mp4, and the folder has s0.mp4",
        (table, "--manifest", table): "is a table already",
        (folder, "--protocol", "objmc/v9"): "did you mean objmc/v2?",
        (folder, "--tracker", "tapirr"): "did you mean tapir?",
        (folder, "--fit", "corp"): "did you mean crop?",
        (folder, "--weights", "tapir=x"): "neither a --tracker nor a --protocol",
        (folder, "--protocol", "objmc/v2", "--protocol", "fvd"): "fvd compares with real videos, and none are given",
        (folder, "--protocol", "motion-fidelity/ditflow"): "compares with real videos",
        (folder, "--tracker", "tapir", "--weights", "tapir=none.pt"): "no such file",
        (folder, "--tracker", "tapir", "--weights", f"tapir={table}"): "the tracker tapir needs code",
        (folder, folder): "one source is measured at a time",
        (folder, "--published"): "no effect without --compare",
    }
    for given, message in words.items():
        done = here("evaluate", *given, "-o", tmp_path / "out")
        assert done.returncode == 2, (given, done.stdout)
        assert message in done.stderr, given
    assert not (tmp_path / "out" / "metadata.parquet").exists()


def test_motion_fidelity_against_real_videos(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP, STEP])
    write_video(tmp_path / "real", "s0", frames_of())
    words = ("--protocol", "motion-fidelity/ditflow", "--real", tmp_path / "real")
    done = here("evaluate", folder, "-o", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    first, without = metadata(tmp_path / "out")
    assert first["motion_fidelity"] == pytest.approx(1.0, abs=0.01)
    assert (without["motion_fidelity"], without["motion_fidelity_null_reason"]) == (None, "no_reference")


def test_two_trackers_state_how_alike_they_rank(tmp_path, monkeypatch):
    class Reversed(LucasKanade):
        """Sees the opposite motion, so that what follows well by the one follows badly by the other."""

        name = "reversed"

        def track(self, frames_THWC, queries_Q2):
            found = super().track(frames_THWC, queries_Q2)
            moved = queries_Q2 - (found.points_TQ2 - queries_Q2)
            return PointTracks(moved, found.visible_TQ & ((moved >= 0) & (moved < [W, H])).all(axis=-1))

    monkeypatch.setitem(TRACKERS, "reversed", Reversed)
    folder = folder_of(tmp_path / "videos", [0, 1, 2])
    words = ("--protocol", "mc-bench/md-vid", "--tracker", "lucas-kanade", "--tracker", "reversed")
    done = here("evaluate", folder, "-o", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())["summary"]
    (agreement,) = summary["rank_agreement"]
    assert (agreement["metric"], agreement["videos"]) == ("md_vid_px", 3)
    assert agreement["spearman"] == pytest.approx(-1)
    assert agreement["kendall"] == pytest.approx(-1)
    assert "Spearman -1.00, Kendall -1.00, over 3 videos" in done.stdout
    first = metadata(tmp_path / "out")[1]
    assert first["md_vid_px"] < first["md_vid_px__reversed"]


def test_distributions_are_told_with_n_and_halves(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "videos", [STEP, 1, 2, 0])
    for number in range(4):
        write_video(tmp_path / "real", f"r{number}", frames_of(STEP, number))

    def features(frames_THWC):
        return frames_THWC.reshape(len(frames_THWC), -1)[:, :3].astype(float)

    monkeypatch.setattr("pipeline.evaluate.distributions.load_features", lambda *_: (features, "a library"))
    monkeypatch.setattr("sgi2v.metrics.distribution.frechet", lambda a, b: float(np.abs(a.mean() - b.mean())))
    words = ("--protocol", "objmc/v2", "--protocol", "fid", "--real", tmp_path / "real")
    done = here("evaluate", folder, "-o", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert "low_n, n 4 and 4 real; random halves" in done.stdout
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["summary"]["distributions"]["fid"]
    assert (found["videos"], found["real"], found["low_n"], len(found["halves"])) == (4, 4, True, 5)
    assert found["frames"] == {str(T): 8}


def test_own_columns_ride_along_and_clash_with_none(tmp_path):
    folder = folder_of(tmp_path / "videos", [STEP])
    write_rows(folder / "boxes.jsonl", [row("s0", method="ours", objmc_px="mine")])
    assert here("evaluate", folder, "-o", tmp_path / "out").returncode == 0
    table = pq.read_table(tmp_path / "out" / "metadata.parquet")
    assert table["method"].to_pylist() == ["ours"]
    assert table["manifest_objmc_px"].to_pylist() == ["mine"]
    assert table.schema.field("objmc_px").type == pa.float64()
