"""Camera: what was seen, and when; from files, addresses and USB."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nodes.camera import Camera, list_devices
from nodes.microphone import Microphone
from nodes.synthetic import picture, picture_number
from pipeline import capture, media
from pipeline.clock import NS, LiveClock, ManualClock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import Frame
from pipeline.node import Context

av = pytest.importorskip("av", reason="PyAV is not installed: scripts/setup")
cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: scripts/setup")

MS = 1_000_000
WIDTH, HEIGHT = 192, 96


def camera(clock: LiveClock | ManualClock | None = None, **options: Any) -> Camera:
    node = Camera(**options)
    node.context = Context("camera", clock=clock or ManualClock())
    return node


def write_film(
    path: Path, *, n: int = 50, rate: int = 25, sound_at: float | None = None, starts_at: float = 0.0
) -> Path:
    """Numbered pictures; with sound_at, a white flash and a beep begin at that second and last 200 ms.

    starts_at: the time stamp of the first picture and sample, as a recorder writes that has been running for a while.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=48000, layout="mono") if sound_at is not None else None
        for k in range(n):
            flash = sound_at is not None and sound_at <= k / rate < sound_at + 0.2
            image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8) if flash else picture(k, WIDTH, HEIGHT)
            if sound_at is not None and not flash:
                image[:] = 0
            shot = av.VideoFrame.from_ndarray(image, format="bgr24")
            shot.pts, shot.time_base = k + round(starts_at * rate), Fraction(1, rate)
            container.mux(video.encode(shot))
        container.mux(video.encode(None))
        if audio is not None and sound_at is not None:
            t_s = np.arange(48000 * n // rate) / 48000
            beep = 0.8 * np.sin(2 * np.pi * 1000 * t_s) * ((t_s >= sound_at) & (t_s < sound_at + 0.2))
            frame = av.AudioFrame.from_ndarray(beep.astype(np.float32).reshape(1, -1), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, round(starts_at * 48000)  # without a pts the encoder's own delay goes into the file
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


# Files


def test_every_picture_of_a_file_comes_at_its_time(tmp_path: Path) -> None:
    clock = ManualClock(9 * NS)
    node = camera(clock, device=str(write_film(tmp_path / "film.mp4")))
    node.open()
    frames = []
    for frame in node.frames(clock):
        assert clock.now_ns() == frame.capture_ns  # not before it happened
        frames.append(frame)
    node.close()
    assert [f.capture_ns for f in frames] == [9 * NS + k * 40 * MS for k in range(50)]
    assert [picture_number(f.data) for f in frames] == list(range(50))
    assert {(f.encoding, f.data.shape, f.data.dtype.str, f.clock_error_ns) for f in frames} == {
        ("bgr8", (HEIGHT, WIDTH, 3), "|u1", 0)
    }
    assert not frames[0].data.flags.writeable
    assert len({f.data.ctypes.data for f in frames}) == 50  # no buffer is used twice
    assert node.info().rate_hz == 25.0
    assert node.context.metrics.dropped() == {}


def test_file_is_paced_in_real_time_unless_told_otherwise(tmp_path: Path) -> None:
    path = str(write_film(tmp_path / "film.mp4", n=13))
    clock = LiveClock()
    node = camera(clock, device=path)
    node.open()
    clock.start_ns = clock.now_ns()
    late_ns = [clock.now_ns() - f.capture_ns for f in node.frames(clock)]
    assert min(late_ns) >= 0 and np.median(late_ns) < 5 * MS
    assert clock.now_ns() - clock.start_ns >= 480 * MS

    fast = camera(device=path, realtime=False)
    fast.open()
    assert len(list(fast.frames(fast.context.clock))) == 13
    assert fast.context.clock.now_ns() == 0


def test_picture_and_sound_of_a_file_share_one_timeline(tmp_path: Path) -> None:
    for suffix, starts_at in (("mp4", 0.0), ("mkv", 0.0), ("ts", 0.0), ("mkv", 100.0), ("ts", 100.0)):
        path = str(write_film(tmp_path / f"film.{suffix}", n=100, sound_at=2.0, starts_at=starts_at))
        seen = camera(ManualClock(5 * NS), device=path)
        seen.open()
        bright = [f.capture_ns for f in seen.frames(seen.context.clock) if f.data.mean() > 127]
        heard = Microphone(device=path)
        heard.context = Context("microphone", clock=ManualClock(5 * NS))
        heard.open()
        loud = [f.capture_ns for f in heard.frames(heard.context.clock) if np.abs(f.data).max() > 0.2]
        assert abs(bright[0] - loud[0]) <= 20 * MS, path  # one audio chunk
        assert abs(bright[0] - 7 * NS) <= 40 * MS, path
        assert len(bright) == 5


def test_looped_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    node = camera(device=str(write_film(tmp_path / "film.mp4", n=5)), loop=True)
    node.open()
    frames = list(islice(node.frames(node.context.clock), 12))
    assert [f.capture_ns for f in frames] == [k * 40 * MS for k in range(12)]
    assert [picture_number(f.data) for f in frames] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_file_larger_than_asked_is_scaled_down_and_a_smaller_one_left_alone(tmp_path: Path) -> None:
    path = str(write_film(tmp_path / "film.mp4", n=3))
    for options, shape in (({"width_px": 96}, (48, 96, 3)), ({"width_px": 1280}, (96, 192, 3)), ({"height_px": 24}, (24, 48, 3))):
        node = camera(device=path, **options)
        node.open()
        assert next(iter(node.frames(node.context.clock))).data.shape == shape
        node.close()


def test_film_of_a_telephone_held_upright_is_turned() -> None:
    class Turned:
        width, height, rotation = 4, 2, 90

        def reformat(self, format: str, width: int, height: int) -> av.VideoFrame:
            assert (format, width, height) == ("bgr24", 4, 2)
            image = np.zeros((2, 4, 3), np.uint8)
            image[0, 3] = 255  # top right; turned counterclockwise by 90°: top left
            return av.VideoFrame.from_ndarray(image, format="bgr24")

    image = capture.to_bgr(Turned(), (None, None))
    assert image.shape == (4, 2, 3) and image[0, 0, 0] == 255


def test_node_started_again_in_mid_run_goes_on_at_the_present(tmp_path: Path) -> None:
    clock = ManualClock()
    node = camera(clock, device=str(write_film(tmp_path / "film.mp4", n=100)))
    node.open()
    clock.advance(3 * NS)
    frames = list(node.frames(clock))
    assert [picture_number(f.data) for f in frames] == list(range(50, 100))
    assert node.context.metrics.dropped() == {"camera": {"missed while restarting": 50}}


def test_file_can_be_opened_again_after_close(tmp_path: Path) -> None:
    node = camera(device=str(write_film(tmp_path / "film.mp4", n=3)), realtime=False)
    for _ in range(2):
        node.open()
        assert len(list(node.frames(node.context.clock))) == 3
        node.close()


def test_file_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    whole = write_film(tmp_path / "whole.ts", n=100)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    node = camera(device=str(cut), realtime=False)
    node.open()
    frames = list(node.frames(node.context.clock))
    assert 20 < len(frames) < 100


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("fim.mp4", None, "no file .*Did you mean 'film.mp4'?"),
        ("nowhere/film.mp4", None, "there is no folder"),
        ("broken.mp4", b"not a film" * 500, "cannot be read as video"),
        ("empty.mp4", b"", "cannot be read as video"),
        ("sound.wav", "sound", "has no video in it, only: audio"),
        ("folder.mp4", "folder", "is a folder"),
    ],
)
def test_bad_file_is_the_users_and_says_what_is_wrong(tmp_path: Path, name: str, content: Any, said: str) -> None:
    write_film(tmp_path / "film.mp4", n=3)
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content == "sound":
        import wave

        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(1600))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        camera(device=str(path)).open()
    assert "camera 'camera'" in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("options", [{"width_px": 0}, {"rate_hz": -1.0}, {"device": "gopher://camera"}])
