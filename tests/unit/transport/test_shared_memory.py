"""Shared-memory rings: no frame is torn, whoever is slow, late or killed; and nothing is left behind."""

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

from pipeline.runtime.run_folder import create_run_folder
from pipeline.transport.shared_memory import (
    MAX_BYTES,
    SharedMemoryReader,
    SharedMemoryWriter,
    SlotAddress,
    SlotOverwritten,
    shared_memory_folder,
    shared_memory_root,
)

SHAPE = (100, 1000)
U8 = np.dtype(np.uint8)

pytestmark = pytest.mark.skipif(
    shared_memory_root() is None, reason="no shared memory here: /dev/shm cannot be written to"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path  # any file system can hold a ring; only /dev/shm is as fast as memory


@pytest.fixture
def ring(folder: Path) -> Iterator[SharedMemoryWriter]:
    made = SharedMemoryWriter(folder, "camera", rate_hz=16)  # 6 slots
    yield made
    made.close()


def filled(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.uint8)


def put(ring: SharedMemoryWriter, number: int) -> SlotAddress:
    placed = ring.store(filled(number))
    assert placed is not None
    return placed[0]


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- one frame ----------------------------------------------------------------------------------------------------------


def test_reader_sees_what_was_placed(ring, folder):
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    place, _ = ring.store(image)
    assert np.array_equal(SharedMemoryReader(folder).view(place, (3, 4), np.dtype(np.float32)), image)


def test_slot_claimed_ahead_is_the_next_copys(ring, folder):
    reader = SharedMemoryReader(folder)
    first = put(ring, 1)
    ring.reserve_next()
    second = put(ring, 2)
    assert second.slot != first.slot
    assert [int(reader.view(place, SHAPE, U8)[0, 0]) for place in (first, second)] == [1, 2]


def test_slot_claimed_ahead_in_a_ring_that_has_grown_since_is_let_go(ring, folder):
    put(ring, 1)
    ring.reserve_next()
    ring.borrow((1000, 1000), np.uint8)
    assert SharedMemoryReader(folder).view(put(ring, 2), SHAPE, U8).max() == 2


def test_view_cannot_be_written_to(ring, folder):
    view = SharedMemoryReader(folder).view(put(ring, 1), SHAPE, U8)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.setflags(write=True)


def test_borrowed_slot_is_placed_without_a_copy(ring, folder):
    image = ring.borrow(SHAPE, np.uint8)
    image.fill(7)
    place, placed = ring.store(image)
    assert placed is image
    assert (SharedMemoryReader(folder).view(place, SHAPE, U8) == 7).all()


def test_part_of_a_borrowed_slot_is_copied_if_it_does_not_begin_there(ring, folder):
    image = ring.borrow(SHAPE, np.uint8)
    image[:] = np.arange(100, dtype=np.uint8)[:, None]
    place, placed = ring.store(image[1:])
    assert not np.shares_memory(placed, image)
    assert SharedMemoryReader(folder).view(place, (99, 1000), U8)[0, 0] == 1


def test_frame_sent_twice_lies_in_two_slots_because_each_is_announced_once(ring):
    image = ring.borrow(SHAPE, np.uint8)
    first, _ = ring.store(image)
    second, _ = ring.store(image)
    assert first.slot != second.slot


# --- who holds a slot -------------------------------------------------------------------------------------------------


def test_slot_is_not_written_to_while_a_reader_holds_a_view(ring, folder):
    reader = SharedMemoryReader(folder)
    held = reader.view(put(ring, 1), SHAPE, U8)
    for number in range(2, 40):
        put(ring, number)
        assert (held == 1).all()


def test_view_of_a_view_keeps_the_slot_too(ring, folder):
    corner = SharedMemoryReader(folder).view(put(ring, 1), SHAPE, U8)[10:20, 10:20].reshape(-1)[::2]
    for number in range(2, 20):
        put(ring, number)
    assert (corner == 1).all()


def test_slot_is_used_again_when_its_last_view_is_gone(ring, folder):
    place = put(ring, 1)
    view = SharedMemoryReader(folder).view(place, SHAPE, U8)
    part = view[5:]
    del view
    assert place.slot not in {put(ring, 2).slot for _ in range(20)}
    del part
    assert place.slot in {put(ring, 2).slot for _ in range(20)}


def test_frame_that_was_written_over_is_refused_and_never_shown(ring, folder):
    place = put(ring, 1)
    for number in range(2, 20):
        put(ring, number)
    with pytest.raises(SlotOverwritten):
        SharedMemoryReader(folder).view(place, SHAPE, U8)


def test_frame_is_refused_while_its_slot_is_being_filled(ring, folder):
    place = put(ring, 1)
    lent = [ring.borrow(SHAPE, np.uint8) for _ in range(6)]
    assert len(lent) == 6
    with pytest.raises(SlotOverwritten):
        SharedMemoryReader(folder).view(place, SHAPE, U8)


def test_slot_lent_to_a_source_is_given_back_when_it_is_dropped(ring):
    lent = [ring.borrow(SHAPE, np.uint8) for _ in range(6)]
    assert ring.borrow(SHAPE, np.uint8) is None
    assert ring.store(filled(1)) is None
    del lent[2]
    assert ring.store(filled(1)) is not None


def test_reader_that_holds_half_the_ring_is_given_copies_so_the_publisher_goes_on(ring, folder):
    reader = SharedMemoryReader(folder)
    views = [reader.view(put(ring, number), SHAPE, U8) for number in range(50)]
    assert [int(view[0, 0]) for view in views] == list(range(50))
    assert sum(view.base is not None for view in views) == 3
    assert not any(view.flags.writeable for view in views)


def test_two_readers_of_one_process_do_not_let_go_of_each_others_slots(ring, folder):
    place = put(ring, 1)
    one, other = SharedMemoryReader(folder), SharedMemoryReader(folder)
    first, second = one.view(place, SHAPE, U8), other.view(place, SHAPE, U8)
    del first
    for number in range(2, 20):
        put(ring, number)
    assert (second == 1).all()


def test_views_outlive_their_reader_and_the_ring(ring, folder):
    reader = SharedMemoryReader(folder)
    view = reader.view(put(ring, 1), SHAPE, U8)
    del reader
    gc.collect()
    for number in range(2, 20):
        put(ring, number)
    ring.close()
    assert (view == 1).all()


# --- size -------------------------------------------------------------------------------------------------------------


def test_larger_payload_makes_a_larger_ring_and_the_old_one_goes(ring, folder):
    reader = SharedMemoryReader(folder)
    old = reader.view(put(ring, 1), SHAPE, U8)
    place, _ = ring.store(np.full((500, 1000), 2, np.uint8))
    assert (reader.view(place, (500, 1000), U8) == 2).all()
    assert (old == 1).all()
    gc.collect()
    assert [path.name for path in folder.glob("*.ring")] == [place.file]


def test_payload_beyond_the_bound_is_not_taken(ring):
    assert ring.borrow((MAX_BYTES,), np.uint8) is None
    assert ring.borrow(SHAPE, np.uint8) is not None


def test_missing_memory_is_told_once_and_the_payload_goes_another_way(ring, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert [ring.store(filled(1)) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    "place",
    [
        SlotAddress("../etc/passwd", 0, 1),
        SlotAddress("passwd", 0, 1),
        SlotAddress("{}", -1, 1),
        SlotAddress("{}", 6, 1),
        SlotAddress("not.ring", 0, 1),
    ],
)
def test_place_that_cannot_be_is_refused(ring, folder, place):
    made = put(ring, 1)
    (folder / "not.ring").write_bytes(bytes(8192))
    with pytest.raises(ValueError):
        SharedMemoryReader(folder).view(place._replace(file=place.file.format(made.file)), SHAPE, U8)


def test_payload_larger_than_its_slot_is_refused(ring, folder):
    with pytest.raises(ValueError, match="cannot hold"):
        SharedMemoryReader(folder).view(put(ring, 1), (1000, 1000), U8)


# --- processes ----------------------------------------------------------------------------------------------------------

FLAT_OUT = """
    import sys
    import numpy as np
    from pathlib import Path
    from pipeline.transport.shared_memory import SharedMemoryWriter
    ring = SharedMemoryWriter(Path(sys.argv[1]), "camera", rate_hz=16)
    number = 0
    while True:
        image = np.full((200, 1000, 3), number % 256, np.uint8) if number % 2 else ring.borrow((200, 1000, 3), np.uint8)
        if image is not None and not number % 2:
            image.fill(number % 256)
        if image is not None and (placed := ring.store(image)):
            place = placed[0]
            del placed
            print(*place, number % 256, flush=True)
        del image
        number += 1
"""


@pytest.mark.system
def test_no_frame_is_torn_when_the_publisher_never_waits_and_the_reader_is_slow(folder):
    writer, reader = child(FLAT_OUT, folder), SharedMemoryReader(folder)
    shape = (200, 1000, 3)
    seen = late = 0
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
            time.sleep(0.002 * (seen % 3))
            shown_then, oldest = held.pop(0)
            assert oldest.min() == oldest.max() == shown_then
        seen += 1
    writer.kill()
    writer.wait()
    assert seen > 50


HOLDER = """
    import sys, time
    import numpy as np
    from pathlib import Path
    from pipeline.transport.shared_memory import SlotAddress, SharedMemoryReader
    readers = [SharedMemoryReader(Path(sys.argv[1])) for _ in range(2)]
    held = []
    for text in sys.stdin:
        file, slot, generation = text.split()
        reader = readers[len(held) // 3]
        held.append(reader.view(SlotAddress(file, int(slot), int(generation)), (100, 1000), np.dtype(np.uint8)))
        print("held", flush=True)
"""


@pytest.mark.system
def test_slots_of_a_killed_reader_are_used_again(ring, folder):
    holder = child(HOLDER, folder)
    assert holder.stdin is not None
    for number in range(6):
        print(*put(ring, number), file=holder.stdin, flush=True)
        assert line(holder) == "held"
    assert ring.store(filled(9)) is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert ring.store(filled(9)) is not None


DIES_WRITING = """
    import os, signal, sys
    import numpy as np
    from pathlib import Path
    from pipeline.transport.shared_memory import SharedMemoryWriter
    ring = SharedMemoryWriter(Path(sys.argv[1]), "camera", rate_hz=16)
    for number in range(6):
        place = ring.store(np.full((100, 1000), number, np.uint8))[0]
        if number in (0, 5):
            print(*place, flush=True)
    sys.stdin.readline()
    ring.borrow((100, 1000), np.uint8)[:50] = 99
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.system
def test_publisher_killed_while_writing_leaves_no_torn_frame_and_its_successor_clears_its_file_away(folder):
    publisher, reader = child(DIES_WRITING, folder), SharedMemoryReader(folder)
    half_written, whole = (SlotAddress(f, int(s), int(g)) for f, s, g in (line(publisher).split() for _ in range(2)))
    kept = reader.view(whole, SHAPE, U8)
    publisher.communicate("go\n")
    with pytest.raises(SlotOverwritten):
        reader.view(half_written, SHAPE, U8)
    assert (kept == 5).all()
    successor = SharedMemoryWriter(folder, "camera", rate_hz=16)
    place = put(successor, 7)
    assert (reader.view(place, SHAPE, U8) == 7).all()
    assert (kept == 5).all()
    assert [path.name for path in folder.iterdir()] == [place.file]
    successor.close()
    assert list(folder.iterdir()) == []


def test_late_reader_sees_the_newest_frame(ring, folder):
    for number in range(100):
        place = put(ring, number)
    assert (SharedMemoryReader(folder).view(place, SHAPE, U8) == 99).all()


# --- a run's folder ---------------------------------------------------------------------------------------------------


def test_rings_of_a_run_go_with_the_run_and_those_of_a_killed_one_with_the_next():
    base = shared_memory_root()
    assert base is not None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = base / f"{dead.pid}-killed"
    stale.mkdir(parents=True, mode=0o700)
    base.chmod(0o700)
    (stale / "camera.1-0.ring").write_bytes(bytes(100))
    with create_run_folder() as run_folder:
        rings = shared_memory_folder(run_folder)
        assert rings is not None and rings.is_dir()
        assert not stale.exists()
    assert not rings.exists()
    assert not run_folder.exists()
