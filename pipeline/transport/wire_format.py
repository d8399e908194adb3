"""Messages ↔ bytes: the published schema (docs/wire.md). No sockets.

An envelope is a msgpack array [version, session, seq, value]. A value is an array whose first element is its type's
name ("Frame", "Prediction", …) followed by its fields in the order of frame.py. An array of numbers is [dtype, shape,
where]: `where` is the bytes themselves up to 8 KiB, else the index of the message part that follows, or, for a
subscriber that asked for it, [file, slot, generation] in shared memory (shared_memory.py). Never pickle.

Example:
    parts = Codec().encode(session, seq, frame)      # [header, pixels]
    envelope = Codec().decode(parts)                 # envelope.value.data is a read-only view of parts[1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from pipeline.errors import WireError
from pipeline.frame import AlignedSet, Frame, Health, NodeHealth, Prediction, StreamInfo
from pipeline.transport.shared_memory import SlotAddress, SlotOverwritten

VERSION = 1
# A chunk of sound travels in the header. Above, shared memory takes half the time of a message part: 54 µs, not 106, at
# 12 KiB.
INLINE_BYTES = 8 << 10

# How large arrays travel to a subscriber: "inline" as parts of the message, which every program can read; "ring" in
# shared memory; "packed" as parts again, but compressed for a network (compression.py).
Payloads = Literal["inline", "ring", "packed"]
StoreArray = Callable[[np.ndarray], SlotAddress | None]
FetchArray = Callable[[SlotAddress, tuple[int, ...], np.dtype], np.ndarray]
# Numbers only: an object dtype would mean running code that came in a message.
DTYPES = {d: np.dtype(d) for d in ("|u1", "|i1", "|b1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Bounds on what a message says: one beyond them is malformed. A time, sequence number or session fits into 63 bits.
MAX_PARTS = 1024  # of one message: the envelope, and an array each
MAX_BYTES = 512 << 20  # of all its parts together
MAX_NAME = 255  # characters of a name: of a program, a node, a socket, a verb
MAX_NUMBER = 1 << 62
Nanoseconds = Annotated[int, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="Hello"):
    """Subscriber → publisher, every half second."""

    reader: str  # the subscriber's name
    credits: int | None = None  # messages that may be on their way before the publisher waits; None: it never waits
    payloads: Payloads = "inline"
    datagram_socket: str = ""  # where it accepts small messages while it keeps up (datagrams.py)
    session: int = 0  # of the publisher, from its Welcome; 0: none yet
    expected: int = 0  # the next seq of that session: all before it was read, or counted as lost

    def __post_init__(self) -> None:
        if max(len(self.reader), len(self.datagram_socket)) > MAX_NAME:
            raise ValueError(f"a name of more than {MAX_NAME} characters")
        _check_counts(self.credits or 0, self.session, self.expected)


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="Credit"):
    """Subscriber → publisher: `count` more messages may be sent."""

    count: int

    def __post_init__(self) -> None:
        _check_counts(self.count)


class Bye(msgspec.Struct, frozen=True, array_like=True, tag="Bye"):
    """Subscriber → publisher: send no more."""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="Welcome"):
    """Publisher → subscriber: every message from the envelope's seq on is promised."""

    info: StreamInfo


class End(msgspec.Struct, frozen=True, array_like=True, tag="End"):
    """Publisher → subscriber: the stream is finished."""


class Report(msgspec.Struct, frozen=True, array_like=True, tag="Report"):
    """Node process → launcher."""

    process: Name
    nodes: tuple[NodeHealth, ...]


class Fault(msgspec.Struct, frozen=True, array_like=True, tag="Fault"):
    """Node process → launcher: a node failed for good. `exit_code` as in errors.py; `silent_s`: it did not answer."""

    node: Name
    message: str
    exit_code: int
    silent_s: float = 0.0


class Request(msgspec.Struct, frozen=True, array_like=True, tag="Request"):
    """Node → launcher: stop, mute, unmute, pause, resume, label. Launcher → node process: also begin, leave, ended."""

    verb: Name
    argument: str = ""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="Ping"):
    """Clock client → another host's clock server. sent_ns: by the client's clock."""

    sent_ns: Nanoseconds


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="Pong"):
    """The answer: when the ping arrived and when this was sent, by the server's clock."""

    sent_ns: Nanoseconds  # the ping's
    received_ns: Nanoseconds
    answered_ns: Nanoseconds


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
    session: int  # of the publisher; another number means that it was restarted
    seq: int  # +1 per message of the session; a gap is a loss
    value: Value

    def __post_init__(self) -> None:
        _check_counts(self.session, self.seq)


