"""Messages ↔ bytes: the published schema (docs/wire.md). No sockets.

An envelope is a msgpack array [version, session, seq, value]. A value is an array whose first element is its type's name
("Frame", "Prediction", …) followed by its fields in the order of frame.py. An array of numbers is [dtype, shape, where]:
`where` is the bytes themselves up to 8 KiB, else the index of the message part that follows, or, for a reader that asked
for it, [file, slot, generation] of a ring in shared memory (ring.py). Never pickle.

    parts = Codec().encode(session, seq, frame)      # [header, pixels]
    envelope = Codec().decode(parts)                 # envelope.value.data is a read-only view of parts[1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from pipeline.errors import WireError
from pipeline.frame import AlignedSet, Frame, Health, NodeHealth, Prediction, StreamInfo
from pipeline.transport.shared_memory import SlotAddress

VERSION = 1
# A chunk of sound travels in the header. Above, a ring takes half the time of a message part: 54 µs, not 106, at 12 KiB.
INLINE_BYTES = 8 << 10

# How a reader wants large arrays: "inline" as parts of the message, which every reader understands; "ring" in shared
# memory; "packed" as parts again, but compressed for a network (packing.py).
Payloads = Literal["inline", "ring", "packed"]
PlaceArray = Callable[[np.ndarray], SlotAddress | None]
FetchArray = Callable[[SlotAddress, tuple[int, ...], np.dtype], np.ndarray]
# Numbers only: an object dtype would mean running code that came in a message.
DTYPES = {d: np.dtype(d) for d in ("|u1", "|i1", "|b1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="Hello"):
    """Reader → publisher, every half second: who reads, and how many messages may be on their way (None: do not wait)."""

    reader: str
    credits: int | None = None
    payloads: Payloads = "inline"
    express: str = ""  # where it takes small messages instead, once it has caught up (express.py)
    session: int = 0  # of the publisher, as its welcome said; 0: not heard of yet
    expected: int = 0  # the next seq of that session: all before it was read, or counted as lost


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="Credit"):
    """Reader → publisher: `count` more messages may be sent."""

    count: int


class Bye(msgspec.Struct, frozen=True, array_like=True, tag="Bye"):
    """Reader → publisher: send no more."""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="Welcome"):
    """Publisher → reader: from the envelope's seq on, every message is yours."""

    info: StreamInfo


class End(msgspec.Struct, frozen=True, array_like=True, tag="End"):
    """Publisher → reader: the stream is finished."""


class Report(msgspec.Struct, frozen=True, array_like=True, tag="Report"):
    """Node process → launcher."""

    process: str
    nodes: tuple[NodeHealth, ...]


class Fault(msgspec.Struct, frozen=True, array_like=True, tag="Fault"):
    """Node process → launcher: a node failed for good. `exit_code` as in errors.py."""

    node: str
    message: str
    exit_code: int


class Request(msgspec.Struct, frozen=True, array_like=True, tag="Request"):
    """Node → launcher (stop, mute, unmute, pause, resume, label), and launcher → node process (these, begin, leave, ended)."""

    verb: str
    argument: str = ""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="Ping"):
    """Reader → another host: what time is it there? sent_ns: by the asking host's clock."""

    sent_ns: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="Pong"):
    """The answer: when the ping came and when this left, by the answering host's clock."""

    sent_ns: int  # the ping's
    received_ns: int
    answered_ns: int


Value = (
    Frame
    | AlignedSet
    | Prediction
    | Health
    | Hello
    | Credit
    | Bye
    | Welcome
    | End
    | Report
    | Fault
    | Request
    | Ping
    | Pong
)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    version: int
    session: int  # of the publisher: another number means that it was restarted
    seq: int  # +1 per message of the session: a gap is a loss
    value: Value


class _Numbered(msgspec.Struct, frozen=True, array_like=True):
    """An envelope whose value is of no interest."""

    version: int
    session: int
    seq: int
    value: msgspec.Raw


class Codec:
    """One direction of one connection; not to be shared between threads. fetch: for a reader of rings."""

    def __init__(self, fetch: FetchArray | None = None) -> None:
        self._parts: list[Any] = []
        self._place: PlaceArray | None = None
        self._fetch = fetch
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_array)
        self._decoder = msgspec.msgpack.Decoder(Envelope, dec_hook=self._decode_array)
        self._numbers = msgspec.msgpack.Decoder(_Numbered)

    def encode(self, session: int, seq: int, value: Value, place: PlaceArray | None = None) -> list[Any]:
        """Message parts: the header, then the large arrays that `place` did not find a place for, not copied."""
        self._parts, self._place = [], place
        header = self._encoder.encode(Envelope(VERSION, session, seq, value))
        return [header, *self._parts]

    def decode(self, parts: Sequence[Any]) -> Envelope:
        """Arrays are read-only views of `parts`, or of the ring.

        Raises WireError for anything that is not ours, and ring.SlotOverwritten for what is, and comes too late.
        """
        self._parts = list(parts[1:])
        try:
            envelope = self._decoder.decode(parts[0])
        except (msgspec.MsgspecError, ValueError, TypeError, LookupError, OverflowError, OSError) as error:
            raise WireError(f"not a message of version {VERSION}: {error}") from error
        if envelope.version != VERSION:
            raise WireError(f"a message of version {envelope.version}; this program speaks version {VERSION}")
        return envelope

    def number(self, header: Any) -> tuple[int, int] | None:
        """(session, seq) of a message; None when it is not ours."""
        try:
            numbered = self._numbers.decode(header)
        except msgspec.MsgspecError:
            return None
        return numbered.session, numbered.seq

    def _encode_array(self, array: Any) -> tuple[str, tuple[int, ...], bytes | int | SlotAddress]:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"cannot send a {type(array).__name__}")
        if (dtype := _NAMES.get(array.dtype)) is None:
            raise TypeError(f"cannot send an array of {array.dtype}. What travels: {', '.join(DTYPES)}")
        if array.nbytes <= INLINE_BYTES:
            return dtype, array.shape, array.tobytes()
        if self._place is not None and (place := self._place(array)) is not None:
            return dtype, array.shape, place
        self._parts.append(np.ascontiguousarray(array).data.cast("B"))
        return dtype, array.shape, len(self._parts) - 1

    def _decode_array(self, kind: type, raw: Any) -> np.ndarray:
        if kind is not np.ndarray:
            raise TypeError(f"unexpected {kind}")
        dtype, shape, where = raw
        for size in shape:
            if not isinstance(size, int) or size < 0:  # numpy would give it a meaning
                raise ValueError("a size is a count")
        if isinstance(where, list):
            if self._fetch is None:
                raise ValueError("a payload in a ring, for a reader that did not ask for it")
            file, slot, generation = where
            return self._fetch(SlotAddress(str(file), int(slot), int(generation)), tuple(shape), DTYPES[dtype])
        if isinstance(where, int) and where < 0:  # and lists to this
            raise ValueError("a negative part")
        array = np.frombuffer(self._parts[where] if isinstance(where, int) else where, DTYPES[dtype])
        return array.reshape(shape)
