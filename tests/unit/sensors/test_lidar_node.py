"""The nodes of a lidar: packets from captures and recordings, your own decoder, and errors with their fixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from lidars import decoded, sent, write_pcap

from nodes.lidar import Lidar
from nodes.sweeps import Sweeps
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame, silence
from pipeline.sensors.lidar.packet_decoder import PacketDecoder, Sweep
from pipeline.testing import NodeHarness, play

pytest.importorskip("velodyne_decoder", reason="needs the extra lidar: scripts/setup lidar")

OUSTER_NS = NS // 640  # between its packets


def a_capture(folder: Path, raw: Sequence[bytes]) -> Path:
    return write_pcap(folder / "drive.pcap", sent(raw, start_ns=1_700_000_000 * NS), 2368)


def test_a_capture_is_played_from_the_run_s_start(vlp16_packets, tmp_path):
    frames = play(
        Lidar(sensor="velodyne", device=str(a_capture(tmp_path, vlp16_packets[0]))), name="roof", start_ns=50 * NS
    )
    assert len(frames) == 5 and [f.seq for f in frames] == list(range(5))
    assert {(f.stream, f.encoding) for f in frames} == {("roof", "points_xyzit_f32")}
    assert abs(frames[0].capture_ns - 50 * NS) < 2_000_000 and frames[1].publish_ns >= frames[1].end_ns - 2_000_000
    assert frames[0].data.dtype == np.float32 and frames[0].data.shape[1] == 5 and not frames[0].data.flags.writeable


def test_a_capture_that_loops_goes_on_in_time(vlp16_packets, tmp_path):
    frames = play(Lidar(sensor="velodyne", device=str(a_capture(tmp_path, vlp16_packets[0])), loop=True), count=12)
    starts_ns = [f.capture_ns for f in frames]
    assert starts_ns == sorted(set(starts_ns)) and starts_ns[-1] > 0.8 * NS


def test_recorded_packets_give_the_same_sweeps_as_the_network(vlp16_packets):
    packets = sent(vlp16_packets[0], start_ns=9 * NS)
    expected, _, _ = decoded(packets)
    with NodeHarness(Sweeps(sensor="velodyne"), inputs=["lidar"], name="points") as harness:
        for k, (raw, at_ns) in enumerate(packets):
            harness.send("lidar", Frame("lidar", k, at_ns, "packet", np.frombuffer(raw, np.uint8)), at_ns=at_ns)
        harness.end()
    frames = [f for f in harness.emitted if isinstance(f, Frame)]
    assert [f.seq for f in frames] == list(range(len(expected))) and all(f.stream == "points" for f in frames)
    for frame, sweep in zip(frames, expected, strict=True):
        assert (
            frame.capture_ns == sweep.capture_ns
            and np.array_equal(frame.data, sweep.data)
            and frame.reason == sweep.reason
        )


def test_recorded_packets_of_an_ouster_wait_for_their_metadata(ouster_packets):
    metadata, raw, _ = ouster_packets
    with NodeHarness(Sweeps(sensor="ouster"), inputs=["lidar", "lidar/metadata"], name="points") as harness:
        harness.send(
            "lidar/metadata", Frame("lidar/metadata", 0, 0, "calibration", np.frombuffer(metadata.encode(), np.uint8))
        )
        for k, (packet, at_ns) in enumerate(sent(raw, every_ns=OUSTER_NS)):
            harness.send("lidar", Frame("lidar", k, at_ns, "packet", np.frombuffer(packet, np.uint8)), at_ns=at_ns)
        harness.end()
    assert len(harness.emitted) == 4


def test_a_silent_stream_of_packets_is_a_silent_stream_of_sweeps(vlp16_packets):
    packets = sent(vlp16_packets[0][:150])
    with NodeHarness(Sweeps(sensor="velodyne"), inputs=["lidar"], name="points") as harness:
        for k, (raw, at_ns) in enumerate(packets):
            harness.send("lidar", Frame("lidar", k, at_ns, "packet", np.frombuffer(raw, np.uint8)), at_ns=at_ns)
        harness.send("lidar", silence("lidar", NS, "muted"), at_ns=NS)
        *_, cut, silence_frame = harness.emitted
    assert isinstance(cut, Frame) and isinstance(silence_frame, Frame)
    assert "the packets ended" in cut.reason and cut.capture_ns < NS
    assert (silence_frame.encoding, silence_frame.capture_ns, silence_frame.reason, silence_frame.stream) == (
        "none",
        NS,
        "muted",
        "points",
    )


# Errors state their fix


def test_an_ouster_without_metadata_says_where_to_get_it(ouster_packets, tmp_path):
    for node in (
        Lidar(sensor="ouster"),
        Lidar(sensor="ouster", device=str(write_pcap(tmp_path / "a.pcap", sent(ouster_packets[1][:9]), 7502))),
    ):
        with pytest.raises(ConfigError, match="api/v1/sensor/metadata.*options: {metadata: "):
            play(node, count=1)
    with pytest.raises(ConfigError, match=r"inputs: \[lidar, lidar/metadata\]"):
        NodeHarness(Sweeps(sensor="ouster"), inputs=["lidar"])


def test_metadata_beside_a_capture_is_used(ouster_packets, tmp_path):
    metadata, raw, _ = ouster_packets
    (tmp_path / "os1.json").write_text(metadata)
    capture = write_pcap(tmp_path / "os1-drive.pcap", sent(raw, every_ns=OUSTER_NS), 7502)
    assert len(play(Lidar(sensor="ouster", device=str(capture)))) == 4


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no json", '{"beam_altitude_angles": [1]}'])
def test_metadata_that_is_none_is_refused(tmp_path, text):
    pytest.importorskip("ouster.sdk", reason="needs the extra ouster: scripts/setup ouster")
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ConfigError, match="wrong.json.*curl http://SENSOR"):
        play(Lidar(sensor="ouster", options={"metadata": str(tmp_path / "wrong.json")}), count=1)


def test_a_capture_of_another_sensor_is_refused(vlp16_packets, tmp_path):
    capture = write_pcap(tmp_path / "other.pcap", [(b"x" * 900, k) for k in range(9)], 2368)
    with pytest.raises(ConfigError, match="'velodyne' can read none of the packets to port 2368"):
        play(Lidar(sensor="velodyne", device=str(capture)))
    with pytest.raises(ConfigError, match="no packets to port 9999.*2368 from 10.0.0.7"):
        play(Lidar(sensor="velodyne", device=str(capture), port=9999))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensor": "velodine"}, "no lidar called 'velodine'.*Did you mean 'velodyne'"),
        ({"sensor": "velodyne", "options": {"cut": 3}}, "unknown key 'cut'"),
        ({"sensor": "velodyne", "options": {"cut_deg": 400.0}}, "cut_deg must be from 0 up to 360"),
        ({"sensor": "velodyne", "port": 0}, "port must be from 1"),
        ({"sensor": "ouster", "options": {"metadata": "a.json", "address": "b"}}, "either metadata"),
    ],
)
def test_a_wrong_option_is_reported_before_the_run(options, message):
    with pytest.raises(ConfigError, match=message):
        Lidar(**options)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'HDL64E_S"):
        decoded([], model="HDL64E")


# Anybody's points


class Mine(PacketDecoder):
    """The adapter of the module's docstring."""

    port = 4000

    def feed(self, packet, arrival_ns):
        yield Sweep(arrival_ns, 0, 0, np.frombuffer(packet, "<f4").reshape(-1, 5))


def test_any_point_source_is_one_small_class(tmp_path):
    points = np.arange(20, dtype="<f4").reshape(4, 5)
    capture = write_pcap(tmp_path / "mine.pcap", [(points.tobytes(), NS)], 4000)
    [frame] = play(Lidar(sensor="test_lidar_node:Mine", device=str(capture)))
    assert np.array_equal(frame.data, points)
