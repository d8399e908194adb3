"""Record and replay by the command line: a replay gives the recorded predictions, and every gap is explained."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from idle_control import figure_of_time
from running import ROOT, a_file, finished, running, wait_for

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.frame import Prediction
from pipeline.recording.part import part_path
from pipeline.recording.reader import Reader

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]  # on a busy machine a run takes half a minute to start

# Sound arrives up to 40 ms late, so some of it after the deadline of its set. Every tenth set takes so long that more
# than two others wait, and some are shed.
LATE = """
camera: {use: synthetic, encoding: depth_u16_mm, width_px: 64, height_px: 48, count: 75, jitter_ms: 3,
         drop_percent: 2, process: sensors}
microphone: {use: synthetic, encoding: pcm_f32, rate_hz: 50, count: 125, delay_jitter_ms: 40, seed: 3,
             process: sensors}
imu: {use: synthetic, encoding: imu_f64, rate_hz: 100, count: 250, delay_ms: 5, delay_jitter_ms: 20, seed: 4,
      process: sensors}
align: {use: align, inputs: [camera, microphone, imu], anchor: camera, max_wait_ms: 20,
        sync: {microphone: {policy: window, before_ms: 99}}}
memory: {use: infer, task: "laboratory:Memory", inputs: [{from: align, queue: 2}], process: align,
         options: {takes_ms: 130}}
"""
# The same without a reason to shed anything.
UNHURRIED = LATE.replace("takes_ms: 130", "takes_ms: 0").replace("queue: 2", "queue: 500")


def run(folder: Path, *arguments: str | Path, code: int = 0, timeout_s: float = 120) -> str:
    done = finished(folder, *map(str, arguments), timeout_s=timeout_s)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout + done.stderr


def lines(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *predictions, summary = map(json.loads, path.read_text().splitlines())
    return predictions, summary


def record_completely(folder: Path, config: str, recording: str, *more: str) -> None:
    """`record`, repeated if the recorder dropped messages, as it may on a busy machine: then nothing is promised."""
    with figure_of_time():
        for _ in range(3):
            for part in folder.glob("*.mcap"):
                part.unlink()
            if "dropped by the recorder: none" in run(folder, "record", config, recording, *more):
                return
        pytest.fail("the recorder dropped messages three times")


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with graph.yaml, its recording rec.mcap and what the recorded run itself predicted, live.jsonl."""
    folder = tmp_path_factory.mktemp("late")
    a_file(folder, LATE)
    record_completely(folder, "graph.yaml", "rec.mcap", "--out", "live.jsonl")
    return folder


def test_a_run_with_late_frames_and_shed_sets_is_the_same_when_replayed_at_any_speed(late: Path) -> None:
    predictions, summary = lines(late / "live.jsonl")
    states = {r["state"] for p in predictions for r in p["receipts"]}
    shed = sum(summary["dropped"].get("memory", {}).get("align", {}).values())
    assert states & {"late", "partial"} and shed > 0, "else this test shows nothing"
    assert summary["unaccounted"] == {}
    for speed in ("0", "4"):
        output = run(late, "replay", "graph.yaml", "rec.mcap", "--speed", speed, "--out", f"replay{speed}.jsonl")
        assert "identical to the recorded run: every prediction" in output
        assert "all alike" in run(late, "diff", "live.jsonl", f"replay{speed}.jsonl")
        again = lines(late / f"replay{speed}.jsonl")[1]
        assert again["unaccounted"] == {}
        assert again["dropped"]["memory"]["align"] == {"shed in the recorded run too": shed}


def test_a_run_whose_task_takes_the_newest_set_only_is_the_same_when_replayed(folder: Path) -> None:
    a_file(folder, LATE.replace("queue: 2", "queue: latest"))
    record_completely(folder, "graph.yaml", "rec.mcap", "--out", "live.jsonl")
    assert lines(folder / "live.jsonl")[1]["dropped"]["memory"], "else this test shows nothing"
    output = run(folder, "replay", "graph.yaml", "rec.mcap", "--speed", "0", "--out", "again.jsonl")
    assert "identical to the recorded run: every prediction" in output


