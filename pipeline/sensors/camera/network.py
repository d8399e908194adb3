"""Cameras at an address: MJPEG over HTTP (mjpeg.py), and whatever PyAV opens (RTSP, UDP, SRT …), dated by its stream
time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.clock import NS, Clock, PtsClock
from pipeline.credentials import without_credentials
from pipeline.errors import ConfigError, DeviceError, missing_package
from pipeline.sensors import media
from pipeline.sensors.camera.mjpeg import mjpeg_pictures, request
from pipeline.sensors.camera.picture import (
    ARRIVAL_ERROR_NS,
    LOST_AFTER_S,
    OPEN_TIMEOUT_S,
    Borrow,
    Picture,
    Pictures,
    Size,
    to_bgr,
)

KEY_FRAME_NS = 5 * NS  # a stream without a key frame for this long may never send one (gradual refresh)


def network_pictures(address: str, within: Size, clock: Clock, where: str, borrow: Borrow = np.empty) -> Pictures:
    """MJPEG over HTTP is read here and not by PyAV, because only its part headers carry a time."""
    if address.startswith("http"):
        response = request(address, where)
        if response.headers.get_content_type().startswith("multipart/"):
            return (yield from mjpeg_pictures(response, address, within, clock, where))
        response.close()
    yield from _stream_pictures(address, within, clock, where, borrow)


def _stream_pictures(address: str, within: Size, clock: Clock, where: str, borrow: Borrow) -> Pictures:
    try:
        import av
    except ImportError as error:
        raise missing_package("av", where) from error

    shown = without_credentials(address)
    with _open_stream(av, address, where) as container:
        if not container.streams.video:
            raise DeviceError(f"{where}: {shown} has no picture in it.")
        if address.startswith("http") and container.duration:
            raise ConfigError(f"{where}: {shown} is a file, not a stream. Save it and name its path.")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads would delay by a picture each
        stream.codec_context.flags |= av.codec.context.Flags.low_delay  # no delay for reordering either
        pts_clock, decodable, began_ns = PtsClock(), False, clock.now_ns()
        try:
            for packet in container.demux(stream):
                arrival_ns = clock.now_ns()
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    if decodable:  # before the first key frame nothing can be decoded, and nothing is lost
                        yield "undecodable"
                    continue
                for frame in frames:
                    # After joining in mid-stream, some decoders return grey pictures until the first key frame.
                    decodable = decodable or frame.key_frame or arrival_ns - began_ns > KEY_FRAME_NS
                    if not decodable:
                        continue
                    pts_ns = media.pts_ns(frame)
                    if frame.is_corrupt:
                        yield "corrupt"
                    elif pts_ns is None:
                        yield Picture(to_bgr(frame, within, borrow), arrival_ns, ARRIVAL_ERROR_NS)
                    else:
                        capture_ns = pts_clock.stamp_frame(pts_ns, arrival_ns)
                        yield Picture(to_bgr(frame, within, borrow), capture_ns, pts_clock.error_ns)
        except (av.error.FFmpegError, OSError) as error:
            raise DeviceError(f"{where}: {shown} broke off: {media.reason(error)}.", retry=True) from error
    raise DeviceError(f"{where}: {shown} ended.", retry=True)


def _open_stream(av: Any, address: str, where: str) -> Any:
    options = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}
    if address.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # over UDP one lost packet smears every picture up to the next key frame
    try:
        return av.open(address, options=options, timeout=(OPEN_TIMEOUT_S, LOST_AFTER_S))
    except (av.error.FFmpegError, OSError) as error:
        shown = without_credentials(address)
        raise DeviceError(f"{where}: {shown} cannot be opened: {media.reason(error)}.", retry=True) from error
