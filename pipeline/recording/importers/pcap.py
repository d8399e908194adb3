"""Network captures (.pcap): every UDP packet of a lidar, unchanged, with the capture's time.

The packets are not decoded here: a recording holds them byte for byte as "packet" frames, and the sensor's decoder
reads them on replay. IP fragments are reassembled (an Ouster packet is larger than an Ethernet frame). The sensor's
metadata JSON beside the capture becomes a "calibration" frame.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.files import open_regular
from pipeline.frame import Frame, StreamInfo
from pipeline.recording.importers.file_frames import read_bytes, text_frame
from pipeline.recording.importers.source import ImportSource, numbered

# magic, as in the file → (byte order, nanoseconds in a unit of the fraction)
MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
PCAPNG = b"\x0a\x0d\x0d\x0a"
MAX_PACKET_BYTES = 1 << 18  # libpcap's own MAXIMUM_SNAPLEN
# Link type → (bytes before the IP header, offset of the field with the protocol; None: always IP).
LINKS = {0: (4, None), 1: (14, 12), 12: (0, None), 101: (0, None), 113: (16, 14), 276: (20, 0)}
IPV4, IPV6, VLAN = 0x0800, 0x86DD, (0x8100, 0x88A8)
UDP = 17
PENDING_FRAGMENTS = (
    64  # incomplete datagrams; beyond it the oldest is given up, so that a lossy capture does not fill memory
)
# The default ports of lidars → the stream's name. A stream of another port is named by its number.
PORTS = {2368: "lidar", 2369: "lidar", 8308: "lidar/position", 7502: "lidar", 7503: "imu"}


class Datagram(NamedTuple):
    source: str
    port: int  # destination
    payload: bytes


def open_pcap(path: Path) -> ImportSource:
    """Open a capture; its frames are read later.

    Raises ConfigError for a file that is not a capture, or has another link layer; `frames` does where it is cut off.
    """
    opened = ImportSource("network capture", {}, iter(()))
    opened.frames = numbered(_frames(datagrams(path, opened.left_out["network"]), path, opened))
    return opened


def datagrams(path: Path, left_out: Counter[str]) -> Iterator[tuple[int, Datagram]]:
    """(capture time, datagram) of every UDP packet. Raises as open_pcap does; other packets are counted in left_out."""
    file = open_regular(path)
    try:
        header = file.read(24)
        if header[:4] == PCAPNG:
            fix = "Convert it with: editcap -F pcap IN.pcapng OUT.pcap"
            raise ConfigError(f"{path}: a pcapng capture, which is not supported. {fix}")
        if header[:4] not in MAGICS or len(header) < 24:
            raise ConfigError(
                f"{path}: not a network capture: it does not begin like a .pcap file. "
                "Name a file that tcpdump or Wireshark wrote"
            )
        order, unit_ns = MAGICS[header[:4]]
        (link,) = struct.unpack(order + "I", header[20:24])
        if link & 0xFFFF not in LINKS:
            raise ConfigError(
                f"{path}: link layer {link & 0xFFFF} is not supported. "
                "Supported: Ethernet, loopback, raw IP, Linux cooked"
            )
    except ConfigError:
        file.close()
        raise
    return _datagrams(file, path, order, unit_ns, link & 0xFFFF, left_out)


def _frames(received: Iterator[tuple[int, Datagram]], path: Path, opened: ImportSource) -> Iterator[Frame]:
    metadata = metadata_beside(path)
    streams: dict[tuple[str, int], str] = {}
    for capture_ns, datagram in received:
        key = (datagram.source, datagram.port)
        if (stream := streams.get(key)) is None:
            stream = streams[key] = _name(key, opened.infos)
            what = f"packets from {datagram.source} to port {datagram.port}, unchanged"
            opened.infos[stream] = StreamInfo(stream, "packet", None, 1, stream, what)
            if metadata and datagram.port not in (7503, 8308):
                name = f"{stream}/metadata"
                opened.infos[name] = StreamInfo(name, "calibration", None, 1, stream, f"{metadata.name}, unchanged")
                yield text_frame(name, capture_ns, read_bytes(metadata))
                metadata = None
        data = np.frombuffer(datagram.payload, np.uint8)
        yield Frame(stream, -1, capture_ns, "packet", data, publish_ns=capture_ns)


def _name(key: tuple[str, int], taken: dict[str, StreamInfo]) -> str:
    """The stream's name: by the port; of a second sensor at the same port with its address."""
    source, port = key
    name = PORTS.get(port, f"udp_{port}")
    return f"{name}_{source.replace('.', '_').replace(':', '_')}" if name in taken else name


