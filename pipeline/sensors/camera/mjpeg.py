"""MJPEG over HTTP: one JPEG after the other in a multipart answer, each dated by its `X-Timestamp` header if there is
one.

Example:
    for headers, body in multipart(response, boundary): ...      # twice a part: when it begins, and when it is whole
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np

from pipeline.clock import Clock, HeaderClock
from pipeline.credentials import without_credentials
from pipeline.errors import DeviceError
from pipeline.picture_files import decode_picture
from pipeline.sensors.camera.picture import ARRIVAL_ERROR_NS, LOST_AFTER_S, Picture, Pictures, Size, fit
from pipeline.sensors.camera.usb import import_cv2

MAX_PART_BYTES = 64 << 20  # no picture is that large: the stream has lost its framing
MAX_LINE_BYTES = 8192


def request(address: str, where: str) -> Any:
    """The response of an HTTP camera. Raises DeviceError."""
    import urllib.error  # imported late: costs 40 ms of start-up
    import urllib.request

    parts = urlsplit(address)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parts.username is not None:
        passwords.add_password(None, plain, parts.username, parts.password or "")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # cameras are on the local network
        urllib.request.HTTPBasicAuthHandler(passwords),
        urllib.request.HTTPDigestAuthHandler(passwords),
    )
    shown = without_credentials(address)
    try:
        return opener.open(plain, timeout=LOST_AFTER_S)
    except urllib.error.HTTPError as error:
        fix = " Write it as http://user:password@host/…" if error.code in (401, 403) else ""
        message = f"{where}: {shown} answered {error.code} {error.reason}.{fix}"
        raise DeviceError(message, retry=error.code >= 500) from error
    except (OSError, ValueError) as error:  # URLError is one
        reason = getattr(error, "reason", error)
        raise DeviceError(f"{where}: {shown} cannot be reached: {reason}.", retry=True) from error


def mjpeg_pictures(response: Any, address: str, within: Size, clock: Clock, where: str) -> Pictures:
    cv2 = import_cv2(where)
    header_clock = HeaderClock(clock, same_host=_is_same_host(response))
    arrival_ns = 0
    with response:
        try:
            for headers, body in multipart(response, response.headers.get_param("boundary", "")):
                if body is None:
                    arrival_ns = clock.now_ns()  # the part begins here: its length must not count as delay
                    continue
                image = decode_picture(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) if body else None
                if image is None:
                    yield "undecodable"
                    continue
                size = (image.shape[1], image.shape[0])
                if fit(size, within) != size:
                    image = cv2.resize(image, fit(size, within), interpolation=cv2.INTER_AREA)
                stamped = header_clock.stamp(headers.get("x-timestamp"), arrival_ns)
                yield Picture(image, *(stamped or (arrival_ns, ARRIVAL_ERROR_NS)))
        except (OSError, ValueError) as error:
            raise DeviceError(f"{where}: {without_credentials(address)} broke off: {error}.", retry=True) from error
    raise DeviceError(f"{where}: {without_credentials(address)} closed the connection.", retry=True)


def _is_same_host(response: Any) -> bool:
    try:
        connection = response.fp.raw._sock
        return bool(connection.getpeername()[0] == connection.getsockname()[0])
    except (AttributeError, OSError):
        return False


def multipart(response: BinaryIO, boundary: str) -> Iterator[tuple[dict[str, str], bytes | None]]:
    """Every part of a multipart stream (RFC 2046) twice: (headers, None) when it begins, (headers, body) when it is
    whole.

    Header names are in lower case. Ends where the stream ends; ValueError when it has lost its framing.
    """
    delimiter = b"--" + boundary.strip('"').removeprefix("--").encode()
    line = b""
    while True:
        while not line.startswith(delimiter):  # the preamble, and the line break behind a body
            line = response.readline(MAX_LINE_BYTES)
            if not line:
                return
        if line.rstrip().endswith(b"--") and line.rstrip() != delimiter:
            return
        headers: dict[str, str] = {}
        while (line := response.readline(MAX_LINE_BYTES)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if not line:
            return
        yield headers, None
        if "content-length" in headers:
            length = int(headers["content-length"])
            if not 0 <= length <= MAX_PART_BYTES:
                raise ValueError(f"a part of {length} bytes")
            body = response.read(length)
            if len(body) < length:
                return
            line = b""
        else:
            body, line = _read_until(response, delimiter)
            if not line:
                return
        yield headers, body


def _read_until(response: BinaryIO, delimiter: bytes) -> tuple[bytes, bytes]:
    """(body, the delimiter's line) of a part without Content-Length; an empty line where the stream ended."""
    body = bytearray()
    while line := response.readline(MAX_LINE_BYTES):
        if line.startswith(delimiter) and (not body or body.endswith(b"\n")):
            return bytes(body).removesuffix(b"\n").removesuffix(b"\r"), line
        body += line
        if len(body) > MAX_PART_BYTES:
            raise ValueError("a part without an end")
    return bytes(body), b""
