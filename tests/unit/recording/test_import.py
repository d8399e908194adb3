"""Import of real recordings: every message is imported, compared with another reader of the same files."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from importing import imported

from pipeline.cli.import_source import import_source
from pipeline.errors import ConfigError
from pipeline.recording.reader import Reader

ROOT = Path(__file__).resolve().parents[3]


def run_import(source: Path, out: Path, *mapping: str) -> list[str]:
    lines: list[str] = []
    import_source(source, out, mapping=mapping, say=lines.append)
    return lines


def bag_packets(folder: Path) -> list[tuple[int, bytes]]:
    """(stamp, data) of every packet, by rosbags and the driver's own definition."""
    from rosbags.rosbag2 import Reader as Bag
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    size = {"velodyne_msgs": 1206, "pandar_msgs": 1500}
    store, packets = get_typestore(Stores.ROS2_HUMBLE), []
    registered: set[str] = set()
    with Bag(folder) as bag:
        for connection, _, raw in bag.messages():
            package, _, scan = connection.msgtype.split("/")
            packet = scan.replace("Scan", "Packet")
            if connection.msgtype not in registered:
                registered.add(connection.msgtype)
                more = "\nuint32 size" if package == "pandar_msgs" else ""
                fields = f"builtin_interfaces/Time stamp\nuint8[{size[package]}] data{more}"
                store.register(get_types_from_msg(fields, f"{package}/msg/{packet}"))
                store.register(
                    get_types_from_msg(f"std_msgs/Header header\n{package}/{packet}[] packets", connection.msgtype)
                )
            for p in store.deserialize_cdr(raw, connection.msgtype).packets:
                data = p.data.tobytes()[: getattr(p, "size", None)]
                packets.append((p.stamp.sec * 10**9 + p.stamp.nanosec, data))
    return packets


@pytest.mark.parametrize(
    ("bag", "count", "size"), [("lidar/velodyne_bag/vlp16", 603, 1206), ("lidar/hesai_bag/xt32", 2000, 1080)]
)
def test_every_packet_of_a_real_bag_is_imported_byte_for_byte_with_its_stamp(data_dir, tmp_path, bag, count, size):
    folder = next(p.parent for p in (data_dir / bag).glob("*/metadata.yaml"))
    run_import(folder, tmp_path / "out.mcap")
    frames = imported(tmp_path / "out.mcap")
    assert [(f.capture_ns, f.data.tobytes()) for f in frames] == bag_packets(folder)
    assert (
        len(frames) == count
        and {f.data.size for f in frames} == {size}
        and [f.seq for f in frames] == list(range(count))
    )


def test_every_packet_of_real_captures_is_imported_byte_for_byte_with_its_metadata(data_dir, tmp_path):
    for i, path in enumerate(sorted((data_dir / "lidar/ouster").glob("*.pcap"))):
        run_import(path, tmp_path / f"{i}.mcap")
        raw, at, expected = path.read_bytes(), 24, []
        while at < len(raw):  # captured on a loopback, whole: Ethernet 14, IPv4 20, UDP 8
            seconds, micros, size, _ = struct.unpack_from("<4I", raw, at)
            expected.append((seconds * 10**9 + micros * 1000, raw[at + 16 + 42 : at + 16 + size]))
            at += 16 + size
        frames = imported(tmp_path / f"{i}.mcap")
        assert [(f.capture_ns, f.data.tobytes()) for f in frames if f.encoding == "packet"] == expected
        (metadata,) = [f.data.tobytes() for f in frames if f.encoding == "calibration"]
        assert metadata in [p.read_bytes() for p in path.parent.glob("*.json")] and b"digest" not in metadata[:40]


def test_the_kitti_sequence_is_imported_to_the_bit(data_dir, tmp_path):
    folder = data_dir / "driving/kitti_sequence"
    lines = run_import(folder, tmp_path / "out.mcap", "image_02=camera", "velodyne=lidar")
    pictures, sweeps = imported(tmp_path / "out.mcap", "camera"), imported(tmp_path / "out.mcap", "lidar")
    assert [f.data.tobytes() for f in pictures] == [
        cv2.imread(str(p)).tobytes() for p in sorted((folder / "image_02").glob("*.png"))
    ]
    assert [f.data.tobytes() for f in sweeps] == [p.read_bytes() for p in sorted((folder / "velodyne").glob("*.bin"))]
    assert [f.capture_ns for f in sweeps] == [i * 100_000_000 for i in range(10)] == [f.capture_ns for f in pictures]
    assert imported(tmp_path / "out.mcap", "calibration/calib")[0].data.tobytes() == (folder / "calib.txt").read_bytes()
    boxes = imported(tmp_path / "out.mcap", "boxes")
    assert [(f.capture_ns, f.data.tobytes()) for f in boxes] == [
        (700_000_000, (folder / "label_2/0000000007.txt").read_bytes())
    ]
    assert any("no timestamps.txt" in line and "10 Hz" in line for line in lines)


def test_the_kitti_object_folder_is_imported_with_calibration_and_boxes_of_each_moment(data_dir, tmp_path):
    folder = data_dir / "driving/kitti_labelled"
    run_import(folder, tmp_path / "out.mcap")
    for stream, sub in (("calib", "calib"), ("boxes", "label_2"), ("velodyne", "velodyne")):
        frames = imported(tmp_path / "out.mcap", stream)
        assert [f.data.tobytes() for f in frames] == [p.read_bytes() for p in sorted((folder / sub).iterdir())]


@pytest.mark.system
def test_the_written_config_is_valid_and_replays_every_set(data_dir, tmp_path):
    run_import(data_dir / "driving/kitti_sequence", tmp_path / "drive.mcap", "image_02=camera", "velodyne=lidar")
    program = [sys.executable, str(ROOT / "run_pipeline.py")]
    checked = subprocess.run([*program, "check", str(tmp_path / "drive.yaml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    command = ["replay", str(tmp_path / "drive.yaml"), str(tmp_path / "drive.mcap"), "--speed", "0"]
    played = subprocess.run([*program, *command], capture_output=True, text=True)
    assert played.returncode == 0, played.stderr
    assert "aligned sets: 10" in played.stdout and "unaccounted: none" in played.stdout


def test_an_unknown_name_and_an_existing_output_are_refused_and_nothing_is_left(data_dir, tmp_path):
    folder = next(p.parent for p in (data_dir / "lidar/velodyne_bag/vlp16").glob("*/metadata.yaml"))
    with pytest.raises(ConfigError, match="--map velodyne_packet: no such stream.*Did you mean 'velodyne_packets'"):
        run_import(folder, tmp_path / "out.mcap", "/velodyne_packet=lidar")
    assert list(tmp_path.iterdir()) == []
    run_import(folder, tmp_path / "out.mcap", "/velodyne_packets=lidar")
    with Reader(tmp_path / "out.mcap") as reader:
        assert list(reader.streams) == ["lidar"] and reader.about["source"] == folder.name
    with pytest.raises(ConfigError, match="exists already"):
        run_import(folder, tmp_path / "out.mcap")
