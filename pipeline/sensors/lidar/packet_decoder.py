"""A lidar's packets → sweeps, from a socket, a capture or a recording. One vendor per file in decoders/.

Example:
    decoder = make("velodyne", {"cut_deg": 180.0}, where="lidar 'roof'")
    decoder.open()
    for sweep in decoder.feed(packet, arrival_ns): sweep.data       # (n, 5) float32: x y z reflectance seconds

Any other source of points is a class of yours, named `module:Name`, with one method:

    class Mine(PacketDecoder):
        port = 4000
        def feed(self, packet, arrival_ns):
            points = numpy.frombuffer(packet, "<f4").reshape(-1, 5)
            yield Sweep(arrival_ns, 0, 0, points)

Points are in metres in the sensor's own frame, x forward, y left, z up. Nothing here opens a socket or a capture.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import DelayFloor
from pipeline.frame import Encoding, Frame
from pipeline.plugins import construct, find

# Why a packet is not in the sweeps. Each packet that was sent is in a sweep or counted under one of these exactly once.
MALFORMED = "malformed packets"
LOST = "packets lost"  # inferred from the gaps between the others
LATE = "packets too late for their sweep"
TWICE = "packets that came twice"


class Sweep(NamedTuple):
    """One revolution, or the sensor's unit of points."""

    capture_ns: int  # host time of its start
    duration_ns: int
    clock_error_ns: int  # bound on the error of capture_ns
    data: npt.NDArray[Any]  # (n, 5) float32: x, y, z in metres, reflectance in [0, 1], seconds since capture_ns
    reason: str = ""  # what is missing, for people: "7 of 76 packets missing, 33° without points"; "": nothing
    encoding: Encoding = "points_xyzit_f32"

    def frame(self, stream: str, *, more_error_ns: int = 0, **fields: Any) -> Frame:
        return Frame(
            stream,
            fields.pop("seq", -1),
            self.capture_ns,
            self.encoding,
            self.data,
            duration_ns=self.duration_ns,
            clock_error_ns=self.clock_error_ns + more_error_ns,
            reason=self.reason,
            **fields,
        )


class PacketDecoder:
    """One sensor's packets. Its constructor's keyword arguments are the node's `options`."""

    port: ClassVar[int] = 0  # where the sensor sends by default

    def __init__(self) -> None:
        self.where = "lidar"  # how errors begin; make() sets it
        self.rate_hz: float | None = None  # sweeps a second, where the metadata has it
        self.lost: Counter[str] = Counter()
        self.good = 0  # packets that were understood; an adapter need not count them
        self.sweeps = 0

    def open(self) -> None:
        """Import the vendor's package and read the files of the options. Raises ConfigError with the fix."""

    def take_metadata(self, text: str) -> None:
        """Use the sensor's metadata from a capture or a recording. Raises ConfigError where it is unusable."""

    def feed(self, packet: bytes, arrival_ns: int) -> Iterable[Sweep]:
        """The sweeps that `packet`, which arrived at `arrival_ns` on the host's clock, completes. Bytes that are no
        packet of its sensor are counted in `lost`, or raise ValueError."""
        raise TypeError(f"{type(self).__name__} does not define feed()")

    def take(self, packet: bytes, arrival_ns: int) -> list[Sweep]:
        """feed() as nodes call it: an exception of an adapter counts as a malformed packet."""
        try:
            sweeps = list(self.feed(packet, arrival_ns))
        except (ValueError, IndexError, struct.error):
            self.lost[MALFORMED] += 1
            return []
        self.sweeps += len(sweeps)
        return sweeps

    @property
    def understood(self) -> int:
        """Grows with every packet that is recognised as one of its sensor."""
        return self.good + self.sweeps

    def finish(self) -> Iterable[Sweep]:
        """No more packets for now: the sweep in progress, incomplete."""
        return ()

    def needs_metadata(self) -> str:
        """Why nothing can be decoded before take_metadata(), and how to get the metadata; "": not needed, or known."""
        return ""

    def describe(self) -> str:
        """The sensor, for people, once it is known."""
        return type(self).__name__

    def take_lost(self) -> Counter[str]:
        """Packets lost since the last call, by reason."""
        lost, self.lost = self.lost, Counter()
        return lost


class SensorClock(DelayFloor):
    """The time in a sensor's packets → host time. A cable's delay is small, so a lasting jump of 50 ms means that the
    sensor's clock was set."""

    JUMP_NS = 50_000_000

    def __init__(self) -> None:
        super().__init__(self.JUMP_NS)


def make(sensor: str, options: dict[str, Any] | None, *, where: str) -> PacketDecoder:
    """The decoder called `sensor`, not yet open. ConfigError for an unknown name or option, with the nearest."""
    kind = find(sensor, PacketDecoder, "pipeline.sensors.lidar.decoders", what="lidar")
    decoder = construct(kind, options or {}, f"{where}: options of '{sensor}'")
    decoder.where = where
    return decoder


def recognise(packet: bytes, metadata: str = "") -> str:
    """Which decoder reads such packets: "velodyne", "hesai", "ouster" (by its metadata); "" for none of them."""
    if len(packet) == 1206 and packet[0] == 0xFF and packet[1] in (0xEE, 0xDD):
        return "velodyne"
    if packet[:4] == b"\xee\xff\x06\x01":
        return "hesai"
    return "ouster" if is_ouster(metadata) else ""


def is_ouster(metadata: str) -> bool:
    try:
        tree = json.loads(metadata)
    except (ValueError, RecursionError):
        return False
    if not isinstance(tree, dict):
        return False
    inner = tree.get("beam_intrinsics")
    return any("beam" in key for key in (*tree, *(inner if isinstance(inner, dict) else ())))


def points_array(
    xyz: npt.NDArray[Any], reflectance: npt.NDArray[Any], seconds: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """(n, 3), (n,), (n,) → (n, 5) float32."""
    points = np.empty((len(xyz), 5), np.float32)
    points[:, :3], points[:, 3], points[:, 4] = xyz, reflectance, seconds
    return points
