"""Payloads in shared memory: no frame is torn, whoever is slow, late or killed; and no file is left behind."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.transport.shared_memory import (
    MAX_BYTES,
    SharedMemoryReader,
    SharedMemoryUnreachable,
    SharedMemoryWriter,
    SlotAddress,
    SlotOverwritten,
    has_shared_memory,
)

SHAPE = (100, 1000)
U8 = np.dtype(np.uint8)

pytestmark = pytest.mark.skipif(
    not has_shared_memory("ipc:///any"), reason="no shared memory here: memfd_create is Linux's"
)


@pytest.fixture
def writer() -> Iterator[SharedMemoryWriter]:
    opened = SharedMemoryWriter("camera", rate_hz=16)  # 6 slots
    yield opened
    opened.close()


def filled(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.uint8)


def put(writer: SharedMemoryWriter, number: int) -> SlotAddress:
    stored = writer.store(filled(number))
    assert stored is not None
    return stored[0]


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here)


def mapped_memory() -> list[str]:
    return [row for row in Path("/proc/self/maps").read_text().splitlines() if "/memfd:sensorium-" in row]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- one frame --------------------------------------------------------------------------------------------------------


def test_reader_gets_what_was_stored(writer):
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    address, _ = writer.store(image)
    assert np.array_equal(SharedMemoryReader().view(address, (3, 4), np.dtype(np.float32)), image)


def test_slot_reserved_in_advance_is_used_for_the_next_copy(writer):
    reader = SharedMemoryReader()
    first = put(writer, 1)
    writer.reserve_next()
    second = put(writer, 2)
    assert second.slot != first.slot
    assert [int(reader.view(address, SHAPE, U8)[0, 0]) for address in (first, second)] == [1, 2]


def test_slot_reserved_in_a_file_that_was_replaced_by_a_larger_one_is_released(writer):
    put(writer, 1)
    writer.reserve_next()
    writer.borrow((1000, 1000), np.uint8)
    assert SharedMemoryReader().view(put(writer, 2), SHAPE, U8).max() == 2


def test_view_cannot_be_written_to(writer):
    view = SharedMemoryReader().view(put(writer, 1), SHAPE, U8)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.setflags(write=True)


def test_borrowed_slot_is_stored_without_a_copy(writer):
    image = writer.borrow(SHAPE, np.uint8)
    image.fill(7)
    address, stored = writer.store(image)
    assert stored is image
    assert (SharedMemoryReader().view(address, SHAPE, U8) == 7).all()


def test_part_of_a_borrowed_slot_is_copied_if_it_does_not_begin_there(writer):
    image = writer.borrow(SHAPE, np.uint8)
    image[:] = np.arange(100, dtype=np.uint8)[:, None]
    address, stored = writer.store(image[1:])
    assert not np.shares_memory(stored, image)
    assert SharedMemoryReader().view(address, (99, 1000), U8)[0, 0] == 1


def test_frame_sent_twice_lies_in_two_slots_because_each_is_sent_once(writer):
    image = writer.borrow(SHAPE, np.uint8)
    first, _ = writer.store(image)
    second, _ = writer.store(image)
    assert first.slot != second.slot


# --- who holds a slot -------------------------------------------------------------------------------------------------


def test_slot_is_not_written_to_while_a_reader_holds_a_view(writer):
    reader = SharedMemoryReader()
    held = reader.view(put(writer, 1), SHAPE, U8)
    for number in range(2, 40):
        put(writer, number)
        assert (held == 1).all()


def test_view_of_a_view_keeps_the_slot_too(writer):
    corner = SharedMemoryReader().view(put(writer, 1), SHAPE, U8)[10:20, 10:20].reshape(-1)[::2]
    for number in range(2, 20):
        put(writer, number)
    assert (corner == 1).all()


def test_slot_is_used_again_when_its_last_view_is_gone(writer):
    address = put(writer, 1)
    view = SharedMemoryReader().view(address, SHAPE, U8)
    part = view[5:]
    del view
    assert address.slot not in {put(writer, 2).slot for _ in range(20)}
    del part
    assert address.slot in {put(writer, 2).slot for _ in range(20)}


def test_overwritten_frame_is_refused(writer):
    address = put(writer, 1)
    for number in range(2, 20):
        put(writer, number)
    with pytest.raises(SlotOverwritten):
        SharedMemoryReader().view(address, SHAPE, U8)


def test_frame_is_refused_while_its_slot_is_being_filled(writer):
    address = put(writer, 1)
    borrowed = [writer.borrow(SHAPE, np.uint8) for _ in range(6)]
    assert len(borrowed) == 6
    with pytest.raises(SlotOverwritten):
        SharedMemoryReader().view(address, SHAPE, U8)


def test_slot_borrowed_by_a_source_is_free_when_its_array_is_dropped(writer):
    borrowed = [writer.borrow(SHAPE, np.uint8) for _ in range(6)]
    assert writer.borrow(SHAPE, np.uint8) is None
    assert writer.store(filled(1)) is None
    del borrowed[2]
    assert writer.store(filled(1)) is not None


def test_reader_that_holds_half_the_slots_gets_copies_so_that_the_publisher_goes_on(writer):
    reader = SharedMemoryReader()
    views = [reader.view(put(writer, number), SHAPE, U8) for number in range(50)]
    assert [int(view[0, 0]) for view in views] == list(range(50))
    assert sum(view.base is not None for view in views) == 3
    assert not any(view.flags.writeable for view in views)


def test_two_readers_of_one_process_do_not_release_each_others_slots(writer):
    address = put(writer, 1)
    one, other = SharedMemoryReader(), SharedMemoryReader()
    first, second = one.view(address, SHAPE, U8), other.view(address, SHAPE, U8)
    del first
    for number in range(2, 20):
        put(writer, number)
    assert (second == 1).all()


def test_views_outlive_their_reader_and_their_writer(writer):
    reader = SharedMemoryReader()
    view = reader.view(put(writer, 1), SHAPE, U8)
    del reader
    gc.collect()
    for number in range(2, 20):
        put(writer, number)
    writer.close()
    assert (view == 1).all()


# --- size -------------------------------------------------------------------------------------------------------------


def test_larger_payload_creates_larger_memory_and_the_old_one_is_let_go(writer):
    reader = SharedMemoryReader()
    first = put(writer, 1)
    old = reader.view(first, SHAPE, U8)
    address, _ = writer.store(np.full((500, 1000), 2, np.uint8))
    assert (reader.view(address, (500, 1000), U8) == 2).all()
    assert (old == 1).all()
    gc.collect()
    with pytest.raises(SlotOverwritten):
        SharedMemoryReader().view(first, SHAPE, U8)


def test_payload_beyond_the_bound_is_not_stored(writer):
    assert writer.borrow((MAX_BYTES,), np.uint8) is None
    assert writer.borrow(SHAPE, np.uint8) is not None


def test_missing_memory_is_logged_once_and_nothing_is_stored(writer, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert [writer.store(filled(1)) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        SlotAddress("1/../../etc/passwd", 0, 1),
        SlotAddress("9" * 30 + "/1/0123456789abcdef", 0, 1),
        SlotAddress("{}", 6, 1),
    ],
)
def test_address_that_cannot_exist_is_refused(writer, address):
    stored = put(writer, 1)
    with pytest.raises(ValueError):
        SharedMemoryReader().view(address._replace(file=address.file.format(stored.file)), SHAPE, U8)


def test_nothing_but_the_memory_of_a_stream_is_opened(writer, tmp_path):
    """An address that names a file, a pipe or other memory of some process: none is opened, mapped or waited for."""
    process, descriptor, token = put(writer, 1).file.split("/")
    pipe = os.pipe()
    other = os.memfd_create("another program's")
    with (tmp_path / "file").open("wb") as file:
        for number in (*pipe, other, file.fileno(), 99_999):
            with pytest.raises(SlotOverwritten):
                SharedMemoryReader().view(SlotAddress(f"{process}/{number}/{token}", 0, 1), SHAPE, U8)
    with pytest.raises(SlotOverwritten):  # the number of the descriptor was used again
        SharedMemoryReader().view(SlotAddress(f"{process}/{descriptor}/{'0' * 16}", 0, 1), SHAPE, U8)
    for number in (*pipe, other):
        os.close(number)


def test_reader_that_can_open_nothing_of_a_publisher_says_so():
    reader = SharedMemoryReader()
    elsewhere = [SlotAddress(f"{2**22 + n}/3/{'a' * 16}", 0, 1) for n in range(1, 4)]  # above the largest pid of Linux
    for address in elsewhere[:2]:
        with pytest.raises(SlotOverwritten) as caught:
            reader.view(address, SHAPE, U8)
        assert caught.type is SlotOverwritten
    with pytest.raises(SharedMemoryUnreachable):
        reader.view(elsewhere[2], SHAPE, U8)


def test_memory_cannot_be_cut_under_its_readers(writer):
    process, descriptor, _ = put(writer, 1).file.split("/")
    with pytest.raises(PermissionError):
        os.truncate(f"/proc/{process}/fd/{descriptor}", 0)


def test_payload_larger_than_its_slot_is_refused(writer):
    with pytest.raises(ValueError, match="cannot hold"):
        SharedMemoryReader().view(put(writer, 1), (1000, 1000), U8)


# --- processes --------------------------------------------------------------------------------------------------------

FLAT_OUT = """
    import sys
    import numpy as np
    from pathlib import Path
    from pipeline.transport.shared_memory import SharedMemoryWriter
    writer = SharedMemoryWriter("camera", rate_hz=16)
    number = 0
    while True:
        shape = (200, 1000, 3)
        image = np.full(shape, number % 256, np.uint8) if number % 2 else writer.borrow(shape, np.uint8)
        if image is not None and not number % 2:
            image.fill(number % 256)
        if image is not None and (stored := writer.store(image)):
            address = stored[0]
            del stored
            print(*address, number % 256, flush=True)
        del image
        number += 1
