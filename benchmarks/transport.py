"""Frames from one process to another: Sensorium's wire beside plain pyzmq, imagezmq and iceoryx2.

    scripts/setup bench
    python -m benchmarks.transport [--runs 5] [--json out.json] [--only sensorium,pyzmq]

The unit is one copy of the same payload inside one process, between buffers too many for the cache, measured before
each run: so the figures of a slow or busy machine say the same. Systems take turns; medians of all runs. *p50* is from
just before the send, the picture being there, to the moment the reader has it as an array and has looked into it
("borrowed": it was drawn in place). *CPU* is of both processes, a frame. Each payload carries its number at both ends and in between: a
frame that shows two numbers is torn. pyzmq sends arrays as its manual does (a JSON header, then the data, not copied).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "1080p": ((1080, 1920, 3), "uint8"),
    "lidar": ((30_000, 4), "float32"),
    "audio": ((320,), "float32"),
}
SYSTEMS = ("sensorium", "sensorium borrowed", "pyzmq", "imagezmq", "iceoryx2", "iceoryx2 borrowed")
MARKS = 8  # places in a payload where its number stands
WARM_UP = 10


# --- the systems ------------------------------------------------------------------------------------------------------


class Sender(Protocol):
    def borrow(self) -> np.ndarray | None:
        """An array of the sender's to draw in; None: it has none to give."""

    def send(self, array: np.ndarray) -> None: ...

    def serve(self) -> None:
        """Called while nothing is sent."""

    def close(self) -> None: ...


class Receiver(Protocol):
    def receive(self) -> list[np.ndarray]:
        """What has come; waits for at most 50 ms."""

    ready: bool


class SensoriumSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        from pipeline.frame import Frame, StreamInfo
        from pipeline.transport.publisher import Publisher

        self._publisher = Publisher(address, StreamInfo(Path(address).stem, "", 30.0))
        self._kind, self._payload, self._borrowed, self._seq = Frame, payload, borrowed, 0
        self._encoding: Any = {"1080p": "bgr8", "lidar": "points_xyzi_f32", "audio": "pcm_f32"}[payload]

    def borrow(self) -> np.ndarray | None:
        return self._publisher.borrow(*SHAPES[self._payload]) if self._borrowed else None

    def send(self, array: np.ndarray) -> None:
        self._seq += 1
        # A Frame makes its array read-only.
        self._publisher.send(self._kind("camera", self._seq, time.monotonic_ns(), self._encoding, array.view()))

    def serve(self) -> None:
        self._publisher.service(timeout_ms=10)

    def close(self) -> None:
        self._publisher.close(ended=True)


class SensoriumReceiver:
    """What `pipeline.subscribe` does, for several streams; flat out with flow control, as behind a file."""

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        from pipeline.frame import Frame
        from pipeline.transport.credits import INITIAL_CREDITS
        from pipeline.transport.poller import Poller
        from pipeline.transport.subscriber import Subscriber

        self._kind, self._flat_out = Frame, flat_out
        self._connections = [Subscriber(a, "bench", credits=INITIAL_CREDITS if flat_out else None) for a in addresses]
        self._bells = Poller(self._connections)

    @property
    def ready(self) -> bool:
        self.receive()
        return all(connection.info for connection in self._connections)

    def receive(self) -> list[np.ndarray]:
        for connection in self._connections:
            connection.keep_alive()
        arrays = []
        for connection in self._bells.wait(50):
            value, _ = connection.receive()
            if isinstance(value, self._kind):
                arrays.append(value.data)
                if self._flat_out:
                    connection.grant_credits(1)
        return arrays


class PyzmqSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        import zmq

        self._socket = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.set_hwm(2)  # no more of the buffers in flight than there are
        self._socket.bind(address)

    def borrow(self) -> np.ndarray | None:
        return None

    def send(self, array: np.ndarray) -> None:
        import zmq

        self._socket.send_json({"dtype": str(array.dtype), "shape": array.shape}, zmq.SNDMORE)
        self._socket.send(array, copy=False)

    def serve(self) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        import zmq

        self._socket.close()
        zmq.Context.instance().term()  # waits for what is on its way


