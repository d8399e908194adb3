"""Video and sound files: the picture as `camera`, the sound as `microphone`, on the file's own time line from 0 on.

Sound becomes mono at 16 kHz in chunks of 20 ms, as from the microphone node, because that is what the tasks read.
Pictures are stored as JPEG; those of an MJPEG file are JPEG already, and stay unchanged. A raw import has the pictures
to the bit, and the sound at the file's own rate.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame, StreamInfo
from pipeline.picture_files import decode_picture
from pipeline.recording.importers.source import ImportSource, numbered
from pipeline.sensors import media
from pipeline.sensors.camera.picture import to_bgr

CAMERA, MICROPHONE = "camera", "microphone"
JPEG_QUALITY = 95  # faces a few dozen pixels wide must stay sharp
SAMPLE_RATE_HZ = 16_000
CHUNK_NS = NS // 50
GAP_NS = 2_000_000  # time stamps are rounded to 1 ms in some formats; a larger step is missing sound


def open_video(path: Path, *, raw: bool = False) -> ImportSource:
    """raw: pictures as "bgr8", sound at its own rate.

    Raises ConfigError for a file without decodable pictures and sound.
    """
    streams = {kind: file for kind in ("video", "audio") if (file := _stream(path, kind)) is not None}
    if not streams:
        raise ConfigError(
            f"{path}: it has neither pictures nor sound that can be decoded. If it plays elsewhere, convert it to MP4"
        )
    opened = ImportSource("media file", {}, iter(()), _expected(streams))
    parts = []
    if "video" in streams:
        rate = streams["video"].stream.average_rate
        opened.infos[CAMERA] = StreamInfo(
            CAMERA, "bgr8" if raw else "jpeg", float(rate) if rate else None, 3, CAMERA, path.name
        )
        parts.append(_pictures(streams["video"], raw, opened.left_out[CAMERA]))
    if "audio" in streams:
        sample_rate_hz = streams["audio"].stream.codec_context.sample_rate if raw else SAMPLE_RATE_HZ
        about = f"{path.name}, {sample_rate_hz} Hz mono"
        opened.infos[MICROPHONE] = StreamInfo(MICROPHONE, "pcm_f32", NS / CHUNK_NS, 1, MICROPHONE, about)
        parts.append(_sound(streams["audio"], sample_rate_hz, opened.left_out[MICROPHONE]))
    opened.frames = numbered(heapq.merge(*parts, key=lambda frame: frame.capture_ns))
    return opened


def _stream(path: Path, kind: Any) -> media.OpenFile | None:
    try:
        file = media.open_file(str(path), kind, where="import")
        if file.stream.codec_context is None:
            raise ConfigError(f"import: {path}: its {kind} has a codec that is not supported. Convert it to MP4")
        return file
    except ConfigError as error:
        if f"has no {kind}" in str(error):
            return None
        raise


def _expected(streams: dict[str, media.OpenFile]) -> int | None:
    duration_ns = next(iter(streams.values())).duration_ns
    if not duration_ns:
        return None
    rate = streams["video"].stream.average_rate if "video" in streams else None
    return round(duration_ns / NS * (float(rate or 0) + (NS / CHUNK_NS if "audio" in streams else 0)))


def _pictures(file: media.OpenFile, raw: bool, left_out: Counter[str]) -> Iterator[Frame]:
    period_ns = round(NS / (file.stream.average_rate or 25))
    next_ns, count = 0, 0
    with file:
        if file.stream.codec_context.name == "mjpeg" and not raw:
            yield from _jpegs(file, left_out)
            return
        for picture in file.frames():
            if picture is None:
                left_out["undecodable"] += 1
                continue
            time_ns = file.time_ns(picture)
            time_ns = next_ns if time_ns is None else time_ns
            next_ns, count = time_ns + period_ns, count + 1
            image = to_bgr(picture, (None, None))
            if raw:
                yield Frame(CAMERA, -1, time_ns, "bgr8", image, publish_ns=time_ns)
            else:
                encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
                yield Frame(CAMERA, -1, time_ns, "jpeg", encoded.reshape(-1), publish_ns=time_ns)
        _note_if_cut(file, next_ns, left_out)


def _jpegs(file: media.OpenFile, left_out: Counter[str]) -> Iterator[Frame]:
    """The packets of an MJPEG file are its pictures."""
    next_ns = 0
    origin_ns = (file.container.start_time or 0) * 1000
    for packet in file.container.demux(file.stream):
        raw = np.frombuffer(bytes(packet), np.uint8)
        if not raw.size:
            continue  # the end of the file
        if raw[:2].tobytes() != b"\xff\xd8" or decode_picture(raw, cv2.IMREAD_COLOR) is None:
            left_out["undecodable"] += 1
            continue
        time_ns = next_ns if packet.pts is None else media.pts_ns(packet) - origin_ns  # type: ignore[operator]
        next_ns = time_ns + round(NS / (file.stream.average_rate or 25))
        yield Frame(CAMERA, -1, time_ns, "jpeg", raw, publish_ns=time_ns)
    _note_if_cut(file, next_ns, left_out)


def _sound(file: media.OpenFile, sample_rate_hz: int, left_out: Counter[str]) -> Iterator[Frame]:
    """Chunks of 20 ms; a gap in the file's time stamps ends one early."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate_hz)
    chunk = max(1, sample_rate_hz * CHUNK_NS // NS)
    pending, origin_ns, sent = np.empty(0, np.float32), 0, 0  # origin: of the first sample since the last gap

    def length_ns(samples: int) -> int:
        return samples * NS // sample_rate_hz

    def frame(samples: np.ndarray) -> Frame:
        begin_ns = origin_ns + length_ns(sent)
        duration_ns = origin_ns + length_ns(sent + len(samples)) - begin_ns
        return Frame(MICROPHONE, -1, begin_ns, "pcm_f32", samples.copy(), duration_ns, begin_ns + duration_ns)

    def decoded_parts() -> Iterator[Any]:
        for decoded in file.frames():
            if decoded is None:
                left_out["undecodable"] += 1
            else:
                yield from resampler.resample(decoded)
        yield from resampler.resample(None)  # flush the resampler

    with file:
        for part in decoded_parts():
            time_ns = file.time_ns(part)
            expected_ns = origin_ns + length_ns(sent + len(pending))
            if time_ns is not None and abs(time_ns - expected_ns) > GAP_NS:
                if len(pending):
                    yield frame(pending)
                pending, origin_ns, sent = np.empty(0, np.float32), time_ns, 0
            pending = np.concatenate([pending, part.to_ndarray()[0]])
            while len(pending) >= chunk:
                yield frame(pending[:chunk])
                pending, sent = pending[chunk:], sent + chunk
        if len(pending):
            yield frame(pending)


def _note_if_cut(file: media.OpenFile, end_ns: int, left_out: Counter[str]) -> None:
    if file.duration_ns and end_ns < file.duration_ns - NS:
        left_out[f"the file is cut off after {end_ns / NS:.1f} of {file.duration_ns / NS:.1f} s"] += 1
