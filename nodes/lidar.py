"""Lidar: sweeps of a lidar whose packets come over the network, or out of a capture of them (.pcap).

Example:
    lidar: {use: lidar, sensor: velodyne}
    lidar: {use: lidar, sensor: ouster, options: {metadata: os1.json}}
    lidar: {use: lidar, sensor: velodyne, device: drive.pcap}
    lidar: {use: lidar, sensor: "my_lidar:Mine", port: 4000}

A sweep is `points_xyzit_f32`, cut at a fixed azimuth: capture_ns is its start by the sensor's own clock, which is
mapped to host time by the least delayed arrivals of its packets. The frame's `reason` states what is missing; lost,
late and malformed packets are counted. nodes/sweeps.py makes sweeps from the packets of a recording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.clock import NS, Clock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame, StreamInfo
from pipeline.installation import setup_command
from pipeline.node import Finding, Source
from pipeline.recording.importers.file_frames import read_bytes
from pipeline.recording.importers.pcap import Datagram, datagrams, metadata_beside
from pipeline.sensors.lidar.packet_decoder import PacketDecoder, make
from pipeline.sensors.lidar.udp import BUFFER_BYTES, Receiver, largest_buffer_bytes

OPEN_TIMEOUT_S = 10.0  # a sensor that was just switched on takes longer; the run then retries
LOST_AFTER_S = 2.0  # without packets for this long, the sensor counts as lost
POLL_S = 0.25  # how often a wait checks whether the run is being stopped
PORTS_FROM = 2000  # packets at the beginning of a capture that are searched for its ports
EXTRAS = (
    ("velodyne_decoder", "velodyne-decoder", "lidar", "Velodyne"),
    ("ouster.sdk", "ouster-sdk", "ouster", "Ouster"),
)


class Lidar(Source):
    """Sweeps from the network or from a capture."""

    def __init__(
        self,
        *,
        sensor: str,
        options: dict[str, Any] | None = None,
        device: str | None = None,
        port: int | None = None,
        bind: str = "0.0.0.0",
        source: str = "",
        realtime: bool = True,
        loop: bool = False,
        offset_ms: float | None = None,
        rig: str | None = None,
    ) -> None:
        """
        Args:
            sensor: "velodyne", "ouster", "hesai", "ouster_imu", or module:Name of a PacketDecoder.
            options: Of the sensor's decoder (docs/lidar.md): cut_deg, min_range_m, max_range_m, metadata, …
            device: null: the network; or the path of a .pcap.
            port: The UDP port that its packets are sent to (1 to 65535). null: the sensor's usual one.
            bind: Listen on this address only. Default: on all.
            source: Accept packets from this address only, where several sensors send to one port. Empty: from the first
                that sends what the decoder can read, until the sensor is lost. Those of others are counted.
            realtime: false delivers a capture's sweeps as fast as the receivers read.
            loop: Start a capture again at its end.
            offset_ms: Added to every capture time (ms), for a constant delay measured by `calibrate time`. null: as the
                rig has it, else 0.
            rig: A rig file that has the offset under this node's name.
        """
        super().__init__(offset_ms=offset_ms, rig=rig)
        if port is not None and not 0 < port < 65536:
            raise ConfigError(f"port must be from 1 to 65535, not {port}.")
        self.sensor, self.options, self.device = sensor, options, device
        self.bind, self.source, self.realtime, self.loop = bind, source, realtime, loop
        self._decoder = make(sensor, options, where="lidar")  # wrong options are reported before the run
        self.port = port
        self._receiver: Receiver | None = None
        self._capture: Path | None = None

    @classmethod
    def doctor(cls) -> Iterable[Finding]:
        for module, package, extra, kind in EXTRAS:
            here = find_spec(module.partition(".")[0]) is not None and find_spec(module) is not None
            yield Finding(here, f"{package}: reads packets of {kind} lidars", "" if here else setup_command(extra))
        limit = largest_buffer_bytes()
        if limit is not None:
            fix = f"sudo sysctl -w net.core.rmem_max={BUFFER_BYTES}   # else packets are lost under load"
            small = limit < BUFFER_BYTES
            yield Finding(
                None if small else True, f"UDP receive buffer of up to {limit >> 10} KiB", fix if small else ""
            )

    def open(self) -> None:
        super().open()
        self._decoder = self._begin_decoder()
        if self.device is not None:
            self._open_capture(Path(self.device))
        else:
            self._open_network()
        self.context.metrics.facts["device"] = self._description

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
        self._receiver = self._capture = None

    def info(self) -> StreamInfo:
        encoding = "imu_f64" if self.sensor.endswith("_imu") else "points_xyzit_f32"
        return StreamInfo(self.name, encoding, self._decoder.rate_hz, 1, self.name, self._description)

    def frames(self, clock: Clock) -> Iterator[Frame]:
        return self._network_frames(clock) if self._receiver is not None else self._capture_frames(clock)

    @property
    def _where(self) -> str:
        return f"lidar '{self.name}'"

    @property
    def _description(self) -> str:
        place = (
            self._capture.name if self._capture else f"UDP port {self._receiver.port if self._receiver else self._port}"
        )
        return f"{self._decoder.describe()}, {place}"

    @property
    def _port(self) -> int:
        return self.port or self._decoder.port

    def _begin_decoder(self) -> PacketDecoder:
        decoder = make(self.sensor, self.options, where=self._where)
        decoder.open()
        return decoder

    def _need_metadata(self) -> None:
        if message := self._decoder.needs_metadata():
            raise ConfigError(f"{self._where}: {message}")

    def _count(self, lost: Counter[str]) -> None:
        for reason, count in lost.items():
            if count:
                self.context.metrics.drop(self.name, reason, count)

    # Captures

    def _open_capture(self, path: Path) -> None:
        self._capture = path
        first = list(islice(datagrams(path, Counter()), PORTS_FROM))
        if not first:
            raise ConfigError(f"{self._where}: {path}: no UDP packet in it.")
        packets = Counter((d.port, d.source) for _, d in first if not self.source or d.source == self.source)
        fitting = {key: n for key, n in packets.items() if key[0] == self._port} or ({} if self.port else packets)
        if not fitting:
            ports = ", ".join(sorted({f"{d.port} from {d.source}" for _, d in first}))
            filter_text = f"to port {self._port} from {self.source or 'anywhere'}"
            raise ConfigError(f"{self._where}: {path}: no packets {filter_text}. It has: {ports}.")
        self._selected = max(fitting, key=lambda key: fitting[key])
        self._load_metadata(path)
        self._need_metadata()

    def _load_metadata(self, path: Path) -> None:
        if self._decoder.needs_metadata() and (beside := metadata_beside(path)) is not None:
            self._decoder.take_metadata(read_bytes(beside).decode(errors="replace"))

    def _packets(self, path: Path) -> Iterator[tuple[int, Datagram]]:
        """(time since the capture's first packet, packet)."""
        first_ns: int | None = None
        for time_ns, datagram in datagrams(path, Counter()):
            first_ns = time_ns if first_ns is None else first_ns
            if (datagram.port, datagram.source) == self._selected:
                yield time_ns - first_ns, datagram

    def _capture_frames(self, clock: Clock) -> Iterator[Frame]:
        assert self._capture is not None
        path, began_ns, turn_ns = self._capture, clock.now_ns(), 0
        while True:
            at_ns = turn_ns + clock.start_ns
            for time_ns, datagram in self._packets(path):
                at_ns = clock.start_ns + turn_ns + time_ns
                for sweep in self._decoder.take(datagram.payload, at_ns):
                    self._count(self._decoder.take_lost())
                    if self.realtime and at_ns < began_ns - NS:
                        self.dropped(1, "missed while restarting")
                        continue
                    if self.realtime and not clock.sleep_until(at_ns, self.context.stopping):
                        return
                    yield sweep.frame(self.name)
            for sweep in self._decoder.finish():
                yield sweep.frame(self.name)
            self._count(self._decoder.take_lost())
            if not self._decoder.understood:
                raise ConfigError(
                    f"{self._where}: {path}: '{self.sensor}' can read none of the packets to port {self._selected[0]}."
                )
            if not self.loop:
                return
            turn_ns = at_ns - clock.start_ns + NS // 10  # the capture ends within a sweep
            self._decoder = self._begin_decoder()
            self._load_metadata(path)

    # The network

    def _open_network(self) -> None:
        self._need_metadata()
        if not self._port:
            raise ConfigError(f"{self._where}: `port` is missing, and '{self.sensor}' has no usual one.")
        clock = self.context.clock
        self._receiver = receiver = Receiver(
            self._port, clock=clock, where=self._where, bind=self.bind, source=self.source
        )
        self.context.metrics.facts["receive buffer"] = f"{receiver.buffer_bytes >> 10} KiB"
        until_ns, sizes = clock.now_ns() + round(OPEN_TIMEOUT_S * NS), set()
        while not self._decoder.understood:  # a readable packet confirms the sensor and its model
            if self.context.stopping.is_set():
                return
            for packet, arrival_ns, sender in self._take(receiver):
                sizes.add(len(packet))
                self._decoder.take(packet, arrival_ns)
                if self._decoder.understood:
                    receiver.accept_only(sender)
                    self.context.metrics.facts["packets from"] = sender
                    break
            if clock.now_ns() > until_ns:
                raise DeviceError(f"{self._where}: {self._silent(OPEN_TIMEOUT_S, sizes)}", retry=True)

    def _silent(self, waited_s: float, sizes: set[int]) -> str:
        if sizes:
            lengths = ", ".join(map(str, sorted(sizes)[:4]))
            return (
                f"packets of {lengths} bytes come to UDP port {self._port}, "
                f"none in {waited_s:.0f} s that '{self.sensor}' can read. Is it this sensor, and its metadata?"
            )
        fix = "Is it on, and is this host's address the destination of its packets? See them with: sudo tcpdump -n udp"
        return f"no packet came to UDP port {self._port} for {waited_s:.0f} s. {fix}"

    def _take(self, receiver: Receiver) -> list[tuple[bytes, int, str]]:
        try:
            return receiver.take(POLL_S)
        except OSError as error:
            raise DeviceError(f"{self._where}: UDP port {self._port} failed: {error}.", retry=True) from error

    def _network_frames(self, clock: Clock) -> Iterator[Frame]:
        receiver, decoder = self._receiver, self._decoder
        assert receiver is not None, "frames() before open()"
        # Packets that arrived while other nodes were loading only calibrated the clock: they are dropped.
        receiver.forget()
        for _ in decoder.finish():
            pass
        decoder.take_lost()
        understood, last_packet_ns, sizes = decoder.understood, clock.now_ns(), set[int]()
        while not self.context.stopping.is_set():
            for packet, arrival_ns, _ in self._take(receiver):
                sizes.add(len(packet))
                for sweep in decoder.take(packet, arrival_ns):
                    self._count(decoder.take_lost())
                    yield sweep.frame(self.name)
            self._count(decoder.take_lost())
            self._count(receiver.take_lost())
            if decoder.understood != understood:
                understood, last_packet_ns = decoder.understood, clock.now_ns()
                sizes.clear()
            elif clock.now_ns() - last_packet_ns >= LOST_AFTER_S * NS:
                for sweep in decoder.finish():
                    yield sweep.frame(self.name)
                self._count(decoder.take_lost())
                raise DeviceError(f"{self._where}: {self._silent(LOST_AFTER_S, sizes)}", retry=True)