def test_impossible_option_is_refused_before_anything_is_opened(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Camera(**options)


# MJPEG over HTTP


class MjpegServer:
    """Serves numbered pictures. `header(n, taken_ns)` gives a part's X-Timestamp; `delay_s` passes between taking and sending."""

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
    assert {f.clock_error_ns for f in frames} == {capture.ARRIVAL_ERROR_NS}
    assert (np.abs(errors_ns(server, frames)) <= capture.ARRIVAL_ERROR_NS).all()


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
        b"preamble\r\n--b\r\nContent-Length: 4\r\nX-A: 1\r\n\r\n\r\n--\r\n--b\r\nX-A: 2\r\n\r\nline\r\nbreaks\n\r\n--b--\r\nepilogue"
    )
    parts = [(headers["x-a"], body) for headers, body in media.multipart(stream, "b") if body is not None]
    assert parts == [("1", b"\r\n--"), ("2", b"line\r\nbreaks\n")]


def test_multipart_refuses_a_part_that_claims_to_be_huge() -> None:
    stream = io.BytesIO(b"--b\r\nContent-Length: 99999999999\r\n\r\n")
    with pytest.raises(ValueError):
        list(media.multipart(stream, '"b"'))


# Network video through PyAV


@pytest.mark.system
@pytest.mark.paced
def test_udp_stream_is_stamped_within_its_stated_bound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    taken_ns: dict[int, int] = {}
    stopping = threading.Event()

    def send() -> None:
        address, options = f"udp://127.0.0.1:{port}?pkt_size=1316", {"omit_video_pes_length": "0"}
        with av.open(address, "w", format="mpegts", options=options) as container:
            stream = container.add_stream("mpeg4", rate=25, options={"g": "5"})
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
            container.flags |= 0x200  # AVFMT_FLAG_FLUSH_PACKETS
            begin_ns = time.monotonic_ns()
            for n in range(1000):
                time.sleep(max(0, begin_ns + n * 40 * MS - time.monotonic_ns()) / NS)
                taken_ns[n] = begin_ns + n * 40 * MS
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(n, WIDTH, HEIGHT), format="bgr24")))
                if stopping.is_set():
                    return

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    node = camera(LiveClock(), device=f"udp://127.0.0.1:{port}")
    try:
        node.open()
        frames = list(islice(node.frames(node.context.clock), 60))
        stopping.set()
        off_ns = np.array([f.capture_ns - taken_ns[picture_number(f.data)] for f in frames])
        print(f"capture_ns off by {np.median(off_ns) / MS:.2f} ms p50, {np.ptp(off_ns[25:]) / MS:.3f} ms spread")
        assert np.abs(off_ns[25:]).max() < 80 * MS  # a picture is sent when the next one pushes it out
        assert np.ptp(off_ns[25:]) < 5 * MS
        with pytest.raises(DeviceError) as caught:
            list(node.frames(node.context.clock))
        assert caught.value.retry
    finally:
        stopping.set()
        node.close()
        sender.join(2)


