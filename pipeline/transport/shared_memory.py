"""Large payloads between processes of one host: one piece of shared memory, of equal slots, per stream.

A publisher copies a payload into a slot, or lends the slot to the source that fills it; the message over ZeroMQ or the
datagram fast path holds the slot's address. A subscriber gets a read-only view of the slot, and the slot is not written
to as long as any subscriber holds that view, or any view of it. Owns the memory and the locks; knows nothing of
messages.

Example:
    writer = SharedMemoryWriter("camera", rate_hz=30)              # the publisher
    image = writer.borrow((1080, 1920, 3), np.uint8)               # to be filled in place …
    address, image = writer.store(image)                           # … so this does not copy; other arrays are copied
    image = SharedMemoryReader().view(address, (1080, 1920, 3), image.dtype)         # another process, not copied

Why no picture outlives its run. The memory has no name in any folder (memfd): a reader opens it through its owner's
descriptor, /proc/PID/fd/N, which the kernel allows to processes of the same user alone. It is freed with the last
process that has it open, however that one ends, so there is nothing to clean, to find or to replace by a link.

Why no frame is ever torn. Each slot has a generation, and one byte of the memory stands for the slot in the kernel's
locks.
    write   take the byte's write lock (refused while a reader has it), set the generation to 0, release the lock; fill
            the slot; set a new generation, and send it with the address.
    read    take the byte's read lock. If the slot's generation is the one in the address, the view is valid until the
            lock is released, when the last reference to the view is gone. Otherwise the slot was written to first:
            SlotOverwritten, and counted.
The lock decides who came first, so no frame must be checked again after its use, and no reader copies half of two
frames. The kernel releases the locks of a process that dies, so no reader, however it ends, keeps a slot. A publisher
that dies while writing leaves generation 0, which no address names. (Flags in shared memory, without the kernel, would
need memory barriers, which Python does not have.)

A slow reader delays only itself: one that holds half the slots gets copies from then on. When all slots are held,
store() returns None: the publisher waits for a subscriber with credits, or sends the payload in the message.
"""

from __future__ import annotations

import functools
import logging
import math
import mmap
import os
import re
import secrets
import stat
import struct
import sys
import threading
import weakref
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

if sys.platform == "linux":  # elsewhere has_shared_memory() is False, and nothing of this is used
    import fcntl

log = logging.getLogger("shared memory")

# What is in use at a time: the aligner's max_wait, the window, and the inference. What needs more is copied.
DEFAULT_SPAN_S = 0.25
MIN_SLOTS, MAX_BYTES = 4, 128 << 20
DEFAULT_RATE_HZ = 30.0
SLOT_ALIGN = mmap.PAGESIZE

MAGIC = b"SNSRING2"
# Magic, number of slots, bytes per slot, the token of its name; then the generations from byte 64 on.
_HEADER = struct.Struct("<8sI4xQQ")
_GENERATIONS_AT, _SLOTS_AT = 64, 4096
_MAX_SLOTS = (_SLOTS_AT - _GENERATIONS_AT) // 8

# Process, descriptor and token: the first two find the memory, and the third proves that it still is the same.
_NAME = re.compile(r"(\d{1,10})/(\d{1,10})/([0-9a-f]{16})", re.ASCII)
_LABEL = "sensorium-"  # of a memfd, in /proc/PID/fd and /proc/PID/maps; the stream's name follows
MAX_NEVER_OPENED = 3  # addresses that a reader could not open, and none that it could: it has no access to that process


class SlotOverwritten(Exception):
    """The slot holds a later payload, or none: the reader came too late."""


class SharedMemoryUnreachable(SlotOverwritten):
    """This process cannot open the memory of the publisher's: another PID namespace, or other privileges."""


class SlotAddress(NamedTuple):
    """Where a payload lies."""

    file: str
    slot: int
    generation: int


def has_shared_memory(address: str) -> bool:
    """Whether payloads of a stream at this address can travel in shared memory: on Linux, and not over TCP."""
    return address.startswith("ipc://") and hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


