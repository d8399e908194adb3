"""How large frames are compressed between hosts."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest

from pipeline.errors import WireError
from pipeline.frame import AlignedSet, Frame, Prediction
from pipeline.transport.compression import compress, decompress, is_compressed

RANDOM = np.random.default_rng(0)
DEPTH = Frame("depth", 1, 1, "depth_u16_mm", (1500 + RANDOM.normal(0, 3, (48, 64))).astype(np.uint16))
POINTS = Frame("lidar", 2, 2, "points_xyzi_f32", RANDOM.normal(0, 10, (500, 4)).astype(np.float32))
SOUND = Frame("microphone", 3, 3, "pcm_f32", RANDOM.normal(0, 0.1, 320).astype(np.float32))


@pytest.mark.parametrize("frame", [DEPTH, POINTS], ids=["depth", "points"])
def test_depth_and_points_come_back_to_the_bit(frame: Frame) -> None:
    sent = compress(frame)
    assert is_compressed(sent) and sent.data.nbytes < frame.data.nbytes
    received = decompress(sent)
    assert (received.encoding, received.data.dtype) == (frame.encoding, frame.data.dtype)
    assert np.array_equal(received.data, frame.data)
    assert not received.data.flags.writeable


def test_no_points_are_still_points() -> None:
    sweep = msgspec.structs.replace(POINTS, data=np.empty((0, 4), np.float32))
    assert decompress(compress(sweep)).data.shape == (0, 4)


def test_picture_becomes_a_jpeg_that_looks_the_same_and_stays_one() -> None:
    import cv2

    gradient = np.linspace(0, 255, 320).astype(np.uint8)
    picture = Frame("camera", 0, 0, "bgr8", np.broadcast_to(gradient[None, :, None], (240, 320, 3)).copy())
    sent = compress(picture)
    assert sent.encoding == "jpeg" and decompress(sent) is sent
    decoded = cv2.imdecode(sent.data, cv2.IMREAD_COLOR)
    assert np.abs(decoded.astype(int) - picture.data).max() < 6


def test_everything_else_is_returned_unchanged() -> None:
    prediction = Prediction("t", 0, ("a",), np.ones(1, np.float32), "a", "m@1")
    assert compress(SOUND) is SOUND
    assert compress(prediction) is prediction


def test_frames_of_a_set_are_compressed_and_decompressed() -> None:
    aligned = AlignedSet("depth", 1, {"depth": (DEPTH,), "lidar": (POINTS, POINTS), "microphone": (SOUND,)}, ())
    sent = compress(aligned)
    assert [f.encoding for many in sent.frames.values() for f in many] == [
        "depth_png",
        "points_zlib",
        "points_zlib",
        "pcm_f32",
    ]
    received = decompress(sent)
    assert np.array_equal(received.frames["lidar"][1].data, POINTS.data)
    assert not is_compressed(received)


@pytest.mark.parametrize("encoding", ["depth_png", "points_zlib"])
@pytest.mark.parametrize("data", [b"", b"nonsense", compress(POINTS).data.tobytes()[:-5]])
def test_data_that_cannot_be_decompressed_is_malformed(encoding: str, data: bytes) -> None:
    with pytest.raises(WireError):
        decompress(Frame("x", 0, 0, encoding, np.frombuffer(data, np.uint8)))


def test_points_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transport.compression.MAX_POINTS_BYTES", 1 << 20)
    bomb = np.frombuffer(zlib.compress(bytes(64 << 20)), np.uint8)
    assert bomb.nbytes < 100_000
    with pytest.raises(WireError, match="more than 1 MiB"):
        decompress(Frame("lidar", 0, 0, "points_zlib", bomb))
    fits = np.frombuffer(zlib.compress(bytes(1 << 20)), np.uint8)
    assert decompress(Frame("lidar", 0, 0, "points_zlib", fits)).data.nbytes == 1 << 20