def test_verify_derives_every_set_again_and_draws_the_timeline(late: Path) -> None:
    output = run(late, "verify", "rec.mcap", "--plot", "timeline.svg")
    assert "aligned sets, each derived again" in output and "every message is accounted for" in output
    assert "camera" in output and "Hz" in output
    picture = ET.fromstring((late / "timeline.svg").read_text())
    titles = [title.text or "" for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any("missing from #" in title for title in titles), "the drops of the camera"


def test_realigned_frames_give_the_same_sets_every_time_and_the_report_says_so(late: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        output = run(late, "replay", "graph.yaml", "rec.mcap", "--speed", "0", "--realign", "--out", name)
        assert "not identical to the recorded run because frames were aligned again" in output
    assert "all alike" in run(late, "diff", "one.jsonl", "two.jsonl")


def test_a_changed_node_is_the_reason_for_other_predictions_and_diff_ends_with_4(late: Path) -> None:
    output = run(
        late,
        "replay",
        "graph.yaml",
        "rec.mcap",
        "--speed",
        "0",
        "--out",
        "changed.jsonl",
        "--set",
        "nodes.align.max_wait_ms=200",
    )
    assert "not identical to the recorded run because node 'align' is not as it was" in output
    output = run(late, "diff", "live.jsonl", "changed.jsonl", code=4)
    assert "memory at " in output and "microphone" in output


def test_a_part_of_a_recording_is_replayed(late: Path) -> None:
    run(late, "replay", "graph.yaml", "rec.mcap", "--speed", "0", "--from", "1s", "--to", "2s", "--out", "part.jsonl")
    predictions, _ = lines(late / "part.jsonl")
    spans_s = (predictions[-1]["capture_ns"] - predictions[0]["capture_ns"]) / 1e9
    assert 0.6 < spans_s < 1.1


def test_a_recording_without_predictions_is_not_called_different(folder: Path) -> None:
    a_file(folder, LATE)
    streams = "camera,microphone,imu"
    run(folder, "record", "graph.yaml", "sensors.mcap", "--streams", streams)
    output = run(folder, "replay", "graph.yaml", "sensors.mcap", "--speed", "0", "--out", "first.jsonl")
    assert "holds no predictions to compare these with" in output and "identical" not in output


def test_a_stream_that_the_recording_lacks_is_named(late: Path, folder: Path) -> None:
    a_file(folder, LATE.replace("camera", "kamera"))
    assert "has no stream 'kamera'" in run(folder, "replay", "graph.yaml", late / "rec.mcap", code=2)


@pytest.mark.paced  # beside other programs the recorder may be behind the aligner
def test_a_killed_recording_says_what_is_missing_is_closed_and_replays_as_far_as_it_goes(folder: Path) -> None:
    a_file(folder, LATE.replace("75", "7500").replace("125", "12500").replace("250", "25000"))
    recording = folder / "rec.mcap"
    with running(folder, "record", "graph.yaml", "rec.mcap", "--compression", "none") as live:

        def lasted() -> bool:
            return live.process.poll() is not None or (recording.exists() and recording.stat().st_size > 500_000)

        wait_for(lasted, "a second and a half", give_up_s=120)
        for process in live.children():
            process.kill()
        live.process.kill()
    output = run(folder, "verify", "rec.mcap", code=2)
    assert "the writer was killed" in output and "missing: everything after" in output and "record --repair" in output
    assert "closed" in run(folder, "record", "--repair", "rec.mcap")
    assert "accounted for, up to where it was cut off" in run(folder, "verify", "rec.repaired.mcap")
    output = run(folder, "replay", "graph.yaml", "rec.repaired.mcap", "--speed", "0", "--out", "again.jsonl")
    assert "identical to the recorded run: every prediction" in output


def test_a_slow_disk_affects_only_the_recorder_and_every_gap_is_accounted_for(folder: Path) -> None:
    a_file(folder, UNHURRIED + 'slow: {use: "laboratory:SlowDisk", path: rec.mcap, inputs: [camera, memory, health]}\n')
    run(folder, "run", "graph.yaml", "--out", "live.jsonl")
    predictions, summary = lines(folder / "live.jsonl")
    assert summary["dropped"]["slow"]["camera"], "it was too slow"
    assert "memory" not in summary["dropped"] and len(predictions) == summary["sets"]
    assert summary["unaccounted"] == {}
    with Reader(folder / "rec.mcap") as reader:
        note = reader.notes["finished"][-1]
        assert reader.counts["camera"] + sum(note["dropped"]["camera"].values()) == summary["frames_in"]["camera"]


def test_a_full_disk_is_reported_and_the_pipeline_goes_on(folder: Path) -> None:
    full = 'full: {use: "laboratory:FullDisk", path: rec.mcap, compression: none, inputs: [camera, memory]}'
    a_file(folder, UNHURRIED + full)
    output = run(folder, "run", "graph.yaml", "--out", "live.jsonl")
    assert "Messages are dropped and counted until there is room; the pipeline goes on" in output
    predictions, summary = lines(folder / "live.jsonl")
    assert summary["dropped"]["full"]["camera"]["disk full"] > 10
    assert len(predictions) == summary["sets"] and summary["unaccounted"] == {}
    with Reader(folder / "rec.mcap", unclosed=True) as reader:
        assert reader.counts["camera"] > 10


def test_record_splits_and_the_parts_are_replayed_as_one(folder: Path) -> None:
    a_file(folder, UNHURRIED)
    record_completely(
        folder, "graph.yaml", "rec.mcap", "--split", "0.2MB", "--out", "live.jsonl", "--compression", "none"
    )
    assert part_path(folder / "rec.mcap", 1).exists()
    output = run(folder, "replay", "graph.yaml", "rec.mcap", "--speed", "0", "--out", "again.jsonl")
    assert "identical to the recorded run: every prediction" in output


# --- the main job, on real data ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first seconds of the demo, recorded while they were predicted live."""
    try:
        assets.pull(["demo-clip", "centerface", "silero-vad"])
    except AssetError as error:
        pytest.skip(f"the clip and the models cannot be fetched: {error}")
    folder = tmp_path_factory.mktemp("demo")
    record_completely(
        folder, "configs/emotion-demo.yaml", "demo.mcap", "--for", "4s", "--no-dashboard", "--out", "live.jsonl"
    )
    return folder


def test_predictions_of_the_demo_are_identical_live_and_at_every_speed(demo: Path) -> None:
    assert len(lines(demo / "live.jsonl")[0]) > 20
    for speed in ("0", "4"):
        output = run(
            demo,
            "replay",
            "configs/emotion-demo.yaml",
            "demo.mcap",
            "--speed",
            speed,
            "--no-dashboard",
            "--out",
            "again.jsonl",
        )
        assert "identical to the recorded run: every prediction" in output
        assert "all alike" in run(demo, "diff", "live.jsonl", "again.jsonl")
    with Reader(demo / "demo.mcap") as reader:
        assert reader.kinds("camera") == {"foxglove.RawImage", "sensorium.Frame"} or reader.kinds("camera") == {
            "foxglove.RawImage"
        }
        assert any(isinstance(m.message, Prediction) for m in reader.messages(["emotion"]))


def test_features_only_keeps_predictions_and_neither_picture_nor_sound(demo: Path, folder: Path) -> None:
    run(
        folder,
        "record",
        ROOT / "configs/emotion-demo.yaml",
        "rec.mcap",
        "--features-only",
        "--for",
        "2s",
        "--no-dashboard",
    )
    with Reader(folder / "rec.mcap") as reader:
        assert set(reader.streams) == {"emotion", "align.events", "health"}
        kinds = set().union(*(reader.kinds(stream) for stream in reader.streams))
        assert not any(kind.startswith("foxglove.") for kind in kinds)
        predictions = [m.message for m in reader.messages(["emotion"]) if isinstance(m.message, Prediction)]
    assert any(len(opinion.embedding) for p in predictions for opinion in p.opinions)