RTSP_SERVER = """
import sys, time, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
width, height, bits = 192, 96, 24
state = {}
def push(source, _):
    begin_ns = state.setdefault("begin_ns", time.monotonic_ns())
    n = state["n"] = state.get("n", -1) + 1
    time.sleep(max(0, begin_ns + n * 40_000_000 - time.monotonic_ns()) / 1e9)
    band = b"".join((b"\\xff" if n >> (bits - 1 - b) & 1 else b"\\0") * 3 * (width // bits) for b in range(bits))
    buffer = Gst.Buffer.new_wrapped(band * (height // 4) + bytes([64]) * (width * 3 * (height - height // 4)))
    buffer.pts = n * 40_000_000; buffer.duration = 40_000_000
    print(n, begin_ns + n * 40_000_000, flush=True)
    source.emit("push-buffer", buffer)
def configure(factory, media):
    state.clear()
    source = media.get_element().get_by_name("source")
    source.set_property("caps", Gst.Caps.from_string(
        f"video/x-raw,format=BGR,width={width},height={height},framerate=25/1"))
    source.connect("need-data", push)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory.set_launch("( appsrc name=source is-live=true format=time ! videoconvert ! video/x-raw,format=I420 ! "
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96 )")
factory.connect("media-configure", configure)
server.get_mount_points().add_factory("/stream", factory); server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


@pytest.mark.system
@pytest.mark.paced
def test_rtsp_stream_is_stamped_and_its_end_is_noticed(free_port: int) -> None:
    python = "/usr/bin/python3"  # GStreamer's bindings belong to the system's interpreter
    needs = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if not os.path.exists(python) or subprocess.run([python, "-c", needs], capture_output=True).returncode:
        pytest.skip("no GstRtspServer: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly")
    server = subprocess.Popen([python, "-c", RTSP_SERVER, str(free_port)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    taken_ns: dict[int, int] = {}

    def listen() -> None:
        for line in server.stdout or ():
            n, ns = line.split()
            taken_ns[int(n)] = int(ns)

    threading.Thread(target=listen, daemon=True).start()
    node = camera(LiveClock(), device=f"rtsp://127.0.0.1:{free_port}/stream")
    try:
        node.open()
        source = node.frames(node.context.clock)
        frames = list(islice(source, 75))
        late_ns = node.context.clock.now_ns() - frames[-1].capture_ns
        off_ns = np.array([f.capture_ns - taken_ns[picture_number(f.data)] for f in frames])
        spread_ms = np.ptp(off_ns[25:]) / MS
        print(f"capture_ns off by {np.median(off_ns) / MS:.2f} ms p50, {spread_ms:.2f} ms spread; {late_ns / MS:.0f} ms old")
        assert np.abs(off_ns[25:]).max() < 60 * MS
        assert spread_ms < 10
        server.kill()
        with pytest.raises(DeviceError) as caught:
            list(source)
        assert caught.value.retry
    finally:
        server.kill()
        server.wait()
        node.close()


# USB, through a fake of OpenCV's VideoCapture: there is no kernel module for a virtual camera in a container


class FakeCapture:
    """A webcam that gives `pictures` pictures and is then unplugged. stamp_ms: what the driver says, given now in ms."""

    instances: list[FakeCapture] = []

    def __init__(self, *, pictures: int = 5, opens: bool = True, stamp_ms: Callable[[float], float] = lambda now_ms: now_ms - 12):
        self.left, self.opens, self.stamp_ms = pictures, opens, stamp_ms
        self.asked: dict[int, float] = {}
        self.released = False

    def __call__(self, device: int | str, backend: int) -> FakeCapture:
        self.device = device
        return self

    def isOpened(self) -> bool:
        return self.opens

    def set(self, option: int, value: float) -> None:
        self.asked[option] = value

    def get(self, option: int) -> float:
        return self.stamp_ms(time.monotonic_ns() / MS)

    def grab(self) -> bool:
        time.sleep(0.01)
        self.left -= 1
        return self.left >= 0

    def retrieve(self, into: np.ndarray | None = None) -> tuple[bool, np.ndarray | None]:
        if self.left == 1:
            return False, None
        image = np.empty((HEIGHT, WIDTH, 3), np.uint8) if into is None else into
        image.fill(self.left)
        return True, image

    def release(self) -> None:
        self.released = True


def plug_in(monkeypatch: pytest.MonkeyPatch, webcam: FakeCapture) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", webcam)
    monkeypatch.setattr(capture, "_check_v4l2", lambda path, where: None)


def test_usb_pictures_carry_the_driver_s_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    webcam = FakeCapture(pictures=20)
    plug_in(monkeypatch, webcam)
    clock = LiveClock()
    node = camera(clock, device="2", width_px=1280, rate_hz=30.0)
    node.open()
    frames = []
    with pytest.raises(DeviceError, match="unplugged") as caught:
        for frame in node.frames(clock):
            assert 11 * MS < clock.now_ns() - frame.capture_ns < 60 * MS
            frames.append(frame)
    assert caught.value.retry and webcam.released
    assert {f.clock_error_ns for f in frames} == {capture.V4L2_ERROR_NS}
    assert webcam.device == 2
    assert (webcam.asked[cv2.CAP_PROP_FRAME_WIDTH], webcam.asked[cv2.CAP_PROP_FRAME_HEIGHT]) == (1280, 720)
    assert webcam.asked[cv2.CAP_PROP_FPS] == 30.0
    assert node.context.metrics.dropped() == {"camera": {"undecodable": 1}}
    node.close()


def test_pictures_are_decoded_into_borrowed_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a USB camera from the second on: the first tells how large they are."""
    lent: list[np.ndarray] = []

    def borrow(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        lent.append(np.empty(shape, dtype))
        return lent[-1]

    plug_in(monkeypatch, FakeCapture(pictures=5))
    film = str(write_film(tmp_path / "film.mp4", n=5))
    usb = [p.image for p in islice(capture.usb(0, (None, None), None, LiveClock(), "camera", borrow), 3) if not isinstance(p, str)]
    assert all(image is array for image, array in zip(usb[1:], lent, strict=True))
    lent.clear()
    node = camera(device=film)
    node.context.borrow = borrow
    node.open()
    file = [frame.data for frame in node.frames(node.context.clock)]
    assert all(image is array for image, array in zip(file, lent, strict=True))


@pytest.mark.parametrize("stamp_ms", [lambda now: 0.0, lambda now: now + 90_000, lambda now: 1.7e12], ids=["0", "ahead", "UTC"])
def test_usb_stamp_of_another_clock_is_not_believed(monkeypatch: pytest.MonkeyPatch, stamp_ms: Any) -> None:
    plug_in(monkeypatch, FakeCapture(pictures=200, stamp_ms=stamp_ms))
    clock = LiveClock()
    node = camera(clock)
    node.open()
    frame = next(iter(node.frames(clock)))
    assert 0 <= clock.now_ns() - frame.capture_ns < 50 * MS
    assert frame.clock_error_ns == capture.ARRIVAL_ERROR_NS
    node.close()


def test_usb_camera_that_is_busy_says_who_may_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, FakeCapture(opens=False))
    with pytest.raises(DeviceError, match="/dev/video0 is busy. See who holds it: fuser /dev/video0") as caught:
        camera(LiveClock()).open()
    assert caught.value.retry


@pytest.mark.skipif(not capture.LINUX or bool(list_devices()), reason="this machine has a camera, or is not Linux")
def test_no_camera_says_so_and_is_an_error_of_a_device() -> None:
    with pytest.raises(DeviceError, match="no camera at /dev/video0. Cameras here: none") as caught:
        camera(LiveClock()).open()
    assert caught.value.exit_code == 3
    assert [f.works for f in Camera.doctor()] == [False]


@pytest.mark.skipif(not capture.LINUX, reason="V4L2 is Linux's")
def test_device_that_is_no_camera_is_told_from_a_busy_one() -> None:
    with pytest.raises(DeviceError, match="/dev/null is not a camera"):
        camera(LiveClock(), device="/dev/null").open()
    assert os.path.exists("/dev/null")


def test_bug_in_the_reading_thread_is_not_mistaken_for_a_lost_device() -> None:
    def pictures() -> Iterator[capture.Picture | str]:
        raise ZeroDivisionError
        yield "unreachable"

    with pytest.raises(RuntimeError) as caught:
        capture.Reader(pictures()).wait(1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
