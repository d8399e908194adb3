"""Large payloads between the processes of one host: a shared-memory file of equal slots for each stream.

A publisher writes a payload into a slot, or lends the slot to the source that fills it, and a message over ZeroMQ says
where it lies. A reader gets a read-only view of the slot, and the slot is not written to for as long as any reader
holds that view, or any view of it. Owns the files and who may touch which slot; knows nothing of messages.

    ring = SharedMemoryWriter(folder, "camera", rate_hz=30)                    # publisher
    image = ring.borrow((1080, 1920, 3), np.uint8)               # fill it in place …
    place, image = ring.place(image)                             # … and it has not been copied; other arrays are
    image = SharedMemoryReader(folder).view(place, (1080, 1920, 3), image.dtype)        # another process, no copy; or SlotOverwritten

Why no frame is ever torn. Each slot has a generation, and one byte of the file stands for it in the kernel's locks.
    write   take the byte's write lock (it fails while a reader has it), set the generation to 0, let the lock go; then
            fill the slot; then set a new generation, and tell the readers.
    read    take the byte's read lock; if the generation is the one that was told, the view is good until the lock goes,
            and it goes when the view's last user is gone; else the slot was written to first: SlotOverwritten, and counted.
The lock decides who came first, so there is no moment in which a frame must be checked again after its use, and none in
which an unlucky reader copies half of two frames. And the kernel takes the locks of a process that dies, so no reader,
however it ends, keeps a slot. A publisher that dies in the middle of writing leaves the generation 0, which nobody is
ever told. (Marks in shared memory, without the kernel, would need memory barriers that Python does not have.)

A slow reader costs only itself: one that holds half the slots is given copies from then on. When all slots are held the
publisher is told so, and waits for a reader that it waits for anyway, or sends the payload in the message.
"""

from __future__ import annotations

import functools
import logging
import math
import mmap
import os
import struct
import sys
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

if sys.platform == "linux":  # elsewhere shared_memory_root() is None, and nothing of this is used
    import fcntl

log = logging.getLogger("ring")

# What is held at a time: the aligner's max_wait, the window, and what inference takes. What needs more is copied.
DEFAULT_SPAN_S = 0.25
MIN_SLOTS, MAX_BYTES = 4, 128 << 20
DEFAULT_RATE_HZ = 30.0
SLOT_ALIGN = mmap.PAGESIZE

MAGIC = b"SNSRING1"
_HEADER = struct.Struct("<8sI4xQ")  # magic, slots, bytes of a slot; then the generations from byte 64 on
_GENERATIONS_AT, _SLOTS_AT = 64, 4096
_MAX_SLOTS = (_SLOTS_AT - _GENERATIONS_AT) // 8

SHARED_MEMORY = Path("/dev/shm")


class SlotOverwritten(Exception):
    """The slot holds a later frame, or none: whoever asks for this one came too late."""


class SlotAddress(NamedTuple):
    """Where a payload lies."""

    file: str
    slot: int
    generation: int


def shared_memory_root() -> Path | None:
    """Where the runs of this user keep their rings, one folder a run; None where there is no shared memory to see."""
    if not sys.platform.startswith("linux") or not os.access(SHARED_MEMORY, os.W_OK):
        return None
    return SHARED_MEMORY / f"sensorium-{os.getuid()}"


def shared_memory_folder(run_folder: Path) -> Path | None:
    """The folder for the rings of a run, if the run has made one that belongs to this user."""
    base = shared_memory_root()
    folder = base / run_folder.name if base else None
    return folder if folder and folder.is_dir() and folder.stat().st_uid == os.getuid() else None


def folder_for_address(address: str) -> Path | None:
    """The folder for the rings of the run that publishes at this address; None for TCP addresses and other hosts."""
    return shared_memory_folder(Path(address.removeprefix("ipc://")).parent) if address.startswith("ipc://") else None