class SharedMemoryWriter:
    """A publisher's end: the slots of one stream, created when the first payload shows how large a slot is."""

    def __init__(self, stream: str, rate_hz: float | None = None, span_s: float = DEFAULT_SPAN_S) -> None:
        """
        Args:
            stream: Its name, for people.
            rate_hz: Of the stream. None: DEFAULT_RATE_HZ.
            span_s: How much of the stream, in seconds, has room, up to MAX_BYTES.
        """
        self._stream = stream
        self._slots = math.ceil((rate_hz or DEFAULT_RATE_HZ) * span_s) + 2
        self._file: _WriterFile | None = None
        self._copied: tuple[tuple[int, ...], np.dtype] | None = None  # shape and type of the last payload, if copied
        self._reserved: np.ndarray | None = None  # the slot for the next copy
        self._generation = 0
        self._max_bytes = MAX_BYTES // MIN_SLOTS  # of one payload; less once the system had no memory for it
        self._lock = threading.RLock()  # a camera borrows in the thread that reads the device

    def borrow(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray | None:
        """A slot to be filled, as a writable array; it stays reserved while the array lives.

        None when every slot is held, or there is no memory.
        """
        dtype = np.dtype(dtype)
        bytes_needed = math.prod(shape) * dtype.itemsize
        with self._lock:
            if bytes_needed > self._max_bytes:
                return None
            if self._file is None or self._file.slot_bytes < bytes_needed:
                self._grow(bytes_needed)
            return self._file.claim(shape, dtype) if bytes_needed <= self._max_bytes and self._file else None

    def store(self, array: np.ndarray) -> tuple[SlotAddress, np.ndarray] | None:
        """Make `array` readable: in place if it is a borrowed slot, else as a copy. None as for borrow.

        The slot is not used again while the returned array, or a view of it, lives in this process.
        """
        with self._lock:
            slot = self._file.slot_of(array) if self._file else None
            self._copied = (array.shape, array.dtype) if slot is None else None
            if slot is None:
                target, self._reserved = self._reserved, None
                if target is None or (target.shape, target.dtype) != self._copied:
                    target = self.borrow(array.shape, array.dtype)
                if target is None:
                    return None
                np.copyto(target, array)
                array = target
                assert self._file is not None
                slot = self._file.slot_of(array)
            assert self._file is not None and slot is not None
            self._generation += 1
            self._file.generations[slot] = self._generation
            return SlotAddress(self._file.name, slot, self._generation), array

    def reserve_next(self) -> None:
        """Where payloads are copied, claim the slot of the next one now, while no subscriber waits for it."""
        with self._lock:
            if self._copied is not None and self._reserved is None and self._file is not None:
                self._reserved = self._file.claim(*self._copied)

    def close(self) -> None:
        """Existing views stay valid; new readers no longer find the memory."""
        self._file = self._reserved = None

    def _grow(self, bytes_needed: int) -> None:
        if self._file is not None:
            bytes_needed = max(bytes_needed, min(2 * self._file.slot_bytes, self._max_bytes))
        slot_bytes = -(-bytes_needed // SLOT_ALIGN) * SLOT_ALIGN
        slots = max(MIN_SLOTS, min(self._slots, MAX_BYTES // slot_bytes, _MAX_SLOTS))
        self._reserved = None
        try:
            self._file = _WriterFile(self._stream, slots, slot_bytes)
        except OSError as error:  # a container's memory may be limited
            self._max_bytes = self._file.slot_bytes if self._file else 0
            log.warning(
                "no shared memory for '%s' (%d MB): %s. Its payloads are sent in the messages.",
                self._stream,
                slots * slot_bytes >> 20,
                error,
            )


class _WriterFile:
    """The slots of one memfd, as their writer accesses them."""

    def __init__(self, stream: str, slots: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        descriptor = os.memfd_create(f"{_LABEL}{stream}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Reserved now: writing to a page that cannot be allocated would end the process, not raise an error. And
            # sealed, because reading beyond the end of one that was cut would end its readers.
            os.posix_fallocate(descriptor, 0, _SLOTS_AT + slots * slot_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # After a larger one took its place this one stays while one of its slots waits for a subscriber with credits.
        weakref.finalize(self._memory, os.close, descriptor)
        token = secrets.randbits(64)
        self.name = f"{os.getpid()}/{descriptor}/{token:016x}"
        _HEADER.pack_into(self._memory, 0, MAGIC, slots, slot_bytes, token)
        self.generations = _generations(self._memory, slots)
        self._arrays: dict[int, weakref.ref[np.ndarray]] = {}  # by slot, what claim() returned
        self._oldest_first = deque(range(slots))

    def claim(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        for _ in range(len(self._oldest_first)):
            slot = self._oldest_first[0]
            self._oldest_first.rotate(-1)
            if (claimed := self._arrays.get(slot)) is not None and claimed() is not None:
                continue
            if not _lock(self._descriptor, fcntl.F_WRLCK, slot):
                continue
            self.generations[slot] = 0
            _lock(self._descriptor, fcntl.F_UNLCK, slot)
            array: np.ndarray = np.ndarray(shape, dtype, self._memory, _SLOTS_AT + slot * self.slot_bytes)
            self._arrays[slot] = weakref.ref(array)
            return array
        return None

    def slot_of(self, array: np.ndarray) -> int | None:
        """The slot that `array` fills from its first byte on and that was not sent yet."""
        owner = array.base if isinstance(array.base, np.ndarray) else array
        for slot in reversed(self._oldest_first):
            if (claimed := self._arrays.get(slot)) is not None and claimed() is owner:
                # Reading an address takes longer than all else here, and mostly the array is that of the whole slot.
                begins = array.nbytes == owner.nbytes or _address(array) == _address(owner)
                return slot if begins and array.flags.c_contiguous and self.generations[slot] == 0 else None
        return None


class SharedMemoryReader:
    """A subscriber's end. Each subscriber has its own, because the locks belong to the open file."""

    def __init__(self, *, waited_for: bool = False) -> None:
        """waited_for: the publisher waits for this subscriber, so it may hold every slot."""
        self._max_share = 1.0 if waited_for else 0.5
        self._file: _ReaderFile | None = None
        self._never_opened = 0  # addresses that could not be opened, before the first that could

    def view(self, address: SlotAddress, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The payload, read-only; it stays unchanged while anything refers to it.

        Raises SlotOverwritten, its kind SharedMemoryUnreachable, and ValueError for an address that cannot exist.
        """
        if self._file is None or self._file.name != address.file:
            try:
                self._file = _ReaderFile(address.file, self._max_share)
                self._never_opened = -1
            except SlotOverwritten as error:
                self._never_opened += self._never_opened >= 0
                if self._never_opened == MAX_NEVER_OPENED:
                    raise SharedMemoryUnreachable from error
                raise
        return self._file.view(address.slot, address.generation, shape, dtype)

    def forget(self) -> None:
        """Let the memory of a publisher go that has been replaced; existing views stay valid."""
        self._file, self._never_opened = None, 0


class _ReaderFile:
    """The slots of one memfd, as a subscriber accesses them."""

    def __init__(self, name: str, max_share: float) -> None:
        self.name = name
        descriptor = _open(name)
        self._descriptor = descriptor
        # The locks last until the last view is gone, because the mapping has the file open too.
        weakref.finalize(self, os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.fstat(descriptor).st_size < _SLOTS_AT:
            raise SlotOverwritten
        # Not populated: that would take the receiver thread 10 ms, and a node that reads a picture loses little time.
        self._memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        magic, slots, self._slot_bytes, token = _HEADER.unpack_from(self._memory)
        if magic != MAGIC or f"{token:016x}" != name.rpartition("/")[2]:
            raise SlotOverwritten  # its publisher has created a larger one, or is gone: its number names something else
        if slots > _MAX_SLOTS or len(self._memory) < _SLOTS_AT + slots * self._slot_bytes:
            raise ValueError(f"'{name}' is not the shared memory of a stream")
        self._generations = _generations(self._memory, slots)
        self._max_views = int(max_share * slots)
        self._views: dict[int, weakref.ref[np.ndarray]] = {}  # by generation

    def view(self, slot: int, generation: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if not 0 <= slot < len(self._generations) or not 0 <= math.prod(shape) * dtype.itemsize <= self._slot_bytes:
            raise ValueError(f"slot {slot} of '{self.name}' cannot hold {shape} of {dtype}")
        if not _lock(self._descriptor, fcntl.F_RDLCK, slot):
            raise SlotOverwritten
        if self._generations[slot] != generation:
            _lock(self._descriptor, fcntl.F_UNLCK, slot)
            raise SlotOverwritten
        view: np.ndarray = np.ndarray(shape, dtype, self._memory, _SLOTS_AT + slot * self._slot_bytes)
        # numpy keeps this very array alive for every view of it, so it is freed when the last of them is.
        self._views[generation] = weakref.ref(view, functools.partial(self._release, slot, generation))
        if len(self._views) > self._max_views:
            view = view.copy()
            view.setflags(write=False)
        return view

    def _release(self, slot: int, generation: int, _: object) -> None:
        _lock(self._descriptor, fcntl.F_UNLCK, slot)
        self._views.pop(generation, None)


def _open(name: str) -> int:
    """A descriptor, for reading, of what another process of this user shares under this name."""
    if not (matched := _NAME.fullmatch(name)):
        raise ValueError(f"'{name:.60}' is not the name of shared memory")
    path = f"/proc/{int(matched[1])}/fd/{int(matched[2])}"
    try:
        # Nothing else is ever opened: opening a device or a pipe may wait, or do something.
        if not os.readlink(path).startswith(f"/memfd:{_LABEL}"):
            raise SlotOverwritten
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:  # its publisher is gone, or has created a larger one, or is none of ours to look into
        raise SlotOverwritten from error


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]  # five times as fast as array.ctypes.data
    return address


def _generations(memory: mmap.mmap, slots: int) -> memoryview:
    """Of each slot. Not an array: reading one number of a memoryview takes a tenth of the time."""
    return memoryview(memory)[_GENERATIONS_AT : _GENERATIONS_AT + 8 * slots].cast("Q")


@functools.cache
def _flock(kind: int, slot: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, slot, 1, 0)


def _lock(descriptor: int, kind: int, slot: int) -> bool:
    """Take (F_RDLCK, F_WRLCK) or release (F_UNLCK) the lock of a slot; False when another has it. Never waits."""
    try:
        # "Open file description" locks belong to the descriptor, so two readers of one process do not share them.
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(kind, slot))
    except BlockingIOError:
        return False
    return True
