"""A sensor's packets from the network, each with the host time of its arrival. Linux timestamps them in the kernel, so
that a process that reads late does not make them late; elsewhere they are timestamped when read.

Example:
    with Receiver(2368, clock=clock, where="lidar 'roof'") as receiver:
        for packet, arrival_ns, sender in receiver.take(0.25): ...
        receiver.accept_only(sender)

A thread only reads, so that decoding a sweep does not lose packets. Every lost packet is counted.

Anyone who reaches the port can send to it. So packets are accepted from one sender: the configured one, or the first
whose packets the decoder could read, which `accept_only` names. Those of all others are counted, and not kept.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections import Counter, deque
from typing import Any

from pipeline.clock import NS, Clock, utc_offset_ns
from pipeline.errors import DeviceError

BUFFER_BYTES = 4 << 20  # requested from the kernel: a third of a second of the sensor with the highest rate
MAX_QUEUE = 20_000  # packets between the thread and the run: three seconds of that sensor
MAX_QUEUE_BYTES = 64 << 20  # of their packets together
MAX_BYTES = 65_535
POLL_S = 0.25  # how often the thread checks whether it should stop
OFFSET_EVERY_NS = NS  # the kernel's timestamps are in UTC, which may be set during a run
MAX_AGE_NS = NS  # a timestamp older than this on reading is from before UTC was set

_LINUX = sys.platform.startswith("linux")
_SO_TIMESTAMPNS, _SO_RXQ_OVFL, _SO_RCVBUFFORCE = 35, 40, 33  # linux/socket.h; Python has no names for them
_TIMESPEC, _COUNT = struct.Struct("@ll"), struct.Struct("@I")

NOT_READ = "packets lost in the kernel: its receive buffer was full"
OVERLOAD = "packets lost: overload"
OTHER_SENDER = "packets of other senders"


class Receiver:
    """One UDP port. bind: the address of the interface to listen on. source: only packets from this address; "": from
    any, until `accept_only`.

    Raises DeviceError where it cannot listen.
    """

    def __init__(self, port: int, *, clock: Clock, where: str, bind: str = "0.0.0.0", source: str = "") -> None:
        self._clock, self._source = clock, source
        self._offset_ns, self._offset_at_ns = 0, -OFFSET_EVERY_NS
        self._waiting: deque[tuple[bytes, int, str]] = deque()
        self._waiting_bytes = 0
        self._lost: Counter[str] = Counter()
        self._kernel_lost = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._error: OSError | None = None
        self._socket = _listen(port, bind, where)
        self.port = int(self._socket.getsockname()[1])
        self.buffer_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // (2 if _LINUX else 1)
        self._thread = threading.Thread(target=self._run, name=f"udp {self.port}", daemon=True)
        self._thread.start()

    def accept_only(self, sender: str) -> None:
        """From now on, and of what waits, only packets from this address."""
        with self._changed:
            self._source = sender
            own = [item for item in self._waiting if item[2] == sender]
            self._lost[OTHER_SENDER] += len(self._waiting) - len(own)
            self._waiting = deque(own)
            self._waiting_bytes = sum(len(packet) for packet, _, _ in own)

    def take(self, timeout_s: float) -> list[tuple[bytes, int, str]]:
        """(packet, arrival_ns, the sender's address) of all packets since the last call; waits for the first.

        Raises OSError when the port fails.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._error, timeout_s)
            if self._error is not None and not self._waiting:
                raise self._error
            taken = list(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
        return taken

    def take_lost(self) -> Counter[str]:
        with self._changed:
            lost, self._lost = self._lost, Counter()
        return lost

    def forget(self) -> None:
        """Drop everything read so far: it is from before the run."""
        with self._changed:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._lost.clear()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(2 * POLL_S)
        self._socket.close()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        space = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_COUNT.size)
        while not self._stopping.is_set():
            try:
                packet, ancillary, _, (sender, *_) = self._socket.recvmsg(MAX_BYTES, space)
            except TimeoutError:
                continue
            except OSError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify()
                return
            arrival_ns, kernel_lost = self._parse_ancillary(ancillary)
            with self._changed:
                if kernel_lost is not None and kernel_lost != self._kernel_lost:
                    self._lost[NOT_READ] += (kernel_lost - self._kernel_lost) & 0xFFFF_FFFF
                    self._kernel_lost = kernel_lost
                if self._source and sender != self._source:
                    self._lost[OTHER_SENDER] += 1
                    continue
                self._waiting_bytes += len(packet)
                while len(self._waiting) >= MAX_QUEUE or (self._waiting and self._waiting_bytes > MAX_QUEUE_BYTES):
                    self._waiting_bytes -= len(self._waiting.popleft()[0])
                    self._lost[OVERLOAD] += 1
                self._waiting.append((packet, arrival_ns, sender))
                self._changed.notify()

    def _parse_ancillary(self, ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int | None]:
        """(arrival, number of packets the kernel has dropped so far, where it is known)."""
        now_ns = arrival_ns = self._clock.now_ns()
        kernel_lost = None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
                if not 0 <= now_ns - self._offset_at_ns < OFFSET_EVERY_NS:
                    self._offset_ns, self._offset_at_ns = utc_offset_ns(self._clock)[0], now_ns
                seconds, rest_ns = _TIMESPEC.unpack_from(data)
                stamped_ns = seconds * NS + rest_ns - self._offset_ns
                if 0 <= now_ns - stamped_ns < MAX_AGE_NS:
                    arrival_ns = stamped_ns
            elif level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL and len(data) >= _COUNT.size:
                (kernel_lost,) = _COUNT.unpack_from(data)
        return arrival_ns, kernel_lost


def _listen(port: int, bind: str, where: str) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF) if _LINUX else (socket.SO_RCVBUF,):
            try:
                listening.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
                break
            except OSError:  # exceeding the system's limit needs a privilege
                continue
        for option in (_SO_TIMESTAMPNS, _SO_RXQ_OVFL) if _LINUX else ():
            _try(listening, option)
        listening.bind((bind, port))
        listening.settimeout(POLL_S)
        return listening
    except (OSError, OverflowError) as error:
        listening.close()
        fix = "Another program uses this port: see which with `ss -ulpn`, or choose another `port`."
        if isinstance(error, OSError) and error.errno in (99, 49, -2):  # EADDRNOTAVAIL on Linux, macOS; no such name
            fix = f"No interface here has the address {bind}: see them with `ip addr`, or leave `bind` out."
        raise DeviceError(f"{where}: cannot listen on UDP {bind}:{port}: {error}. {fix}", retry=True) from error


def _try(listening: socket.socket, option: int, value: Any = 1) -> None:
    try:
        listening.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError:  # an older kernel: packets are then timestamped when read, and its drops show as gaps only
        pass


def largest_buffer_bytes() -> int | None:
    """The kernel's limit for unprivileged processes; None where it is unknown."""
    try:
        with open("/proc/sys/net/core/rmem_max") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
