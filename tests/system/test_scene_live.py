"""The scene graph as it is run: sensors cut, a real drive, the demo; every message accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, finished

from pipeline.clock import NS
from pipeline.frame import Frame, StreamInfo
from pipeline.recording.writer import Writer
from pipeline.sensors.rendered.drive import AHEAD_NS, Drive

pytest.importorskip("pypatchworkpp", reason="needs the extra 'lidar': scripts/setup lidar")
pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

DEMO = str(ROOT / "configs" / "scene-demo.yaml")
PERIOD_NS, COUNT = NS // 10, 75
FREE_ROAD_NS = 17_000_000_000  # of the drive (pipeline/sensors/rendered/traffic.py)
CUT_NS, CUT_S = 2 * NS, 3


def lines(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *predictions, summary = (json.loads(line) for line in path.read_text().splitlines())
    return predictions, summary


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven and a half seconds of the rendered drive, each frame as its sensor would have sent it."""
    path, rendered = tmp_path_factory.mktemp("drive") / "drive.mcap", Drive(beams=32)
    with Writer(path, about={"run": "rendered", "utc_offset_ns": 0, "made_by": "test"}) as writer:
        for name, encoding in (("lidar", "points_xyzit_f32"), ("depth", "depth_u16_mm"), ("camera", "bgr8")):
            writer.stream(StreamInfo(name, encoding, 10.0, 1, name, "rendered, not real"))
        for i in range(COUNT):
            at_ns, drive_ns = i * PERIOD_NS, FREE_ROAD_NS + i * PERIOD_NS
            looked_ns = at_ns + AHEAD_NS
            depth, camera = rendered.depth(drive_ns + AHEAD_NS), rendered.camera(drive_ns + AHEAD_NS)
            writer.write("depth", Frame("depth", i, looked_ns, "depth_u16_mm", depth, publish_ns=looked_ns))
            writer.write("camera", Frame("camera", i, looked_ns, "bgr8", camera, publish_ns=looked_ns))
            sweep = rendered.sweep(drive_ns)
            writer.write(
                "lidar", Frame("lidar", i, at_ns, "points_xyzit_f32", sweep, PERIOD_NS, publish_ns=at_ns + PERIOD_NS)
            )
    return path


@pytest.mark.parametrize("cut", ["lidar", "depth", "camera"])
def test_a_sensor_is_cut_for_three_seconds_and_the_scene_goes_on(cut: str, drive: Path, folder: Path) -> None:
    options = ("--set", "nodes.scene.options.detector=none")
    ran = finished(
        folder,
        "replay",
        DEMO,
        str(drive),
        "--speed",
        "0",
        "--fault",
        f"{cut}: cut={CUT_S}s@{CUT_NS / NS:g}s",
        "--out",
        "p.jsonl",
        "--no-dashboard",
        *options,
        timeout_s=300,
    )
    assert ran.returncode == 0, ran.stderr
    predictions, summary = lines(folder / "p.jsonl")
    assert summary["unaccounted"] == {} and summary["predictions"] == len(predictions) >= COUNT - 10

    def within(begin_ns: int, end_ns: int) -> list[dict[str, Any]]:
        return [p for p in predictions if begin_ns <= p["capture_ns"] < end_ns]

    settled_ns = NS // 2 + PERIOD_NS  # a lidar that anchors the sets is taken for silent after half a second
    during = within(CUT_NS + settled_ns, CUT_NS + CUT_S * NS - PERIOD_NS)
    assert len(during) >= 20
    assert all(cut in p["missing"] and cut not in p["used"] for p in during)
    others = {"lidar", "depth", "camera"} - {cut}
    assert all(others <= set(p["used"]) for p in during)
    before, after = within(NS, CUT_NS - PERIOD_NS), within(CUT_NS + CUT_S * NS + PERIOD_NS, COUNT * PERIOD_NS)
    for p in (*before, *after):
        assert cut in p["used"] and cut not in p["missing"]  # back within one sweep
    if cut == "lidar":
        assert all(p["surroundings"]["ahead"]["state"] != "clear" for p in during)
        assert all(
            any("lidar" in why for why in p["surroundings"]["ahead"]["because"])
            for p in during
            if p["surroundings"]["ahead"]["state"] == "unknown"
        )
    else:
        assert [p["surroundings"]["ahead"] for p in during if p["surroundings"]["ahead"]["state"] == "unknown"] == []
    if cut == "camera":
        assert all(p["label"] is None for p in during)


def test_the_demo_says_what_it_is_and_loses_nothing(folder: Path) -> None:
    ran = finished(folder, "demo", "--scene", "--for", "4s", "--no-dashboard", "--out", "p.jsonl", timeout_s=120)
    assert ran.returncode == 0, ran.stderr
    assert "not a safety function" in ran.stdout and "rendered" not in ran.stderr
    predictions, summary = lines(folder / "p.jsonl")
    assert predictions and summary["unaccounted"] == {}
    assert any(p["surroundings"]["obstacles"] for p in predictions)
    assert len(predictions[0]["probs"]) == 15


def test_a_real_drive_is_imported_with_its_rig_and_looked_at(data_dir: Path, folder: Path) -> None:
    source = data_dir / "driving" / "kitti_sequence"
    if not source.is_dir():
        pytest.skip(f"no driving/ in {data_dir}")
    names = ("--map", "image_02=camera", "--map", "velodyne=lidar")
    assert finished(folder, "import", str(source), "drive.mcap", *names, timeout_s=120).returncode == 0
    ran = finished(
        folder,
        "replay",
        "drive.yaml",
        "drive.mcap",
        "--speed",
        "0",
        "--no-dashboard",
        "--out",
        "p.jsonl",
        timeout_s=240,
    )
    assert ran.returncode == 0, ran.stderr
    predictions, summary = lines(folder / "p.jsonl")
    assert summary["predictions"] == 10 and summary["unaccounted"] == {}
    assert all({"camera", "lidar"} <= set(p["used"]) for p in predictions)
    assert min(len(p["surroundings"]["obstacles"]) for p in predictions) > 5


def test_a_recorded_scene_gives_the_same_predictions_when_it_is_replayed(folder: Path) -> None:
    export = finished(
        folder, "record", DEMO, "drive.mcap", "--for", "4s", "--no-dashboard", "--consent", "rendered", timeout_s=120
    )
    assert export.returncode == 0, export.stderr
    again = finished(
        folder, "replay", DEMO, "drive.mcap", "--speed", "0", "--out", "p.jsonl", "--no-dashboard", timeout_s=240
    )
    assert again.returncode == 0, again.stderr
    assert "identical to the recorded run: every prediction" in again.stdout
