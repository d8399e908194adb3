"""Packets → sweeps, with generated packets whose every point and time is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from lidars import PACKET_NS, XT32_NS, Truth, decoded, garbage, lossy, ouster, reordered, sent, vlp16, xt32

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.sensors.lidar.packet_decoder import Sweep

pytest.importorskip("velodyne_decoder", reason="needs the extra lidar: scripts/setup lidar")

HOUR_NS = 3600 * NS
OUSTER_NS = NS // 640  # between its packets
GAP = "packets missing"


def packets_of(
    sensor: str, vlp16_packets: tuple[list[bytes], Truth], ouster_packets: tuple[str, list[bytes], list[Truth]]
) -> tuple[str, list[bytes], int]:
    """The sensor's metadata, its packets and the time between them in ns."""
    if sensor == "velodyne":
        return "", vlp16_packets[0], PACKET_NS
    return ouster_packets[0], ouster_packets[1], OUSTER_NS


def by_time(sweeps: Sequence[Sweep]) -> tuple[np.ndarray, np.ndarray]:
    """(x y z, host time in ns) of all points, in the order in which they were measured."""
    points = np.concatenate([sweep.data for sweep in sweeps]).astype(np.float64)
    at_ns = np.concatenate([sweep.capture_ns + sweep.data[:, 4].astype(np.float64) * NS for sweep in sweeps])
    order = np.argsort(at_ns, kind="stable")
    return points[order, :3], at_ns[order]


def points_in(sweeps: Sequence[Sweep]) -> int:
    return sum(len(sweep.data) for sweep in sweeps)


def missing(sweeps: Sequence[Sweep]) -> int:
    gaps = [part for sweep in sweeps for part in sweep.reason.split("; ") if GAP in part]
    return sum(int(part.split()[0]) for part in gaps)


# Geometry and time


def test_every_point_of_a_vlp16_is_where_and_when_it_was(vlp16_packets):
    raw, truth = vlp16_packets
    sweeps, lost, decoder = decoded(sent(raw), cut_deg=0.0)
    xyz, at_ns = by_time(sweeps)
    assert len(xyz) == len(truth.xyz) and not lost
    assert np.linalg.norm(xyz - truth.xyz, axis=1).max() < 1.1e-3
    late_ns = at_ns - truth.at_ns  # of the sensor's clock, by the constant delay of its packets
    assert late_ns.min() > 198_000 and late_ns.max() < 201_000
    assert decoder.describe() == "Velodyne VLP16"
    assert {float(v) for v in np.unique(sweeps[0].data[:, 3])} == {np.float32(10 * laser / 255) for laser in range(16)}


@pytest.mark.parametrize("cut_deg", [0.0, 90.0, 180.0, 271.3])
def test_sweeps_are_cut_at_the_requested_azimuth(vlp16_packets, cut_deg):
    sweeps, _, _ = decoded(sent(vlp16_packets[0], start_ns=7 * NS), cut_deg=cut_deg)
    turn_ns = 900 * 110_592  # 360° / 0.4° a block
    for before, after in pairwise(sweeps[1:]):
        assert abs(before.duration_ns - turn_ns) < 2000
        assert (
            abs(after.capture_ns - before.capture_ns - before.duration_ns) < 2000
        )  # they leave no gap and do not overlap
    for sweep in sweeps[1:-1]:
        assert sweep.reason == "" and len(sweep.data) == 900 * 32
        azimuth_deg = -np.degrees(np.arctan2(sweep.data[:, 1], sweep.data[:, 0])) % 360
        first = azimuth_deg[np.argsort(sweep.data[:, 4], kind="stable")[:16]]
        assert np.abs((first - cut_deg + 180) % 360 - 180).max() < 0.5
        assert sweep.data[:, 4].min() >= 0 and sweep.data[:, 4].max() < sweep.duration_ns / NS
    assert "only" in sweeps[-1].reason and ("only" in sweeps[0].reason or cut_deg == 0)


