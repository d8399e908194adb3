"""The lidar node on a real socket: packets sent over the loopback, at the rate at which a sensor sends them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from lidars import garbage, ouster, sent, vlp16
from running import a_file, running, wait_for

from nodes.lidar import Lidar
from pipeline.clock import NS, LiveClock
from pipeline.errors import DeviceError
from pipeline.frame import Frame
from pipeline.node import Context
from pipeline.recording.reader import Reader
from pipeline.sensors.lidar.udp import NOT_READ, OTHER_SENDER, OVERLOAD, Receiver

pytestmark = pytest.mark.system
pytest.importorskip("velodyne_decoder", reason="needs the extra lidar: scripts/setup lidar")


@pytest.fixture
def udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def sending(port: int, packets: Sequence[tuple[bytes, int]], *, again: bool = False) -> Iterator[threading.Event]:
    """Sends each packet at its time, counted from now; `again`: from the beginning, for ever. Set the event to hold
    still."""
    quiet, ended = threading.Event(), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not ended.is_set():
                start_s, first_ns = time.monotonic(), packets[0][1]
                for packet, at_ns in packets:
                    if (wait_s := start_s + (at_ns - first_ns) / NS - time.monotonic()) > 0.002 and ended.wait(wait_s):
                        return
                    if not quiet.is_set():
                        sender.sendto(packet, ("127.0.0.1", port))
                if not again:
                    return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield quiet
    finally:
        ended.set()
        thread.join()


@contextmanager
def opened(node: Lidar) -> Iterator[Iterator[Frame]]:
    node.context = Context("roof", LiveClock())
    node.open()
    try:
        yield node.frames(node.context.clock)
    finally:
        node.context.stopping.set()
        node.close()


def endless(turns: int) -> list[tuple[bytes, int]]:
    return sent(vlp16(75 * turns)[0])


@pytest.mark.paced
def test_sweeps_of_the_network_are_stamped_by_the_sensor_s_clock(udp_port):
    node = Lidar(sensor="velodyne", port=udp_port, options={"cut_deg": 0.0})
    with sending(udp_port, endless(40)), opened(node) as frames:
        sweeps = list(islice(frames, 15))
    now_ns = time.monotonic_ns()
    steps_ns = np.diff([f.capture_ns for f in sweeps[1:]])
    reported_ns = max(
        f.clock_error_ns for f in sweeps[1:]
    )  # the sender is a thread of a test on a busy machine, and late
    assert np.abs(steps_ns - 900 * 110_592).max() < 1_000_000 + reported_ns and reported_ns < 50_000_000
    assert sweeps[-1].end_ns <= now_ns and [f.reason for f in sweeps[1:]] == [""] * 14
    assert "only" in sweeps[0].reason
    assert node.context.metrics.dropped() == {} and node.info().description == f"Velodyne VLP16, UDP port {udp_port}"


@pytest.mark.paced
def test_garbage_on_the_port_is_counted_and_the_sweeps_stay_whole(udp_port):
    mixed = list(endless(30))
    for k, packet in enumerate(garbage(1000, 1206)):
        mixed.insert(200 + 2 * k, (packet, mixed[200 + 2 * k - 1][1]))
    node = Lidar(sensor="velodyne", port=udp_port)
    with sending(udp_port, mixed), opened(node) as frames:
        sweeps = list(islice(frames, 22))
    assert [f.reason for f in sweeps[1:]] == [""] * 21
    assert set(node.context.metrics.dropped()["roof"]) == {"malformed packets"}
    assert 900 <= node.context.metrics.dropped()["roof"]["malformed packets"] <= 1000


def test_a_lidar_without_packets_is_lost_with_a_reason(udp_port):
    node = Lidar(sensor="velodyne", port=udp_port)
    with sending(udp_port, endless(60), again=True) as quiet, opened(node) as frames:
        next(frames)
        quiet.set()
        with pytest.raises(DeviceError, match=f"no packet came to UDP port {udp_port} for 2 s.*destination") as caught:
            for frame in frames:
                last = frame
        assert caught.value.retry and "the packets ended" in last.reason


def test_packets_of_another_sensor_are_recognised_by_their_size(udp_port, monkeypatch):
    monkeypatch.setattr("nodes.lidar.OPEN_TIMEOUT_S", 1.0)
    node = Lidar(sensor="velodyne", port=udp_port)
    message = "packets of 1080 bytes come to UDP port .* none in 1 s that 'velodyne' can read"
    foreign = [(b"x" * 1080, k * 10_000_000) for k in range(100)]
    with sending(udp_port, foreign, again=True), pytest.raises(DeviceError, match=message), opened(node):
        pass


def test_a_port_that_is_taken_and_an_address_that_is_not_here_say_so(udp_port):
    with Receiver(udp_port, clock=LiveClock(), where="lidar 'one'"), pytest.raises(DeviceError, match="ss -ulpn"):
        Receiver(udp_port, clock=LiveClock(), where="lidar 'two'")
    with pytest.raises(DeviceError, match=r"No interface here has the address 192.0.2.1.*ip addr"):
        Receiver(udp_port, clock=LiveClock(), where="lidar 'two'", bind="192.0.2.1")


def test_a_packet_is_stamped_when_it_came_not_when_it_was_read(udp_port):
    if sys.platform != "linux":
        pytest.skip("the kernel's stamps are Linux's")
    clock = LiveClock()
    receiver = Receiver(udp_port, clock=clock, where="lidar")
    try:
        with (
            receiver._changed,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):  # the thread cannot go on to read
            sender.sendto(b"first", ("127.0.0.1", udp_port))
            time.sleep(0.05)
            before_ns = clock.now_ns()
            sender.sendto(b"second", ("127.0.0.1", udp_port))
            after_ns = clock.now_ns()
            time.sleep(0.2)
        got = []
        wait_for(lambda: got.extend(receiver.take(0.1)) or len(got) == 2, "two packets")
    finally:
        receiver.close()
    assert before_ns - 1_000_000 <= got[1][1] <= after_ns + 1_000_000


def test_what_the_kernel_drops_is_counted(udp_port):
    if sys.platform != "linux":
        pytest.skip("only Linux counts them")
    receiver = Receiver(udp_port, clock=LiveClock(), where="lidar")
    packet, count = bytes(60_000), 0
    try:
        with receiver._changed, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while count * len(packet) < 6 * receiver.buffer_bytes:
                sender.sendto(packet, ("127.0.0.1", udp_port))
                count += 1
        got, lost, last = 0, 0, b""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for k in range(100):  # the count comes with a packet that found room
                sender.sendto(probe := b"%d" % k, ("127.0.0.1", udp_port))
                count += 1
                while taken := receiver.take(0.1):
                    got, last = got + len(taken), taken[-1][0]
                lost += receiver.take_lost()[NOT_READ]
                if last == probe and k > 2:
                    break
    finally:
        receiver.close()
    assert lost > 0 and got + lost == count


def test_only_the_sensor_that_was_named_is_listened_to(udp_port):
    node = Lidar(sensor="velodyne", port=udp_port, source="127.0.0.1")
    with sending(udp_port, endless(20)), opened(node) as frames:
        assert next(frames).encoding == "points_xyzit_f32"
    with (
        Receiver(udp_port, clock=LiveClock(), where="lidar", source="10.9.8.7") as receiver,
        sending(udp_port, endless(1)),
    ):
        assert receiver.take(0.3) == []
        assert receiver.take_lost()[OTHER_SENDER] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on its loopback")
def test_packets_of_another_sender_are_counted_and_are_in_no_sweep(udp_port):
    """Another program sends what looks like packets of the sensor, as fast as it does."""
    node = Lidar(sensor="velodyne", port=udp_port)
    forged, ended = endless(1)[0][0], threading.Event()

    def forge() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.3", 0))
            while not ended.wait(0.001):
                sender.sendto(forged, ("127.0.0.1", udp_port))

    with sending(udp_port, endless(20)), opened(node) as frames:
        assert node.context.metrics.facts["packets from"] == "127.0.0.1"
        threading.Thread(target=forge, daemon=True).start()
        sweeps = list(islice(frames, 4))
        ended.set()
    assert all(len(sweep.data) == 900 * 32 for sweep in sweeps[1:])
    assert node.context.metrics.dropped()["roof"][OTHER_SENDER] > 50


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on its loopback")
def test_sender_of_what_is_no_packet_of_the_sensor_does_not_keep_the_sensor_out(udp_port):
    node = Lidar(sensor="velodyne", port=udp_port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
        first.bind(("127.0.0.3", 0))
        sensor = sending(udp_port, endless(20))

        def send() -> None:
            for _ in range(100):
                first.sendto(b"no packet", ("127.0.0.1", udp_port))
                time.sleep(0.01)

        rubbish = threading.Thread(target=send)
        rubbish.start()
        with sensor, opened(node) as frames:
            assert next(frames).encoding == "points_xyzit_f32"
            assert node.context.metrics.facts["packets from"] == "127.0.0.1"
        rubbish.join()


def test_what_waits_is_bounded_in_bytes(udp_port, monkeypatch):
    monkeypatch.setattr("pipeline.sensors.lidar.udp.MAX_QUEUE_BYTES", 100_000)
    with (
        Receiver(udp_port, clock=LiveClock(), where="lidar") as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(20):
            sender.sendto(bytes(30_000), ("127.0.0.1", udp_port))
            time.sleep(0.01)
        assert len(receiver.take(0.3)) == 3
        assert receiver.take_lost()[OVERLOAD] == 17


@pytest.mark.paced
def test_an_ouster_is_asked_for_its_metadata(udp_port, tmp_path):
    pytest.importorskip("ouster.sdk", reason="needs the extra ouster: scripts/setup ouster")
    import http.server

    metadata, raw, _ = ouster(12)

    class Sensor(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metadata.encode()
            self.send_response(200 if self.path == "/api/v1/sensor/metadata" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sensor)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        node = Lidar(sensor="ouster", port=udp_port, options={"address": f"127.0.0.1:{server.server_port}"})
        with sending(udp_port, sent(raw, every_ns=NS // 640)), opened(node) as frames:
            sweeps = list(islice(frames, 5))
    finally:
        server.shutdown()
    nobody = Lidar(sensor="ouster", port=udp_port, options={"address": "127.0.0.1:1"})
    with pytest.raises(DeviceError, match="does not send its metadata.*Is it on"), opened(nobody):
        pass
    assert all(len(f.data) == 64 * 1024 for f in sweeps[1:]) and node.info().rate_hz == 10.0


@pytest.mark.paced
def test_a_lidar_runs_in_a_graph_and_its_sweeps_are_recorded(udp_port, folder):
    config = a_file(
        folder,
        f"lidar: {{use: lidar, sensor: velodyne, port: {udp_port}}}\nconsole: {{use: console, inputs: [health]}}",
    )
    with (
        sending(udp_port, endless(150)),
        running(folder, "record", config, "drive.mcap", "--for", "3s", "--no-dashboard") as run,
    ):
        assert run.wait() == 0, run.err
    with Reader(folder / "drive.mcap") as recording:
        frames = [m.message for m in recording.messages(["lidar"])]
    sweeps = [f for f in frames if isinstance(f, Frame) and f.encoding == "points_xyzit_f32"]
    assert 20 <= len(sweeps) <= 32 and all(len(f.data) == 900 * 32 for f in sweeps[1:-1])


def test_an_extra_that_is_missing_says_what_to_do(tmp_path):
    script = (
        "import sys; sys.modules['velodyne_decoder'] = None\n"
        "from nodes.lidar import Lidar; from pipeline.node import Context\n"
        "node = Lidar(sensor='velodyne'); node.context = Context('roof')\n"
        "try: node.open()\n"
        "except Exception as error: print(error)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path
    ).stdout
    assert "lidar 'roof'" in output and "velodyne-decoder" in output and "scripts/setup lidar" in output