class PyzmqReceiver:
    ready = True

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        import zmq

        self._poller = zmq.Poller()
        for address in addresses:
            socket = zmq.Context.instance().socket(zmq.PULL)
            socket.set_hwm(2)
            socket.connect(address)
            self._poller.register(socket, zmq.POLLIN)

    def receive(self) -> list[np.ndarray]:
        arrays = []
        for socket, _ in self._poller.poll(50):
            header: Any = socket.recv_json()
            data = socket.recv(copy=False)
            arrays.append(np.frombuffer(data.buffer, header["dtype"]).reshape(header["shape"]))
        return arrays


class ImagezmqSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        import imagezmq

        self._sender = imagezmq.ImageSender(connect_to=address)

    def borrow(self) -> np.ndarray | None:
        return None

    def send(self, array: np.ndarray) -> None:
        self._sender.send_image("camera", array)

    def serve(self) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        self._sender.close()


class ImagezmqReceiver:
    ready = True

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        import imagezmq

        (address,) = addresses
        self._hub = imagezmq.ImageHub(open_port=address)

    def receive(self) -> list[np.ndarray]:
        if not self._hub.zmq_socket.poll(50):
            return []
        _, image = self._hub.recv_image()
        self._hub.send_reply()
        return [image]


def _iceoryx(address: str) -> tuple[Any, Any, Any]:
    """iceoryx2's node, its service for payloads and its service for wake-ups."""
    import ctypes

    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
    payloads = node.service_builder(iox.ServiceName.new(address)).publish_subscribe(iox.Slice[ctypes.c_uint8])
    payloads = payloads.subscriber_max_buffer_size(8).subscriber_max_borrowed_samples(8).enable_safe_overflow(False)
    bells = node.service_builder(iox.ServiceName.new(address + "!")).event()
    return node, payloads.open_or_create(), bells.open_or_create()


class IceoryxSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        import iceoryx2 as iox

        self._node, payloads, bells = _iceoryx(address)
        self._bytes = int(np.prod(SHAPES[payload][0])) * np.dtype(SHAPES[payload][1]).itemsize
        publisher = payloads.publisher_builder().initial_max_slice_len(self._bytes)
        self._publisher = publisher.backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create()
        self._bell = bells.notifier_builder().create()
        self._payload, self._borrowed, self._lent = payload, borrowed, None

    def borrow(self) -> np.ndarray | None:
        return self._loan() if self._borrowed else None

    def _loan(self) -> np.ndarray:
        shape, dtype = SHAPES[self._payload]
        self._lent = self._publisher.loan_slice_uninit(self._bytes)
        return np.frombuffer(self._lent.payload().as_memory_view(), dtype).reshape(shape)

    def send(self, array: np.ndarray) -> None:
        if not self._borrowed:
            np.copyto(self._loan(), array)
        self._lent.assume_init().send()  # type: ignore[attr-defined]
        self._bell.notify()

    def serve(self) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        pass


class IceoryxReceiver:
    ready = True

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        (address,) = addresses
        self._node, payloads, bells = _iceoryx(address)
        self._subscriber = payloads.subscriber_builder().create()
        self._bell = bells.listener_builder().create()
        self._samples: list[Any] = []

    def receive(self) -> list[np.ndarray]:
        import iceoryx2 as iox

        for sample in self._samples:
            sample.delete()
        self._samples.clear()
        self._bell.timed_wait(iox.Duration.from_millis(50))
        while (sample := self._subscriber.receive()) is not None:
            self._samples.append(sample)
            if len(self._samples) == 4:
                break
        return [np.frombuffer(sample.payload().as_memory_view(), np.uint8) for sample in self._samples]


SENDERS: dict[str, type[Any]] = {
    "sensorium": SensoriumSender,
    "pyzmq": PyzmqSender,
    "imagezmq": ImagezmqSender,
    "iceoryx2": IceoryxSender,
}
RECEIVERS: dict[str, type[Any]] = {
    "sensorium": SensoriumReceiver,
    "pyzmq": PyzmqReceiver,
    "imagezmq": ImagezmqReceiver,
    "iceoryx2": IceoryxReceiver,
}