def test_every_point_of_an_ouster_is_where_and_when_it_was(ouster_packets):
    metadata, raw, truths = ouster_packets
    sweeps, lost, decoder = decoded(sent(raw, every_ns=OUSTER_NS), "ouster", metadata)
    assert len(sweeps) == 4 and not lost and decoder.rate_hz == 10.0
    for k, (sweep, truth) in enumerate(zip(sweeps, truths, strict=True)):
        assert np.abs(sweep.data[:, :3] - truth.xyz.reshape(-1, 3)).max() < 1e-5
        assert np.abs(sweep.data[:, 4] - np.tile(truth.at_ns / NS, 64)).max() < 1e-7
        assert np.allclose(sweep.data[:, 3], np.tile(np.arange(1024) % 200 / 255, 64), atol=1e-6)
        assert abs(sweep.capture_ns - k * NS // 10) < 400_000 and abs(sweep.duration_ns - NS // 10) < 1000


def test_every_point_of_an_xt32_is_where_and_when_it_was():
    """Across a minute's end."""
    raw, truth = xt32(700)
    sweeps, lost, decoder = decoded(sent(raw, every_ns=XT32_NS), "hesai", cut_deg=0.0)
    xyz, at_ns = by_time(sweeps)
    assert len(xyz) == len(truth.xyz) and not lost and decoder.clock.steps == 0
    assert np.linalg.norm(xyz - truth.xyz, axis=1).max() < 1e-5
    assert np.abs(at_ns - truth.at_ns - 200_000).max() < 2000
    assert [sweep.reason for sweep in sweeps[:2]] == ["", ""] and abs(sweeps[1].duration_ns - 100_000_000) < 1000


def test_points_out_of_range_are_left_out(vlp16_packets, ouster_packets):
    near, _, _ = decoded(sent(vlp16_packets[0]), min_range_m=4.0, max_range_m=7.0)
    ranges_m = np.linalg.norm(by_time(near)[0], axis=1)
    assert 3.9 < ranges_m.min() and ranges_m.max() < 7.1 and len(ranges_m) > 10_000
    nearer, _, _ = decoded(sent(ouster_packets[1], every_ns=OUSTER_NS), "ouster", ouster_packets[0], max_range_m=4.0)
    assert len(nearer) == 4 and 0 < len(nearer[0].data) < 64 * 1024


# The sensor's clock


def test_the_wrap_of_the_hour_is_no_jump(vlp16_packets):
    raw, truth = vlp16(310, since_hour_ns=HOUR_NS - 150 * PACKET_NS)
    sweeps, lost, decoder = decoded(sent(raw), cut_deg=0.0)
    xyz, at_ns = by_time(sweeps)
    assert not lost and decoder.clock.steps == 0
    assert np.linalg.norm(xyz - truth.xyz, axis=1).max() < 1.1e-3
    assert np.abs(at_ns - truth.at_ns - 200_000).max() < 3000


@pytest.mark.parametrize("jump_ns", [-1700 * NS, -7 * NS, -300_000_000, 300_000_000, 7 * NS, 1700 * NS])
def test_a_clock_that_is_set_costs_no_packet_and_stays_right(jump_ns):
    before, first = vlp16(1510, since_hour_ns=1800 * NS)
    after, second = vlp16(1500, from_deg=1510 * 12 * 0.4, since_hour_ns=1800 * NS + 1510 * PACKET_NS + jump_ns)
    sweeps, lost, _ = decoded(sent([*before, *after]), cut_deg=0.0)
    assert points_in(sweeps) == len(first.xyz) + len(second.xyz) and not lost
    starts_ns = [sweep.capture_ns for sweep in sweeps]
    assert starts_ns == sorted(set(starts_ns))
    last = sweeps[-2]  # a second or more after the jump
    turn_ns = 900 * 110_592
    assert min(abs(last.capture_ns - 200_000 - k * turn_ns) for k in range(60)) < 1_000_000 + last.clock_error_ns
    assert sum("jumped" in sweep.reason for sweep in sweeps) == 1


def test_an_ouster_whose_clock_is_set_or_whose_frame_number_wraps_stays_right():
    pytest.importorskip("ouster.sdk", reason="needs the extra ouster: scripts/setup ouster")
    metadata, before, _ = ouster(3, first_id=65534)
    _, after, _ = ouster(3, first_id=1, start_ns=900 * NS)
    sweeps, lost, _ = decoded(sent([*before, *after], every_ns=OUSTER_NS), "ouster", metadata)
    assert [len(sweep.data) for sweep in sweeps] == [64 * 1024] * 6 and not lost
    assert np.abs(np.diff([sweep.capture_ns for sweep in sweeps]) - NS // 10).max() < 1_000_000


def test_late_arrivals_do_not_move_the_time(vlp16_packets):
    chance = np.random.default_rng(3)
    late = [(raw, at_ns + int(chance.exponential(3e6))) for raw, at_ns in sent(vlp16_packets[0])]
    sweeps, _, _ = decoded(late, cut_deg=0.0)
    for k, sweep in enumerate(sweeps[:3]):
        assert abs(sweep.capture_ns - 200_000 - k * 900 * 110_592) < max(sweep.clock_error_ns, 200_000)
        assert sweep.clock_error_ns < 2_000_000


# Losses and damage


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("sensor", ["velodyne", "ouster"])
def test_lost_packets_are_reported_and_counted(vlp16_packets, ouster_packets, sensor, share):
    metadata, raw, every_ns = packets_of(sensor, vlp16_packets, ouster_packets)
    received = lossy(sent(raw, every_ns=every_ns), share)
    sweeps, lost, _ = decoded(received, sensor, metadata)
    gone = len(raw) - len(received)
    assert gone - 2 <= lost["packets lost"] <= gone  # those before the first and after the last that came are not known
    assert missing(sweeps) == lost["packets lost"] and set(lost) == {"packets lost"}
    whole, _, _ = decoded(sent(raw, every_ns=every_ns), sensor, metadata)
    assert points_in(sweeps) * len(raw) == points_in(whole) * len(received)
    assert any(f"{GAP}, " in sweep.reason and "° without points" in sweep.reason for sweep in sweeps)


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("sensor", ["velodyne", "ouster"])
def test_reordered_packets_find_their_sweep_or_are_counted(vlp16_packets, ouster_packets, sensor, share):
    metadata, raw, every_ns = packets_of(sensor, vlp16_packets, ouster_packets)
    whole, _, _ = decoded(sent(raw, every_ns=every_ns), sensor, metadata)
    sweeps, lost, _ = decoded(reordered(sent(raw, every_ns=every_ns), share), sensor, metadata)
    a_packet = points_in(whole) // len(raw)
    late = lost["packets too late for their sweep"]
    assert set(+lost) <= {"packets too late for their sweep"} and late <= 4
    assert points_in(sweeps) == (len(raw) - late) * a_packet
    assert late - 1 <= missing(sweeps) <= late  # that the first one of all is missing cannot be known


@pytest.mark.parametrize("sensor", ["velodyne", "ouster"])
def test_a_thousand_malformed_packets_are_counted_and_harm_nobody(vlp16_packets, ouster_packets, sensor):
    metadata, raw, every_ns = packets_of(sensor, vlp16_packets, ouster_packets)
    good = sent(raw, every_ns=every_ns)
    bad = list(garbage(1000, len(raw[0])))
    mixed = list(good)
    for k, packet in enumerate(bad):
        at = 1 + k * len(mixed) // 1001
        mixed.insert(at, (packet, mixed[at - 1][1]))
    sweeps, lost, _ = decoded(mixed, sensor, metadata)
    clean, _, _ = decoded(good, sensor, metadata)
    assert lost == Counter({"malformed packets": 1000})
    assert [s.reason for s in sweeps] == [s.reason for s in clean]
    for ours, theirs in zip(sweeps, clean, strict=True):
        assert np.array_equal(ours.data, theirs.data) and ours.capture_ns == theirs.capture_ns


@pytest.mark.parametrize("sensor", ["velodyne", "hesai", "ouster"])
def test_packets_with_flipped_bytes_end_nothing(vlp16_packets, ouster_packets, sensor):
    raw = {"velodyne": vlp16_packets[0], "hesai": xt32(300)[0], "ouster": ouster_packets[1]}[sensor]
    chance = np.random.default_rng(5)
    bent = []
    for k, packet in enumerate(raw * 3):
        changed = np.frombuffer(packet, np.uint8).copy()
        heads = chance.random() < 0.5
        where = chance.integers(0, 64 if heads else len(changed), 1 + k % 6)
        changed[where] = chance.integers(0, 256, len(where))
        bent.append((changed.tobytes(), k * PACKET_NS))
    sweeps, lost, decoder = decoded(bent, sensor, ouster_packets[0] if sensor == "ouster" else "")
    assert sweeps and all(np.isfinite(sweep.data).all() and sweep.duration_ns >= 0 for sweep in sweeps)
    starts_ns = [sweep.capture_ns for sweep in sweeps]
    assert starts_ns == sorted(set(starts_ns))
    assert decoder.good + lost["malformed packets"] >= len(bent)


@pytest.mark.parametrize(
    ("byte", "flags", "model"),
    [(0x21, 1, "HDL32E"), (0x24, 1, "PuckHiRes"), (0x28, 1, "VLP32C"), (0xA1, 4, "VLS128"), (0x55, 2, "HDL64E_S3")],
)
def test_packets_of_the_other_models_become_whole_sweeps(vlp16_packets, byte, flags, model):
    import velodyne_decoder

    raw = np.frombuffer(b"".join(vlp16_packets[0]), np.uint8).reshape(-1, 1206).copy()
    raw[:, 1205] = byte
    for block in range(12):  # `flags` laser banks fire at one azimuth
        raw[:, 100 * block + 1] = (0xEE, 0xDD, 0xCC, 0xBB)[block % flags]
        first = 100 * (block - block % flags)
        raw[:, 100 * block + 2 : 100 * block + 4] = raw[:, first + 2 : first + 4]
    options = {}
    if model == "HDL64E_S3":
        options = {
            "model": model,
            "calibration": f"{velodyne_decoder.__path__[0]}/calibrations/HDL-64E_S3-VeloView.yml",
        }
        with pytest.raises(ConfigError, match="calibration"):
            decoded([], model=model)
    sweeps, lost, decoder = decoded(sent([packet.tobytes() for packet in raw]), cut_deg=0.0, **options)
    assert decoder.describe() == f"Velodyne {model}" and not lost
    assert [len(sweep.data) for sweep in sweeps[1:3]] == [28800] * 2 and not sweeps[1].reason


def test_a_first_packet_that_claims_another_model_is_outvoted(vlp16_packets):
    raw, truth = vlp16_packets
    sweeps, lost, decoder = decoded(sent([raw[0][:-1] + b"\x21", *raw[1:]]), cut_deg=0.0)
    assert lost["malformed packets"] <= 3 and decoder.describe() == "Velodyne VLP16"
    xyz, _ = by_time(sweeps)
    assert np.linalg.norm(xyz[-10_000:] - truth.xyz[-10_000:], axis=1).max() < 1.1e-3


def test_a_packet_of_the_right_form_with_a_wrong_time_is_left_out(vlp16_packets):
    good = sent(vlp16_packets[0])
    foreign = [
        (raw, good[10 * k + 5][1]) for k, raw in enumerate(vlp16(30, from_deg=77.0, since_hour_ns=2000 * NS)[0][::2])
    ]
    mixed = sorted([*good, *foreign], key=lambda packet: packet[1])
    sweeps, lost, _ = decoded(mixed, cut_deg=0.0)
    assert lost == Counter({"malformed packets": 15}) and not any("jumped" in sweep.reason for sweep in sweeps)


def test_packets_that_come_twice_are_taken_once(vlp16_packets, ouster_packets):
    twice = [packet for packet in sent(vlp16_packets[0]) for _ in range(2)]
    sweeps, lost, _ = decoded(twice)
    assert lost == Counter({"packets that came twice": len(vlp16_packets[0])})
    assert points_in(sweeps) == len(vlp16_packets[1].xyz)
    sweeps, lost, _ = decoded(
        [p for p in sent(ouster_packets[1], every_ns=OUSTER_NS) for _ in range(2)], "ouster", ouster_packets[0]
    )
    assert lost == Counter({"packets that came twice": len(ouster_packets[1])}) and len(sweeps) == 4


def test_a_silence_ends_the_sweep_and_says_so(vlp16_packets):
    raw, _ = vlp16(2000)
    packets = sent(raw)
    sweeps, lost, decoder = decoded([*packets[:400], *packets[1400:]])
    [cut] = [sweep for sweep in sweeps if "no packets for 1.3 s" in sweep.reason]
    assert lost["packets lost"] == 1000 and cut.duration_ns < 900 * 110_592 and decoder.clock.steps == 0


def test_whole_revolutions_that_are_lost_are_counted():
    raw, _ = vlp16(900)
    packets = sent(raw)
    sweeps, lost, _ = decoded([*packets[:400], *packets[600:]])
    assert lost["packets lost"] == 200 and missing(sweeps) < 200
    assert all(sweep.duration_ns < 110_000_000 for sweep in sweeps)
