"""A camera at an address that sends JPEG after JPEG: their times, and every way in which it fails."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from cameras import HEIGHT, MS, WIDTH, camera

from nodes.synthetic import picture, picture_number
from pipeline.clock import NS, LiveClock
from pipeline.errors import DeviceError
from pipeline.frame import Frame
from pipeline.sensors.camera.mjpeg import multipart
from pipeline.sensors.camera.picture import ARRIVAL_ERROR_NS

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: scripts/setup")


class MjpegServer:
    """Serves numbered pictures.

    `header(n, taken_ns)` gives a part's X-Timestamp; `delay_s` passes between taking and sending.
    """

    def __init__(
        self,
        *,
        header: Callable[[int, int], str | None] = lambda n, taken_ns: str(taken_ns),
        rate_hz: float = 25.0,
        count: int = 10_000,
        delay_s: float = 0.03,
        with_length: bool = True,
        then_hang: bool = False,
    ) -> None:
        self.taken_ns: dict[int, int] = {}
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/missing":
                    return self.send_error(404)
                if self.path == "/private" and "Authorization" not in self.headers:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return None
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    outer.pictures(self.wfile)
                except OSError:
                    pass
                return None

            def log_message(self, *_: Any) -> None: ...

        self.header, self.period_s, self.count, self.delay_s = header, 1 / rate_hz, count, delay_s
        self.with_length, self.then_hang = with_length, then_hang
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/stream"

    def pictures(self, out: Any) -> None:
        begin_s = time.monotonic()
        self.begin_ns = time.monotonic_ns()
        for n in range(self.count):
            time.sleep(max(0.0, begin_s + n * self.period_s - time.monotonic()))
            self.taken_ns[n] = taken_ns = time.monotonic_ns()
            body = cv2.imencode(".jpg", picture(n, WIDTH, HEIGHT))[1].tobytes()
            time.sleep(self.delay_s)
            stamp = self.header(n, taken_ns)
            head = "--frame\r\nContent-Type: image/jpeg\r\n"
            head += f"Content-Length: {len(body)}\r\n" if self.with_length else ""
            head += f"X-Timestamp: {stamp}\r\n" if stamp is not None else ""
            out.write(head.encode() + b"\r\n" + body + b"\r\n")
            if self.stopping.is_set():
                return
        if self.then_hang:
            self.stopping.wait(30)

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., MjpegServer]]:
    servers: list[MjpegServer] = []

    def start(**options: Any) -> MjpegServer:
        servers.append(MjpegServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def errors_ns(server: MjpegServer, frames: list[Frame]) -> np.ndarray:
    return np.array([f.capture_ns - server.taken_ns[picture_number(f.data)] for f in frames])


def utc_seconds(n: int, taken_ns: int) -> str:
    return f"{(time.time_ns() - time.monotonic_ns() + taken_ns) / NS:.6f}"


@pytest.mark.system
@pytest.mark.paced
@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("header", [lambda n, ns: str(ns), utc_seconds], ids=["monotonic ns", "UTC seconds"])
def test_mjpeg_time_stamps_become_capture_times(serve: Any, header: Any, with_length: bool) -> None:
    server = serve(header=header, delay_s=0.03, with_length=with_length)
    node = camera(LiveClock(), device=server.url)
    node.open()
    frames = list(islice(node.frames(node.context.clock), 30))
    node.close()
    off_ns = errors_ns(server, frames)
    print(f"capture_ns off by {np.abs(off_ns).max() / MS:.3f} ms at most")
    assert np.abs(off_ns).max() < 20 * MS  # 30 ms of sending are not in it
    assert np.abs(off_ns).max() < 1 * MS and {f.clock_error_ns < 1 * MS for f in frames} == {True}
    numbers = [picture_number(f.data) for f in frames]
    assert all(b == a + 1 for a, b in pairwise(numbers))
    assert node.context.metrics.dropped() == {}


@pytest.mark.system
@pytest.mark.paced
def test_mjpeg_of_another_epoch_keeps_its_steps(serve: Any) -> None:
    epoch_ns = 1234 * NS
    server = serve(header=lambda n, ns: str(epoch_ns + n * 40 * MS), delay_s=0.0)
    node = camera(LiveClock(), device=server.url)
    node.open()
    frames = list(islice(node.frames(node.context.clock), 40))
    node.close()
    due_ns = [server.begin_ns + picture_number(f.data) * 40 * MS for f in frames]  # what the stamps tell
    assert all(abs(f.capture_ns - due) < 20 * MS for f, due in zip(frames, due_ns, strict=True))


@pytest.mark.system
@pytest.mark.paced
def test_mjpeg_without_stamps_is_stamped_on_arrival_and_says_how_sure_that_is(serve: Any) -> None:
    server = serve(header=lambda n, ns: None, delay_s=0.02)
    node = camera(LiveClock(), device=server.url)
    node.open()
    frames = list(islice(node.frames(node.context.clock), 10))
    node.close()
    assert {f.clock_error_ns for f in frames} == {ARRIVAL_ERROR_NS}
    assert (np.abs(errors_ns(server, frames)) <= ARRIVAL_ERROR_NS).all()


@pytest.mark.system
def test_address_that_closes_is_lost_and_can_be_opened_again(serve: Any) -> None:
    server = serve(count=5)
    node = camera(LiveClock(), device=server.url)
    for _ in range(2):
        node.open()
        with pytest.raises(DeviceError, match="closed the connection") as caught:
            list(node.frames(node.context.clock))
        assert caught.value.retry
        node.close()


@pytest.mark.system
@pytest.mark.paced
def test_address_that_falls_silent_is_lost_within_seconds(serve: Any) -> None:
    server = serve(count=5, then_hang=True)
    node = camera(LiveClock(), device=server.url)
    node.open()
    began_s = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        list(node.frames(node.context.clock))
    assert caught.value.retry
    assert time.monotonic() - began_s < 3
    node.close()


@pytest.mark.system
@pytest.mark.paced
def test_stopping_ends_a_wait_for_a_silent_address(serve: Any) -> None:
    server = serve(count=1, then_hang=True)
    node = camera(LiveClock(), device=server.url)
    node.open()
    threading.Timer(0.3, node.context.stopping.set).start()
    began_s = time.monotonic()
    list(node.frames(node.context.clock))
    assert time.monotonic() - began_s < 0.9
    began_s = time.monotonic()
    node.close()
    assert time.monotonic() - began_s < 1.2


@pytest.mark.system
@pytest.mark.paced
def test_slow_loop_gets_the_newest_pictures_and_the_rest_is_counted(serve: Any) -> None:
    server = serve(rate_hz=100, delay_s=0.0)
    node = camera(LiveClock(), device=server.url)
    node.open()
    source = node.frames(node.context.clock)
    first = picture_number(next(source).data)
    time.sleep(0.5)
    frames = list(islice(source, 20))
    node.close()
    last = picture_number(frames[-1].data)
    lost = node.context.metrics.dropped()["camera"]["overload"]
    assert lost > 20
    assert last - first + 1 == 1 + len(frames) + lost  # every picture is accounted for


@pytest.mark.system
def test_address_that_answers_an_error_says_which_and_hides_the_password(serve: Any) -> None:
    server = serve()
    missing = server.url.replace("/stream", "/missing").replace("http://", "http://me:secret@")
    with pytest.raises(DeviceError, match="404") as caught:
        camera(LiveClock(), device=missing).open()
    assert "secret" not in str(caught.value) and not caught.value.retry
    private = server.url.replace("/stream", "/private")
    with pytest.raises(DeviceError, match="user:password@host"):
        camera(LiveClock(), device=private).open()
    node = camera(LiveClock(), device=private.replace("http://", "http://me:secret@"))
    node.open()
    assert "secret" not in node.info().description
    node.close()


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_address_where_nobody_listens_can_be_retried(scheme: str, free_port: int) -> None:
    with pytest.raises(DeviceError) as caught:
        camera(LiveClock(), device=f"{scheme}://127.0.0.1:{free_port}/stream").open()
    assert caught.value.retry and caught.value.exit_code == 3


def test_multipart_reads_parts_with_and_without_length_after_a_preamble() -> None:
    stream = io.BytesIO(
        b"preamble\r\n--b\r\nContent-Length: 4\r\nX-A: 1\r\n\r\n\r\n--\r\n"
        b"--b\r\nX-A: 2\r\n\r\nline\r\nbreaks\n\r\n--b--\r\nepilogue"
    )
    parts = [(headers["x-a"], body) for headers, body in multipart(stream, "b") if body is not None]
    assert parts == [("1", b"\r\n--"), ("2", b"line\r\nbreaks\n")]


def test_multipart_refuses_a_part_that_claims_to_be_huge() -> None:
    stream = io.BytesIO(b"--b\r\nContent-Length: 99999999999\r\n\r\n")
    with pytest.raises(ValueError):
        list(multipart(stream, '"b"'))