class _Numbered(msgspec.Struct, frozen=True, array_like=True):
    """An envelope whose value is not decoded."""

    version: int
    session: int
    seq: int
    value: msgspec.Raw

    def __post_init__(self) -> None:
        _check_counts(self.session, self.seq)


def _check_counts(*numbers: int) -> None:
    for number in numbers:
        if not 0 <= number <= MAX_NUMBER:
            raise ValueError(f"{number} cannot be a count")


class Codec:
    """Encodes and decodes for one socket; not to be shared between threads."""

    def __init__(self, fetch: FetchArray | None = None) -> None:
        """fetch: reads an array from shared memory; None for programs that do not ask for it."""
        self._parts: list[Any] = []
        self._store: StoreArray | None = None
        self._fetch = fetch
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_array)
        self._decoder = msgspec.msgpack.Decoder(Envelope, dec_hook=self._decode_array)
        self._numbers = msgspec.msgpack.Decoder(_Numbered)

    def encode(self, session: int, seq: int, value: Value, store: StoreArray | None = None) -> list[Any]:
        """Message parts: the header, then the large arrays that `store` did not accept, not copied."""
        self._parts, self._store = [], store
        header = self._encoder.encode(Envelope(VERSION, session, seq, value))
        return [header, *self._parts]

    def decode(self, parts: Sequence[Any]) -> Envelope:
        """Arrays are read-only views of `parts`, or of shared memory.

        Raises WireError for anything that is not in this schema, and SlotOverwritten for a payload that is read too
        late.
        """
        if len(parts) > MAX_PARTS or sum(map(len, parts)) > MAX_BYTES:
            raise WireError(f"more than {MAX_PARTS} parts, or than {MAX_BYTES >> 20} MiB")
        self._parts = list(parts[1:])
        try:
            envelope = self._decoder.decode(parts[0])
        except SlotOverwritten:
            raise
        except Exception as error:  # whatever rubbish makes a decoder raise, RecursionError too, it is no message
            raise WireError(f"not a message of version {VERSION}: {type(error).__name__}: {error}") from error
        if envelope.version != VERSION:
            raise WireError(f"a message of version {envelope.version}; this program supports version {VERSION}")
        return envelope

    def number(self, header: Any) -> tuple[int, int] | None:
        """(session, seq) of a message; None when it is not in this schema."""
        try:
            numbered = self._numbers.decode(header)
        except (msgspec.MsgspecError, RecursionError):
            return None
        return numbered.session, numbered.seq

    def _encode_array(self, array: Any) -> tuple[str, tuple[int, ...], bytes | int | SlotAddress]:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"cannot send a {type(array).__name__}")
        if (dtype := _NAMES.get(array.dtype)) is None:
            raise TypeError(f"cannot send an array of {array.dtype}. Supported: {', '.join(DTYPES)}")
        if array.nbytes <= INLINE_BYTES:
            return dtype, array.shape, array.tobytes()
        if self._store is not None and (address := self._store(array)) is not None:
            return dtype, array.shape, address
        self._parts.append(np.ascontiguousarray(array).data.cast("B"))
        return dtype, array.shape, len(self._parts) - 1

    def _decode_array(self, kind: type, raw: Any) -> np.ndarray:
        if kind is not np.ndarray:
            raise TypeError(f"unexpected {kind}")
        dtype, shape, where = raw
        for size in shape:
            if not isinstance(size, int) or size < 0:  # numpy would accept it: -1 means "the rest"
                raise ValueError("a size is not a count")
        if isinstance(where, list):
            if self._fetch is None:
                raise ValueError("a payload in shared memory that this program did not ask for")
            file, slot, generation = where
            return self._fetch(SlotAddress(str(file), int(slot), int(generation)), tuple(shape), DTYPES[dtype])
        if isinstance(where, int) and where < 0:  # a list would count it from its end
            raise ValueError("the index of a part is negative")
        array = np.frombuffer(self._parts[where] if isinstance(where, int) else where, DTYPES[dtype])
        return array.reshape(shape)
