"""Packets in a recording become clouds in a graph: imported, replayed, aligned, by its commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lidars import ouster, sent, vlp16, write_pcap
from running import finished

from pipeline.cli.import_config import config_text
from pipeline.clock import NS
from pipeline.frame import AlignedSet, Frame
from pipeline.node import Sink
from pipeline.recording.importers.lidar_streams import LidarPackets

pytest.importorskip("velodyne_decoder", reason="needs the extra lidar: scripts/setup lidar")


class CloudLog(Sink):
    """Writes a line for every cloud."""

    consumes = (Frame, AlignedSet)

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)

    def open(self):
        self._file = self._path.open("a")

    def consume(self, arrival):
        message = arrival.message
        frames = [message] if isinstance(message, Frame) else [f for fs in message.frames.values() for f in fs]
        for f in frames:
            if f.encoding.startswith("points"):
                total = f.data.astype(np.float64).sum(axis=0).tolist()
                line = {
                    "seq": f.seq,
                    "capture_ns": f.capture_ns,
                    "points": len(f.data),
                    "sum": total,
                    "reason": f.reason,
                }
                self._file.write(json.dumps(line) + "\n")

    def close(self):
        self._file.close()


def clouds(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def replayed(folder: Path, name: str, speed: str) -> tuple[list[dict[str, object]], str]:
    """The clouds of an imported recording, replayed with the config that the import wrote, and the replay's output."""
    config = folder / f"{name}.yaml"
    out = folder / f"{name}-{speed}.jsonl"
    text = config.read_text() + f'  keep: {{use: "test_lidar_replay:CloudLog", inputs: [align], path: "{out}"}}\n'
    (folder / "clouds.yaml").write_text(text)
    done = finished(folder, "replay", "clouds.yaml", f"{name}.mcap", "--speed", speed, "--no-dashboard", timeout_s=200)
    assert done.returncode == 0, done.stderr
    return clouds(out), done.stdout


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sensor", ["velodyne", "ouster"])
def test_an_imported_capture_replays_as_clouds_at_every_speed(folder, sensor):
    if sensor == "ouster":
        pytest.importorskip("ouster.sdk", reason="needs the extra ouster: scripts/setup ouster")
        metadata, raw, _ = ouster(5)
        (folder / "drive.json").write_text(metadata)
        write_pcap(folder / "drive.pcap", sent(raw, every_ns=NS // 640, start_ns=1_700_000_000 * NS), 7502)
        expected = [64 * 1024] * 5
    else:
        write_pcap(folder / "drive.pcap", sent(vlp16(310)[0], start_ns=1_700_000_000 * NS), 2368)
        expected = [14400, 28800, 28800, 28800, 18240]
    done = finished(folder, "import", "drive.pcap", "drive.mcap")
    assert done.returncode == 0, done.stderr
    assert f"sensor: {sensor}, inputs: [lidar" in (folder / "drive.yaml").read_text()
    fast, output = replayed(folder, "drive", "0")
    assert [cloud["points"] for cloud in fast] == expected and "unaccounted: none" in output
    assert [cloud["seq"] for cloud in fast] == list(range(5))
    if sensor == "velodyne":
        again, _ = replayed(folder, "drive", "4")
        assert again == fast


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_bag_and_captures_of_the_data_set_replay_as_clouds(data_dir, folder):
    lidars = data_dir / "lidar"
    if not lidars.is_dir():
        pytest.skip(f"no lidar data at {lidars}")
    pytest.importorskip("ouster.sdk", reason="needs the extra ouster: scripts/setup ouster")
    bag = next(lidars.glob("velodyne_bag/*/*/metadata.yaml")).parent
    sources = {"vlp16": bag, "os1": lidars / "ouster/OS-1-128_v2.3.0_1024x10_lb_n3.pcap"}
    for name, source in sources.items():
        assert finished(folder, "import", str(source), f"{name}.mcap").returncode == 0
        points, _ = replayed(folder, name, "0")
        assert len(points) == {"vlp16": 5, "os1": 3}[name] and all(int(str(c["points"])) > 7000 for c in points)


def test_two_lidars_of_a_recording_get_a_node_each():
    encodings = {
        "camera": "jpeg",
        "front/lidar": "packet",
        "rear/lidar": "packet",
        "rear/metadata": "calibration",
        "gps": "packet",
    }
    lidars = {"front/lidar": LidarPackets("velodyne"), "rear/lidar": LidarPackets("ouster", "rear/metadata")}
    text = config_text(Path("drive.mcap"), encodings, lidars)
    assert "front/lidar-points: {use: sweeps, sensor: velodyne, inputs: [front/lidar]}" in text
    assert "rear/lidar-points:  {use: sweeps, sensor: ouster, inputs: [rear/lidar, rear/metadata]}" in text
    assert (
        "inputs: [camera, front/lidar-points, rear/lidar-points]" in text and "# gps:" in text and "# front" not in text
    )
