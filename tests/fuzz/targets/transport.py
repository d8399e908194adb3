"""What other processes and hosts send: messages, datagrams, compressed frames, orders of the page."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import wires

from nodes.dashboard.dashboard import Dashboard
from pipeline.errors import ConfigError, WireError
from pipeline.frame import AlignedSet, Arrival, Frame, Health, NodeHealth, StreamInfo
from pipeline.testing import NodeHarness
from pipeline.transport.compression import compress, decompress
from pipeline.transport.datagrams import MAX_BYTES, DatagramReceiver
from pipeline.transport.host_clock import HostClock
from pipeline.transport.wire_format import Bye, Codec, Credit, End, Fault, Hello, Pong, Report, Welcome
from tests.fuzz.harness import Reader, target

INFO = StreamInfo("camera", "bgr8", 30.0, 3, "front", "a test")


def _frames() -> list[Frame]:
    points = np.arange(40, dtype=np.float32).reshape(-1, 4)
    return [
        Frame("camera", 3, 10**9, "bgr8", np.arange(48, dtype=np.uint8).reshape(4, 4, 3), 33, 10**9 + 5, 7, "why"),
        Frame("lidar", 4, 10**9, "points_xyzi_f32", points),
        Frame("depth", 5, 10**9, "depth_u16_mm", np.arange(12, dtype=np.uint16).reshape(3, 4)),
        Frame("none", 6, 10**9, "none"),
    ]


def _messages() -> list[Any]:
    frames = _frames()
    health = NodeHealth("align", "running", "", 7, 1, 0.5, 12, {"camera": 3}, {"camera": {"late": 2}})
    aligned = AlignedSet("camera", 10**9, {"camera": (frames[0],)}, (wires.RECEIPT,), ("lidar",), 5, 6)
    return [*frames, aligned, wires.PREDICTION, Health(3, (health,))]


def _large() -> Frame:
    return Frame("camera", 3, 10**9, "bgr8", np.arange(9216, dtype=np.uint8).reshape(48, 64, 3))


def _joined(parts: list[Any]) -> bytes:
    """Parts of a message as one run of bytes: a length of 4 bytes before each."""
    return b"".join(len(bytes(part)).to_bytes(4, "little") + bytes(part) for part in parts)


def _parts(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(data) and len(parts) < 2000:
        size = int.from_bytes(data[at : at + 4], "little") % (1 << 21)
        parts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return parts


def _same_again(codec: Codec, value: Any) -> None:
    """What was accepted is a message: it can be sent, and is received as it is."""
    parts = codec.encode(1, 1, value)
    assert codec.decode(parts).value.__class__ is value.__class__, "a message changes its type when it is sent again"
    again = [bytes(part) for part in codec.encode(1, 1, codec.decode(parts).value)]
    assert again == [bytes(part) for part in parts], "a message that was accepted changes when it is sent again"


@target("wire", weight=200)
def wire(folder: Path) -> Reader:
    """Messages between processes and hosts (docs/wire.md)."""
    codec = Codec()

    def read(data: bytes) -> object:
        value = codec.decode(_parts(data)).value
        _same_again(codec, value)
        return value

    samples = [_joined(codec.encode(1, i, value)) for i, value in enumerate([*_messages(), _large()])]
    trees = [msgpack.unpackb(sample[4:]) for sample in samples[:-1]]
    return Reader(samples, read, trees, lambda tree: _joined([msgpack.packb(tree)]))


@target("control", weight=100)
def control(folder: Path) -> Reader:
    """Control messages of readers, processes and the launcher."""
    codec = Codec()

    def read(data: bytes) -> object:
        envelope = codec.decode([data])
        codec.number(data)
        _same_again(codec, envelope.value)
        return envelope.value

    nodes = (NodeHealth("align", "running", latency_ms={"infer": {"p50": 1.0}}, facts={"engine": "x"}),)
    values = [
        *(Hello("console", 4, "ring", "7-aa.datagrams", 5, 6), Credit(3), Bye(), Welcome(INFO), End()),
        *(Report("align", nodes), Fault("infer", "why", 2)),
    ]
    samples = [bytes(codec.encode(1, 1, value)[0]) for value in values]
    return Reader(samples, read, [msgpack.unpackb(sample) for sample in samples], msgpack.packb)


@target("datagrams", weight=40)
def datagrams(folder: Path) -> Reader:
    """Datagrams of the fast path, through a real socket."""
    codec = Codec()
    receiver = DatagramReceiver(folder)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(os.fspath(folder / receiver.name))

    def read(data: bytes) -> object:
        sender.send(data[: 2 * MAX_BYTES])
        message = receiver.receive()
        assert message is not None, "a datagram is not received"
        assert data.startswith(bytes(message)), "a datagram is not what was sent"
        return codec.decode([message]).value

    samples = [bytes(codec.encode(1, i, value)[0]) for i, value in enumerate(_messages())]
    return Reader(samples, read, [msgpack.unpackb(sample) for sample in samples], msgpack.packb)


@target("compression", weight=60)
def compression(folder: Path) -> Reader:
    """Compressed pictures, depth and points of other hosts."""
    codec = Codec()

    def read(data: bytes) -> object:
        message = codec.decode([data]).value
        if not isinstance(message, Frame | AlignedSet):
            raise WireError("not a frame")
        return decompress(message)

    compressed = [compress(frame) for frame in _frames()[1:3]]
    compressed.append(compress(Frame("lidar", 4, 9, "points_xyzit_f32", np.ones((8, 5), np.float32))))
    samples = [bytes(codec.encode(1, 1, frame)[0]) for frame in compressed]
    return Reader(samples, read, [msgpack.unpackb(sample) for sample in samples], msgpack.packb)


@target("clock", weight=40)
def clock(folder: Path) -> Reader:
    """Answers of another host's clock: whatever it says, times stay numbers."""
    codec = Codec()
    host = HostClock()

    def read(data: bytes) -> object:
        value = codec.decode([data]).value
        if not isinstance(value, Pong):
            raise WireError("not an answer")
        host.exchange(value.sent_ns, value.received_ns, value.answered_ns, value.sent_ns + 10**5)
        if host.known:
            local_ns, error_ns = host.to_local(value.answered_ns)
            assert isinstance(local_ns, int) and error_ns >= 0, "a bound on an error is negative"
            host.admits(value.answered_ns, value.sent_ns)
        return value

    values = [Pong(at, at + 10**9 + 20, at + 10**9 + 30) for at in (10**9, 2 * 10**9, 2 * 10**9 + 10**6)]
    samples = [bytes(codec.encode(0, 0, value)[0]) for value in values]
    return Reader(samples, read, [msgpack.unpackb(sample) for sample in samples], msgpack.packb)


@target("page", weight=60)
def page(folder: Path) -> Reader:
    """Orders of a browser (JSON)."""
    node = Dashboard(port=0)
    harness = NodeHarness(node)
    node.consume(Arrival("camera", _frames()[0], 10**9))

    def read(data: bytes) -> object:
        reply = node._handle_request(data.decode("utf-8", "replace"))
        if reply is None:
            return "done"
        answer = json.loads(reply)
        assert len(reply) < 8000, "a reply of more than 8000 characters"
        if answer["type"] == "refused":
            raise ConfigError(answer["reason"])
        return answer

    trees: list[Any] = [{"do": "mute", "source": "camera"}, {"do": "stop"}]
    assert harness
    return Reader([json.dumps(tree).encode() for tree in trees], read, trees, lambda tree: json.dumps(tree).encode())