"""


@pytest.mark.system
def test_no_frame_is_torn_when_the_publisher_never_waits_and_the_reader_is_slow():
    writer, reader = child(FLAT_OUT), SharedMemoryReader()
    shape = (200, 1000, 3)
    intact = late = 0
    held: list[tuple[int, np.ndarray]] = []
    end_s = time.monotonic() + 3
    while time.monotonic() < end_s:
        file, slot, generation, shown = line(writer).split()
        try:
            view = reader.view(SlotAddress(file, int(slot), int(generation)), shape, U8)
        except SlotOverwritten:
            late += 1
            continue
        held.append((int(shown), view))
        if len(held) > 2:
            time.sleep(0.002 * (intact % 3))
            shown_then, oldest = held.pop(0)
            assert oldest.min() == oldest.max() == shown_then
        intact += 1
    writer.kill()
    writer.wait()
    assert intact > 50


HOLDER = """
    import sys, time
    import numpy as np
    from pathlib import Path
    from pipeline.transport.shared_memory import SlotAddress, SharedMemoryReader
    readers = [SharedMemoryReader() for _ in range(2)]
    held = []
    for text in sys.stdin:
        file, slot, generation = text.split()
        reader = readers[len(held) // 3]
        held.append(reader.view(SlotAddress(file, int(slot), int(generation)), (100, 1000), np.dtype(np.uint8)))
        print("held", flush=True)
"""


@pytest.mark.system
def test_slots_of_a_killed_reader_are_used_again(writer):
    holder = child(HOLDER)
    assert holder.stdin is not None
    for number in range(6):
        print(*put(writer, number), file=holder.stdin, flush=True)
        assert line(holder) == "held"
    assert writer.store(filled(9)) is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert writer.store(filled(9)) is not None


DIES_WRITING = """
    import os, signal, sys
    import numpy as np
    from pathlib import Path
    from pipeline.transport.shared_memory import SharedMemoryWriter
    writer = SharedMemoryWriter("camera", rate_hz=16)
    for number in range(6):
        address = writer.store(np.full((100, 1000), number, np.uint8))[0]
        if number in (0, 5):
            print(*address, flush=True)
    sys.stdin.readline()
    writer.borrow((100, 1000), np.uint8)[:50] = 99
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.system
def test_publisher_killed_while_writing_leaves_no_torn_frame_and_no_memory():
    publisher, reader = child(DIES_WRITING), SharedMemoryReader()
    half_written, whole = (SlotAddress(f, int(s), int(g)) for f, s, g in (line(publisher).split() for _ in range(2)))
    view = reader.view(whole, SHAPE, U8)
    publisher.communicate("go\n")
    with pytest.raises(SlotOverwritten):
        reader.view(half_written, SHAPE, U8)
    assert (view == 5).all()
    with pytest.raises(SlotOverwritten):  # a new reader does not find it: it lives as long as the view, and no longer
        SharedMemoryReader().view(whole, SHAPE, U8)
    assert len(mapped_memory()) == 1
    reader.forget()
    del view, reader
    gc.collect()
    assert mapped_memory() == []


def test_late_reader_sees_the_newest_frame(writer):
    for number in range(100):
        address = put(writer, number)
    assert (SharedMemoryReader().view(address, SHAPE, U8) == 99).all()