class SharedMemoryWriter:
    """A publisher's end: one stream's slots. Made when the first payload tells how large a slot must be."""

    def __init__(self, folder: Path, stream: str, rate_hz: float | None = None, span_s: float = DEFAULT_SPAN_S) -> None:
        """span_s: so much of the stream has room, up to MAX_BYTES."""
        self._folder, self._stream = folder, stream.replace("/", "-")
        self._slots = math.ceil((rate_hz or DEFAULT_RATE_HZ) * span_s) + 2
        self._file: _File | None = None
        self._copied: tuple[tuple[int, ...], np.dtype] | None = (
            None  # shape and type of the last payload, if it was copied
        )
        self._claimed: np.ndarray | None = None  # ahead, for the next copy
        self._files = 0
        self._generation = 0
        self._max_bytes = MAX_BYTES // MIN_SLOTS  # of one payload; less once the system had no memory for it
        self._lock = threading.RLock()  # a camera borrows in the thread that reads the device
        self._unlink()  # of a publisher that was killed: this one has its address

    def borrow(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray | None:
        """A slot to be filled, as a writable array that keeps it; None when every slot is held, or there is no memory."""
        dtype = np.dtype(dtype)
        bytes_needed = math.prod(shape) * dtype.itemsize
        with self._lock:
            if bytes_needed > self._max_bytes:
                return None
            if self._file is None or self._file.slot_bytes < bytes_needed:
                self._grow(bytes_needed)
            return self._file.claim(shape, dtype) if bytes_needed <= self._max_bytes and self._file else None

    def place(self, array: np.ndarray) -> tuple[SlotAddress, np.ndarray] | None:
        """Make `array` readable: as it lies if it is a borrowed slot, else by copying it into one; None as for borrow.

        The slot is not used again while the returned array, or a view of it, lives in this process.
        """
        with self._lock:
            slot = self._file.slot_of(array) if self._file else None
            self._copied = (array.shape, array.dtype) if slot is None else None
            if slot is None:
                claimed, self._claimed = self._claimed, None
                if claimed is None or (claimed.shape, claimed.dtype) != self._copied:
                    claimed = self.borrow(array.shape, array.dtype)
                if claimed is None:
                    return None
                np.copyto(claimed, array)
                array = claimed
                assert self._file is not None
                slot = self._file.slot_of(array)
            assert self._file is not None and slot is not None
            self._generation += 1
            self._file.generations[slot] = self._generation
            return SlotAddress(self._file.name, slot, self._generation), array

    def prepare(self) -> None:
        """Where payloads are copied, claim the next one's slot now, while nobody waits for it."""
        with self._lock:
            if self._copied is not None and self._claimed is None and self._file is not None:
                self._claimed = self._file.claim(*self._copied)

    def close(self) -> None:
        """Readers keep what they hold; nobody new finds it."""
        self._file = self._claimed = None
        self._unlink()

    def _unlink(self) -> None:
        for path in self._folder.glob(f"{self._stream}.*.ring"):
            path.unlink(missing_ok=True)

    def _grow(self, bytes_needed: int) -> None:
        if self._file is not None:
            bytes_needed = max(bytes_needed, min(2 * self._file.slot_bytes, self._max_bytes))
        slot_bytes = -(-bytes_needed // SLOT_ALIGN) * SLOT_ALIGN
        slots = max(MIN_SLOTS, min(self._slots, MAX_BYTES // slot_bytes, _MAX_SLOTS))
        self._claimed = None
        path = self._folder / f"{self._stream}.{os.getpid()}-{self._files}.ring"
        self._files += 1
        try:
            self._file = _File(path, slots, slot_bytes)
        except OSError as error:  # a container's /dev/shm is often 64 MB
            self._max_bytes = self._file.slot_bytes if self._file else 0
            log.warning(
                "no shared memory for %s (%d MB): %s. Its payloads are copied.", path, slots * slot_bytes >> 20, error
            )


class _File:
    """The slots of one file, as their writer sees them."""

    def __init__(self, path: Path, slots: int, slot_bytes: int) -> None:
        self.name, self.slot_bytes = path.name, slot_bytes
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Reserved now: a write to a page that cannot be had would end the process, not raise an error.
            os.posix_fallocate(descriptor, 0, _SLOTS_AT + slots * slot_bytes)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        # When the ring has grown the old file stays for as long as one of its slots is kept for a reader to come.
        weakref.finalize(self._memory, path.unlink, missing_ok=True)
        _HEADER.pack_into(self._memory, 0, MAGIC, slots, slot_bytes)
        self.generations = _generations(self._memory, slots)
        self._lent: dict[int, weakref.ref[np.ndarray]] = {}
        self._oldest_first = deque(range(slots))

    def claim(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        for _ in range(len(self._oldest_first)):
            slot = self._oldest_first[0]
            self._oldest_first.rotate(-1)
            if (lent := self._lent.get(slot)) is not None and lent() is not None:
                continue
            if not _lock(self._descriptor, fcntl.F_WRLCK, slot):
                continue
            self.generations[slot] = 0
            _lock(self._descriptor, fcntl.F_UNLCK, slot)
            array: np.ndarray = np.ndarray(shape, dtype, self._memory, _SLOTS_AT + slot * self.slot_bytes)
            self._lent[slot] = weakref.ref(array)
            return array
        return None

    def slot_of(self, array: np.ndarray) -> int | None:
        """The slot that `array` fills from its first byte on and that was not published yet."""
        owner = array.base if isinstance(array.base, np.ndarray) else array
        for slot in reversed(self._oldest_first):
            if (lent := self._lent.get(slot)) is not None and lent() is owner:
                # To ask for an address takes longer than all else here, and mostly it is the whole slot's array.
                begins = array.nbytes == owner.nbytes or _address(array) == _address(owner)
                return slot if begins and array.flags.c_contiguous and self.generations[slot] == 0 else None
        return None


class SharedMemoryReader:
    """A reader's end of one publisher's rings. Each reader has its own: its locks are its own."""

    def __init__(self, folder: Path, *, waited_for: bool = False) -> None:
        """waited_for: the publisher waits for this reader, so it may hold every slot."""
        self._folder, self._most = folder, 1.0 if waited_for else 0.5
        self._mapped: _Mapped | None = None

    def view(self, place: SlotAddress, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The payload, read-only, which stays as it is while anything refers to it.

        Raises SlotOverwritten, and ValueError for a place that cannot be.
        """
        if self._mapped is None or self._mapped.name != place.file:
            self._mapped = _Mapped(self._folder, place.file, self._most)
        return self._mapped.view(place.slot, place.generation, shape, dtype)


class _Mapped:
    """The slots of one file, as a reader sees them."""

    def __init__(self, folder: Path, name: str, most: float) -> None:
        self.name = name
        if "/" in name or not name.endswith(".ring"):
            raise ValueError(f"'{name}' is not the name of a ring")
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise SlotOverwritten from error  # its publisher is gone, or has made a larger one
        self._descriptor = descriptor
        weakref.finalize(
            self, os.close, descriptor
        )  # the locks last until the last view is gone: the map has it open too
        # Not populated: that takes 10 ms of the drain thread's time, and who looks at a picture pays little for its pages.
        self._memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        magic, slots, self._slot_bytes = _HEADER.unpack_from(self._memory)
        if magic != MAGIC or slots > _MAX_SLOTS or len(self._memory) < _SLOTS_AT + slots * self._slot_bytes:
            raise ValueError(f"'{name}' is not a ring")
        self._generations = _generations(self._memory, slots)
        self._max_held = int(most * slots)
        self._held: dict[int, weakref.ref[np.ndarray]] = {}  # by generation

    def view(self, slot: int, generation: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if not 0 <= slot < len(self._generations) or not 0 <= math.prod(shape) * dtype.itemsize <= self._slot_bytes:
            raise ValueError(f"slot {slot} of '{self.name}' cannot hold {shape} of {dtype}")
        if not _lock(self._descriptor, fcntl.F_RDLCK, slot):
            raise SlotOverwritten
        if self._generations[slot] != generation:
            _lock(self._descriptor, fcntl.F_UNLCK, slot)
            raise SlotOverwritten
        view: np.ndarray = np.ndarray(shape, dtype, self._memory, _SLOTS_AT + slot * self._slot_bytes)
        # numpy keeps this very array alive for every view of it, so its end is the end of the last of them.
        self._held[generation] = weakref.ref(view, functools.partial(self._release, slot, generation))
        if len(self._held) > self._max_held:
            view = view.copy()
            view.setflags(write=False)
        return view

    def _release(self, slot: int, generation: int, _: object) -> None:
        _lock(self._descriptor, fcntl.F_UNLCK, slot)
        self._held.pop(generation, None)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]  # five times as fast as array.ctypes.data
    return address


def _generations(memory: mmap.mmap, slots: int) -> memoryview:
    """Of each slot. Not an array: to read one number a memoryview takes a tenth of the time."""
    return memoryview(memory)[_GENERATIONS_AT : _GENERATIONS_AT + 8 * slots].cast("Q")


@functools.cache
def _flock(kind: int, slot: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, slot, 1, 0)


def _lock(descriptor: int, kind: int, slot: int) -> bool:
    """Set (F_RDLCK, F_WRLCK) or drop (F_UNLCK) the lock of a slot; False when another has it. Never waits."""
    try:
        # "Open file description" locks belong to the descriptor, so two readers of one process do not share them.
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(kind, slot))
    except BlockingIOError:
        return False
    return True
