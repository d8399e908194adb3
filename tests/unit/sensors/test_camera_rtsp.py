"""Network video through PyAV, UDP and RTSP: when a picture was taken, and when the stream has ended."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from itertools import islice

import numpy as np
import pytest
from cameras import HEIGHT, MS, WIDTH, camera

from nodes.synthetic import picture, picture_number
from pipeline.clock import NS, LiveClock
from pipeline.errors import DeviceError

av = pytest.importorskip("av", reason="PyAV is not installed: scripts/setup")


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
        print(
            f"capture_ns off by {np.median(off_ns) / MS:.2f} ms p50, spread {spread_ms:.2f}; {late_ns / MS:.0f} ms old"
        )
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
