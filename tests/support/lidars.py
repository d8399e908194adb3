"""Packets whose points are known exactly: a VLP-16 and an Ouster in a room of our own, what a network does to packets,
and what our decoders make of them."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.clock import NS
from pipeline.sensors.lidar.packet_decoder import PacketDecoder, Sweep, make

# VLP-16 user manual, chapter 9: elevation in degrees and vertical offset in mm, by laser.
VLP16_ELEVATION_DEG = np.array([-15, 1, -13, 3, -11, 5, -9, 7, -7, 9, -5, 11, -3, 13, -1, 15], float)
VLP16_OFFSET_MM = np.array([11.2, -0.7, 9.7, -2.2, 8.1, -3.7, 6.6, -5.1, 5.1, -6.6, 3.7, -8.1, 2.2, -9.7, 0.7, -11.2])
BLOCK_US, FIRING_US, LASER_US = 110.592, 55.296, 2.304
PACKET_NS = round(12 * BLOCK_US * 1000)
BLOCK_DEG = 0.4  # turned in a block, an exact number of the packet's 0.01°: 10.05 turns a second


class Truth(NamedTuple):
    xyz: np.ndarray  # (n, 3) m, x forward, y left, z up
    at_ns: np.ndarray  # (n,) since the first packet's first firing


_BLOCK = np.dtype([("flag", "<u2"), ("azimuth", "<u2"), ("returns", [("range", "<u2"), ("intensity", "u1")], (2, 16))])
_PACKET = np.dtype([("blocks", _BLOCK, 12), ("since_hour_us", "<u4"), ("mode", "u1"), ("model", "u1")])


def vlp16(packets: int, *, from_deg: float = 0.0, since_hour_ns: int = 1_000_000_000) -> tuple[list[bytes], Truth]:
    """Single-return packets of a sensor in a lumpy round room of 3 to 9 m."""
    laser, block = np.arange(16), np.arange(packets * 12).reshape(packets, 12)
    since_us = FIRING_US * np.arange(2)[:, None] + LASER_US * laser  # (firing, laser), of the block's beginning
    block_deg = from_deg + block * BLOCK_DEG
    azimuth = np.radians(block_deg[..., None, None] + since_us * BLOCK_DEG / BLOCK_US)  # (packet, block, firing, laser)
    units = np.round((6 + 3 * np.sin(3 * azimuth) * np.cos(laser)) / 0.002)
    raw = np.zeros(packets, _PACKET)
    raw["blocks"]["flag"], raw["blocks"]["azimuth"] = 0xEEFF, np.round(block_deg * 100) % 36000
    raw["blocks"]["returns"]["range"], raw["blocks"]["returns"]["intensity"] = units, 10 * laser
    raw["since_hour_us"] = (since_hour_ns + np.arange(packets) * PACKET_NS) // 1000 % 3_600_000_000
    raw["mode"], raw["model"] = 0x37, 0x22
    range_m, elevation = units * 0.002, np.radians(VLP16_ELEVATION_DEG)
    flat, z = range_m * np.cos(elevation), range_m * np.sin(elevation) + VLP16_OFFSET_MM / 1000
    xyz = np.stack([flat * np.cos(azimuth), -flat * np.sin(azimuth), z], axis=-1).reshape(-1, 3)
    at_ns = (block * BLOCK_US * 1000)[..., None, None] + since_us * 1000
    return [packet.tobytes() for packet in raw], Truth(xyz, at_ns.ravel())


_RETURN = np.dtype([("distance", "<u2"), ("reflectance", "u1"), ("reserved", "u1")])
_XT32 = np.dtype(
    [
        ("start", "u1", 6),
        ("header", "u1", 6),
        ("blocks", [("azimuth", "<u2"), ("returns", _RETURN, 32)], 8),
        ("reserved", "u1", 10),
        ("mode", "u1"),
        ("speed", "<u2"),
        ("date", "u1", 6),
        ("us", "<u4"),
        ("factory", "u1"),
        ("number", "<u4"),
    ]
)
XT32_NS = 400_000  # of a packet with one return


def xt32(packets: int, *, from_deg: float = 0.0, since_ns: int = 0) -> tuple[list[bytes], Truth]:
    """Single-return packets from 1 January 2026, 00:00:59.9 UTC + since_ns on, at 10 turns a second, in a lumpy round
    room."""
    block, laser = np.arange(packets * 8).reshape(packets, 8), np.arange(32)
    azimuth_deg = from_deg + block * 0.18
    azimuth, elevation = np.radians(azimuth_deg)[..., None], np.radians(15.0 - laser)
    units = np.round((6 + 3 * np.sin(3 * azimuth) * np.cos(laser)) / 0.004)  # (packet, block, laser)
    raw = np.zeros(packets, _XT32)
    raw["start"], raw["header"] = [0xEE, 0xFF, 6, 1, 0, 0], [32, 8, 1, 4, 1, 1]
    raw["blocks"]["azimuth"] = np.round(azimuth_deg * 100) % 36000
    raw["blocks"]["returns"]["distance"], raw["blocks"]["returns"]["reflectance"] = units, 2 * laser
    last_ns = (
        59_900_000_000 + since_ns + (np.arange(packets) + 1) * XT32_NS - 50_000 - 5_632
    )  # what its time says, 5.632 µs early
    raw["mode"], raw["us"], raw["number"] = 0x37, last_ns // 1000 % 1_000_000, np.arange(packets)
    minute, second = np.divmod(last_ns // NS, 60)
    raw["date"] = np.stack([np.full(packets, v) for v in (126, 1, 1, 0)] + [minute, second], axis=1)
    flat = units * 0.004 * np.cos(elevation)
    xyz = np.stack([flat * np.cos(azimuth), -flat * np.sin(azimuth), units * 0.004 * np.sin(elevation)], axis=-1)
    at_ns = block[..., None] * 50_000 + 280 + 1512 * laser
    return [packet.tobytes() for packet in raw], Truth(xyz.reshape(-1, 3), at_ns.ravel())


def ouster(frames: int, *, first_id: int = 7, start_ns: int = 5 * NS) -> tuple[str, list[bytes], list[Truth]]:
    """(metadata, packets, truth of each frame): an OS1-64 of 1024 columns at 10 Hz in a lumpy room."""
    import ouster.sdk.core as sdk

    tree = json.loads(sdk.SensorInfo.from_default(sdk.LidarMode._1024x10).to_json_string())
    tree["lidar_data_format"]["udp_profile_lidar"] = "RNG19_RFL8_SIG16_NIR16"
    tree["config_params"] |= {"udp_port_lidar": 7502, "udp_port_imu": 7503}  # 0 would mean: it sends none
    tree["sensor_info"] |= {"initialization_id": 1234, "prod_sn": "122000000001"}
    metadata = json.dumps(tree)
    info = sdk.SensorInfo(metadata)
    form = sdk.PacketFormat(info)
    raw: list[bytes] = []
    truths = []
    for k in range(frames):
        frame = sdk.LidarFrame(info)
        frame.frame_id = (first_id + k) % 65536
        columns = np.arange(info.w)
        lumps = 4 + np.sin(0.02 * columns[None] + 0.3 * np.arange(info.h)[:, None] + k)
        frame.field("RANGE")[:] = (1000 * lumps).astype(np.uint32)
        frame.field("REFLECTIVITY")[:] = (columns[None] % 200).astype(frame.field("REFLECTIVITY").dtype)
        began_ns = start_ns + k * NS // 10
        frame.timestamp[:] = began_ns + columns * (NS // 10 // info.w)
        frame.measurement_id[:], frame.status[:] = columns, 0xFFFFFFFF
        raw += [np.array(p.buf).tobytes() for p in sdk.frame_to_packets(frame, form, 1234, 122000000001)]
        truths.append(
            Truth(ouster_xyz(info, np.array(frame.field("RANGE"))), np.array(frame.timestamp, np.int64) - began_ns)
        )
    return metadata, raw, truths


def ouster_xyz(info: object, range_mm: np.ndarray) -> np.ndarray:
    """(h, w, 3) m by the formula of Ouster's sensor manual, in the sensor's frame."""
    width = info.w  # type: ignore[attr-defined]
    encoder = 2 * np.pi * (1 - np.arange(width) / width)
    azimuth = -np.radians(info.beam_azimuth_angles)[:, None]  # type: ignore[attr-defined]
    elevation = np.radians(info.beam_altitude_angles)[:, None]  # type: ignore[attr-defined]
    origin_mm = info.lidar_origin_to_beam_origin_mm  # type: ignore[attr-defined]
    flat = (range_mm - origin_mm) * np.cos(elevation)
    x = flat * np.cos(encoder + azimuth) + origin_mm * np.cos(encoder)
    y = flat * np.sin(encoder + azimuth) + origin_mm * np.sin(encoder)
    z = (range_mm - origin_mm) * np.sin(elevation)
    there = np.stack([x, y, z, np.ones_like(z)], axis=-1)
    sensor_from_lidar = np.array(info.lidar_to_sensor_transform)  # type: ignore[attr-defined]
    return (there @ sensor_from_lidar.T)[..., :3] / 1000


def sent(raw: Sequence[bytes], *, every_ns: int = PACKET_NS, start_ns: int = 0) -> list[tuple[bytes, int]]:
    """(packet, arrival): each arrives 0.2 ms after its last firing."""
    return [(packet, start_ns + (k + 1) * every_ns + 200_000) for k, packet in enumerate(raw)]


def lossy(packets: Sequence[tuple[bytes, int]], share: float, seed: int = 1) -> list[tuple[bytes, int]]:
    chance = random.Random(seed)
    return [packet for packet in packets if chance.random() >= share]


def reordered(packets: Sequence[tuple[bytes, int]], share: float, seed: int = 1) -> list[tuple[bytes, int]]:
    """This share of the packets come one to three places late."""
    chance, order = random.Random(seed), list(packets)
    for k in range(len(packets)):
        if chance.random() < share:
            order.insert(min(k + chance.randint(1, 3), len(order) - 1), order.pop(k))
    return [(packet, arrival_ns) for (packet, _), (_, arrival_ns) in zip(order, packets, strict=True)]


def garbage(count: int, size: int, seed: int = 1) -> Iterator[bytes]:
    """Random bytes, packets cut short, packets too long, and random bytes of the right size."""
    chance = np.random.default_rng(seed)
    for k in range(count):
        length = (int(chance.integers(0, 64)), int(chance.integers(64, size)), size + 1 + k % 50, size)[k % 4]
        yield chance.integers(0, 256, length, dtype=np.uint8).tobytes()


def write_pcap(path: Path, packets: Sequence[tuple[bytes, int]], port: int) -> Path:
    """Raw IP (link type 101), nanoseconds."""
    with path.open("wb") as file:
        file.write(struct.pack("<4sHHiIII", b"\x4d\x3c\xb2\xa1", 2, 4, 0, 0, 1 << 18, 101))
        for packet, at_ns in packets:
            udp = struct.pack(">HHHH", 5000, port, 8 + len(packet), 0) + packet
            ip = (
                struct.pack(
                    ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes([10, 0, 0, 7]), bytes([10, 0, 0, 1])
                )
                + udp
            )
            file.write(struct.pack("<IIII", at_ns // NS, at_ns % NS, len(ip), len(ip)) + ip)
    return path


def decoded(
    packets: Sequence[tuple[bytes, int]], sensor: str = "velodyne", metadata: str = "", **options: Any
) -> tuple[list[Sweep], Counter[str], PacketDecoder]:
    decoder = make(sensor, options, where="lidar")
    decoder.open()
    if metadata:
        decoder.take_metadata(metadata)
    sweeps = [sweep for packet, arrival_ns in packets for sweep in decoder.take(packet, arrival_ns)]
    sweeps += decoder.finish()
    return sweeps, +decoder.take_lost(), decoder