# --- one run ----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    system: str
    payload: str
    streams: int
    rate_hz: float  # 0: flat out
    count: int  # frames a stream


def marks(array: np.ndarray) -> np.ndarray:
    """(MARKS,) int64 view into the payload: the places where the frame's number stands."""
    words = array.reshape(-1).view(np.int64)
    return words[:: (len(words) - 2) // (MARKS - 1)][:MARKS]


def send_all(case: Case, address: str) -> dict[str, float]:
    sender = SENDERS[case.system.split()[0]](address, case.payload, "borrowed" in case.system)
    shape, dtype = SHAPES[case.payload]
    drawn = [np.ones(shape, dtype) for _ in range(8)]  # more than a cache holds: each picture of a camera is new
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        sender.serve()
    started_s = time.monotonic()
    for number in range(case.count + WARM_UP):
        if number == WARM_UP:
            cpu_s = time.process_time()
        if case.rate_hz:
            due_s = started_s + number / case.rate_hz
            time.sleep(max(0.0, due_s - time.monotonic()))
        array = sender.borrow()
        array = drawn[number % len(drawn)] if array is None else array
        marks(array)[:] = number
        sent_at = array.reshape(-1).view(np.int64)[1:2]  # beside the first mark
        sent_at[0] = time.monotonic_ns()
        sender.send(array)
        del array
    used = {"cpu_s": time.process_time() - cpu_s}
    sender.close()
    return used


def receive_all(case: Case, addresses: list[str]) -> dict[str, Any]:
    receiver: Receiver = RECEIVERS[case.system.split()[0]](addresses, not case.rate_hz)
    while not receiver.ready:
        pass
    print("ready", flush=True)
    latency_ns, torn, wanted = [], 0, (case.count + WARM_UP) * len(addresses)
    received, last_s = 0, time.monotonic()
    began_s = cpu_s = 0.0
    while received < wanted and time.monotonic() < last_s + 2.0:
        for array in receiver.receive():
            sent_ns = int(array.reshape(-1).view(np.int64)[1])
            now_ns = time.monotonic_ns()
            shown = marks(array).copy()
            last_s = now_ns / 1e9
            if received == WARM_UP * len(addresses):
                began_s, cpu_s = last_s, time.process_time()
            received += 1
            torn += not (shown == shown[0]).all()
            if shown[0] >= WARM_UP:
                latency_ns.append(now_ns - sent_ns)
            del array
    cpu_s = time.process_time() - cpu_s  # before numpy's percentiles, whose first call costs as much as fifty frames
    return {
        "p50_ms": float(np.percentile(latency_ns, 50)) / 1e6,
        "p99_ms": float(np.percentile(latency_ns, 99)) / 1e6,
        "per_s": (received - WARM_UP * len(addresses) - 1) / (last_s - began_s),
        "cpu_s": cpu_s,
        "lost": wanted - received,
        "torn": torn,
    }


def copy_ms(payload: str) -> float:
    """The unit: one copy between buffers in turn, so that neither lies in the cache."""
    shape, dtype = SHAPES[payload]
    buffers = [np.ones(shape, dtype) for _ in range(16)]  # ones: memory that was never written to is not there yet
    took = []
    for i in range(160):
        begin = time.perf_counter()
        np.copyto(buffers[i % 8], buffers[8 + i % 8])
        took.append((time.perf_counter() - begin) * 1e3)
    return median(took[16:])


def run(case: Case) -> dict[str, Any]:
    unit_ms = copy_ms(case.payload)
    with run_folder() as folder:
        addresses = [f"ipc://{folder}/camera{i}.sock" for i in range(case.streams)]
        writers = [_child("send", case, [address]) for address in addresses]
        reader = _child("receive", case, addresses)
        for child in [*writers, reader]:
            assert child.stdout is not None and child.stdout.readline() == "ready\n", f"{case.system} did not start"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        figures: dict[str, Any] = json.loads(reader.communicate()[0])
        cpu_s = figures.pop("cpu_s") + sum(json.loads(writer.communicate()[0])["cpu_s"] for writer in writers)
    figures["cpu_ms"] = cpu_s * 1e3 / (case.count * case.streams)
    return figures | {"copy_ms": unit_ms}


class run_folder:
    """Where a run's sockets lie, and the folder beside it for its rings, as launch.py makes them."""

    def __enter__(self) -> Path:
        from pipeline.transport.shared_memory import shared_memory_root

        self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-"))
        base = shared_memory_root()
        assert base is not None, "this benchmark needs /dev/shm"
        self._rings = base / self._folder.name
        self._rings.parent.mkdir(
            mode=0o700, exist_ok=True
        )  # parents=True would leave it open to others, and runs refuse that
        self._rings.mkdir(mode=0o700)
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)
        shutil.rmtree(self._rings)