def metadata_beside(path: Path) -> Path | None:
    """The sensor's metadata beside its capture: the JSON whose name is the longest prefix of the capture's name."""
    candidates = [p for p in path.parent.glob("*.json") if path.stem.startswith(p.stem)]
    return max(candidates, key=lambda p: len(p.stem), default=None)


def _datagrams(
    file: BinaryIO, path: Path, order: str, unit_ns: int, link: int, left_out: Counter[str]
) -> Iterator[tuple[int, Datagram]]:
    record = struct.Struct(order + "4I")
    with file:
        yield from _records(file, path, record, unit_ns, link, left_out)


def _records(
    file: BinaryIO, path: Path, record: struct.Struct, unit_ns: int, link: int, left_out: Counter[str]
) -> Iterator[tuple[int, Datagram]]:
    fragments: OrderedDict[tuple[bytes, int], dict[int, tuple[bytes, bool]]] = OrderedDict()
    index = 0
    while header := file.read(16):
        if len(header) < 16:
            raise ConfigError(
                f"{path}: it is cut off in the header of packet {index}. Copy it again, or shorten it with editcap"
            )
        seconds, fraction, stored_bytes, full_bytes = record.unpack(header)
        if stored_bytes > MAX_PACKET_BYTES or fraction * unit_ns >= NS:
            raise ConfigError(
                f"{path}: packet {index} of {stored_bytes} bytes at {seconds} s + {fraction}: "
                "damaged from here on. Copy it again"
            )
        raw = file.read(stored_bytes)
        if len(raw) < stored_bytes:
            raise ConfigError(f"{path}: it is cut off in packet {index}. Copy it again, or shorten it with editcap")
        index += 1
        if stored_bytes < full_bytes:
            left_out["packets that the capture itself stored in part"] += 1
            continue
        datagram = _datagram(raw, link, fragments, left_out)
        if datagram is not None:
            yield seconds * NS + fraction * unit_ns, datagram
    if fragments:
        left_out["packets with a missing fragment"] += len(fragments)


def _datagram(
    raw: bytes,
    link: int,
    fragments: OrderedDict[tuple[bytes, int], dict[int, tuple[bytes, bool]]],
    left_out: Counter[str],
) -> Datagram | None:
    """The UDP datagram in a packet, or the one that it completes. None for anything else, which is counted."""
    before, where = LINKS[link]
    try:
        if where is not None:
            (kind,) = struct.unpack_from(">H", raw, where)
            while kind in VLAN and link == 1:
                before += 4
                (kind,) = struct.unpack_from(">H", raw, before - 2)
            if kind not in (IPV4, IPV6):
                return _skip(left_out)
        packet = raw[before:]
        if packet[0] >> 4 == 6:
            return _udp(packet[40:], _address6(packet[8:24])) if packet[6] == UDP else _skip(left_out)
        if packet[0] >> 4 != 4 or packet[9] != UDP:
            return _skip(left_out)
        length, id, flags = struct.unpack_from(">HHH", packet, 2)
        body = packet[(packet[0] & 15) * 4 : length or len(packet)]  # 0: the network card fills it in
        source = ".".join(str(byte) for byte in packet[12:16])
        more, offset = bool(flags & 0x2000), (flags & 0x1FFF) * 8
        if not more and not offset:
            return _udp(body, source)
        key = (packet[12:20], id)
        parts = fragments.setdefault(key, {})
        parts[offset] = (body, more)
        if (whole := _reassemble(parts)) is not None:
            del fragments[key]
            return _udp(whole, source)
        if len(fragments) > PENDING_FRAGMENTS:
            fragments.popitem(last=False)
            left_out["packets with a missing fragment"] += 1
        return None
    except (struct.error, IndexError):
        left_out["packets shorter than their headers say"] += 1
        return None


def _skip(left_out: Counter[str]) -> Datagram | None:
    left_out["packets that are not UDP"] += 1
    return None


def _reassemble(parts: dict[int, tuple[bytes, bool]]) -> bytes | None:
    body, expected = bytearray(), 0
    for offset in sorted(parts):
        if offset != expected:
            return None
        part, more = parts[offset]
        body += part
        expected += len(part)
        if not more:
            return bytes(body)
    return None


def _udp(packet: bytes, source: str) -> Datagram:
    """Raises struct.error for a packet that is shorter than its length field."""
    _, port, length, _ = struct.unpack_from(">4H", packet)
    if not 8 <= length <= len(packet):
        raise struct.error("UDP length")
    return Datagram(source, port, packet[8:length])


def _address6(raw: bytes) -> str:
    return ":".join(raw[i : i + 2].hex() for i in range(0, 16, 2))