def _child(role: str, case: Case, addresses: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.transport", "--child", json.dumps([role, *case, addresses])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- the table --------------------------------------------------------------------------------------------------------


def cases(only: list[str]) -> Iterator[Case]:
    for system in only:
        yield Case(system, "1080p", 1, 30.0, 60)
        yield Case(system, "1080p", 1, 0.0, 300)
        if "sensorium" in system:
            yield Case(system, "1080p", 4, 30.0, 60)
        if "borrowed" not in system:
            yield Case(system, "lidar", 1, 10.0, 20)
            yield Case(system, "audio", 1, 50.0, 100)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default=",".join(SYSTEMS), help="systems, with commas between them")
    options.add_argument("--json", type=Path, help="write the figures here")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        role, *fields, addresses = json.loads(args.child)
        case = Case(*fields)
        print(json.dumps(send_all(case, *addresses) if role == "send" else receive_all(case, addresses)))
        return
    figures: dict[Case, list[dict[str, Any]]] = {}
    for turn in range(args.runs):
        for case in cases(args.only.split(",")):
            print(
                f"\r\033[Krun {turn + 1} of {args.runs}: {case.system} {case.payload}",
                end="",
                file=sys.stderr,
                flush=True,
            )
            figures.setdefault(case, []).append(run(case))
    print(file=sys.stderr)
    rows = [case._asdict() | _summary(runs) for case, runs in figures.items()]
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; in copies the median of each run's own ratio."""
    row: dict[str, Any] = {
        name: median(r[name] for r in runs) for name in ("p50_ms", "p99_ms", "per_s", "cpu_ms", "copy_ms")
    }
    row["p50_copies"] = median(r["p50_ms"] / r["copy_ms"] for r in runs)
    row["cpu_copies"] = median(r["cpu_ms"] / r["copy_ms"] for r in runs)
    row["of_memcpy"] = median(r["per_s"] * r["copy_ms"] / 1e3 for r in runs)
    return row | {name: sum(r[name] for r in runs) for name in ("lost", "torn")}


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'':<34}{'p50 ms':>8}{'p99 ms':>8}{'copies':>8}{'CPU, copies':>13}{'a second':>10}{'of memcpy':>11}{'lost':>6}{'torn':>6}"
    )
    for row in sorted(rows, key=lambda row: (row["payload"], row["streams"], not row["rate_hz"])):
        pace = f"{row['rate_hz']:.0f} Hz" if row["rate_hz"] else "flat out"
        name = f"{row['payload']} ×{row['streams']}, {pace}: {row['system']}"
        speed = f"{row['per_s']:10.0f}{row['of_memcpy']:11.2f}" if not row["rate_hz"] else " " * 21
        small = row["payload"] == "audio"
        in_copies = " " * 21 if small else f"{row['p50_copies']:8.2f}{row['cpu_copies']:13.2f}"
        print(f"{name:<42}{row['p50_ms']:8.3f}{row['p99_ms']:8.3f}{in_copies}{speed}{row['lost']:6}{row['torn']:6}")
    print(f"one copy of a 1080p frame: {median(r['copy_ms'] for r in rows if r['payload'] == '1080p'):.2f} ms")


if __name__ == "__main__":
    main()
