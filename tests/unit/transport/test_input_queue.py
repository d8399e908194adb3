"""The queue of a node: what is kept when the reader is slow, in which order it comes out, and that all is counted."""

from __future__ import annotations

import threading

import numpy as np

from pipeline.clock import ManualClock
from pipeline.frame import Arrival, Frame
from pipeline.metrics import Metrics
from pipeline.transport.compression import compress
from pipeline.transport.input_queue import BACKPRESSURE_DEPTH, Ended, InputQueue, QueueDepth


def frame(seq: int) -> Frame:
    return Frame("camera", seq, seq, "none")


def an_inbox(**queues: QueueDepth) -> tuple[InputQueue, ManualClock, Metrics]:
    clock, metrics = ManualClock(0), Metrics()
    inbox = InputQueue(clock, metrics)
    for source, queue in queues.items():
        inbox.open(source, queue)
    return inbox, clock, metrics


def waiting(inbox: InputQueue) -> list[int | str]:
    """What comes out: a frame's seq, or the name of a source that ended."""
    found: list[int | str] = []
    while (item := inbox.take(0)[0]) is not None:
        found.append(item.source if isinstance(item, Ended) else item.message.seq)  # type: ignore[union-attr]
    return found


def test_latest_queues_the_newest_and_counts_the_others() -> None:
    inbox, _, metrics = an_inbox(camera="latest")
    for seq in range(5):
        inbox.put("camera", frame(seq))
    assert waiting(inbox) == [4]
    assert metrics.dropped() == {"camera": {"replaced by a newer frame": 4}}


def test_a_number_queues_that_many_of_the_newest_and_counts_the_others() -> None:
    inbox, _, metrics = an_inbox(camera=3)
    for seq in range(5):
        inbox.put("camera", frame(seq))
    assert waiting(inbox) == [2, 3, 4]
    assert metrics.dropped() == {"camera": {"reader too slow": 2}}


def test_all_drops_nothing() -> None:
    inbox, _, metrics = an_inbox(camera="all")
    for seq in range(100):
        inbox.put("camera", frame(seq))
    assert waiting(inbox) == list(range(100))
    assert metrics.dropped() == {}


def test_messages_come_out_in_the_order_of_their_arrival_over_all_sources() -> None:
    inbox, _, _ = an_inbox(camera=8, sound=8)
    for source, seq in [("camera", 1), ("sound", 2), ("sound", 3), ("camera", 4)]:
        inbox.put(source, frame(seq))
    assert waiting(inbox) == [1, 2, 3, 4]


def test_the_end_of_a_source_comes_after_its_last_message() -> None:
    inbox, _, _ = an_inbox(camera=8)
    inbox.put("camera", frame(1))
    inbox.end("camera")
    assert waiting(inbox) == [1, "camera"]


def test_a_full_queue_does_not_displace_the_end() -> None:
    inbox, _, _ = an_inbox(camera="latest")
    inbox.put("camera", frame(1))
    inbox.put("camera", frame(2))
    inbox.end("camera")
    assert waiting(inbox) == [2, "camera"]


def test_arrival_is_stamped_when_it_is_put_not_when_it_is_taken() -> None:
    inbox, clock, _ = an_inbox(camera=8)
    clock.advance(70)
    inbox.put("camera", frame(1))
    clock.advance(30)
    item, now_ns = inbox.take(0)
    assert isinstance(item, Arrival) and (item.arrival_ns, now_ns) == (70, 100)


def test_a_source_that_is_not_wanted_stays_in_the_queue() -> None:
    inbox, _, _ = an_inbox(camera=8, sound=8)
    inbox.put("camera", frame(1))
    inbox.put("sound", frame(2))
    item, _ = inbox.take(0, lambda source: source == "sound")
    assert isinstance(item, Arrival) and item.source == "sound"
    assert waiting(inbox) == [1]


def test_an_empty_queue_answers_nothing() -> None:
    inbox, _, _ = an_inbox(camera=8)
    assert inbox.take(0)[0] is None


def test_a_message_wakes_who_waits_for_it() -> None:
    inbox, _, _ = an_inbox(camera=8)
    taken: list[object] = []
    reader = threading.Thread(target=lambda: taken.append(inbox.take(10)[0]))
    reader.start()
    inbox.put("camera", frame(1))
    reader.join(5)
    assert isinstance(taken[0], Arrival)


def test_credits_are_what_was_taken_since_they_were_last_asked_for() -> None:
    inbox, _, _ = an_inbox(camera="all")
    for seq in range(3):
        inbox.put("camera", frame(seq))
    inbox.take(0)
    inbox.take(0)
    assert [inbox.take_credits("camera"), inbox.take_credits("camera")] == [2, 0]


def test_a_neighbour_in_the_same_process_waits_for_room() -> None:
    inbox, _, metrics = an_inbox(camera="all")
    stopping, all_put = threading.Event(), threading.Event()

    def write() -> None:
        for seq in range(3 * BACKPRESSURE_DEPTH):
            inbox.put_when_room("camera", frame(seq), stopping)
        all_put.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert not all_put.wait(0.1)  # it stands still, with a third delivered
    taken = []
    while len(taken) < 3 * BACKPRESSURE_DEPTH:
        item, _ = inbox.take(5)
        assert isinstance(item, Arrival) and isinstance(item.message, Frame)
        taken.append(item.message.seq)
    writer.join(5)
    assert taken == list(range(3 * BACKPRESSURE_DEPTH))
    assert metrics.dropped() == {}


def test_a_neighbour_that_waits_for_room_is_let_go_at_the_stop() -> None:
    inbox, _, _ = an_inbox(camera="all")
    stopping = threading.Event()
    for seq in range(BACKPRESSURE_DEPTH):
        inbox.put("camera", frame(seq))
    writer = threading.Thread(target=lambda: inbox.put_when_room("camera", frame(99), stopping))
    writer.start()
    stopping.set()
    writer.join(5)
    assert not writer.is_alive()


def test_what_was_lost_on_the_way_is_counted_by_its_reason() -> None:
    inbox, _, metrics = an_inbox(camera=8)
    inbox.count_lost("camera", 3)
    inbox.count_lost("camera", 1, "malformed")
    assert metrics.dropped() == {"camera": {"lost in transport": 3, "malformed": 1}}


def test_what_nobody_read_is_counted_when_the_reader_ends() -> None:
    inbox, _, metrics = an_inbox(camera=8, health=8)
    inbox.put("camera", frame(1))
    inbox.put("health", frame(2))
    inbox.end("camera")
    inbox.close(uncounted="health")
    assert metrics.dropped() == {"camera": {"not read before the end": 1}}


# --- from another host ------------------------------------------------------------------------------------------------


def test_packed_frame_is_unpacked_when_it_is_taken_and_the_replaced_one_never() -> None:
    inbox, _, metrics = an_inbox(lidar="latest")
    points = np.ones((20, 4), np.float32)
    for seq in range(3):
        inbox.put("lidar", compress(Frame("lidar", seq, seq, "points_xyzi_f32", points * seq)))
    item, _ = inbox.take(0)
    assert isinstance(item, Arrival) and isinstance(item.message, Frame)
    assert item.message.encoding == "points_xyzi_f32" and np.array_equal(item.message.data, points * 2)
    assert metrics.dropped() == {"lidar": {"replaced by a newer frame": 2}}


def test_packed_frame_that_cannot_be_unpacked_is_counted_and_the_next_one_comes() -> None:
    inbox, _, metrics = an_inbox(lidar="all")
    inbox.put("lidar", Frame("lidar", 0, 0, "points_zlib", np.zeros(9, np.uint8)))
    inbox.put("lidar", frame(1))
    assert waiting(inbox) == [1]
    assert metrics.dropped() == {"lidar": {"malformed": 1}}


def test_many_may_wait_as_long_as_they_are_small() -> None:
    inbox, _, metrics = an_inbox(camera=4000)
    picture = np.broadcast_to(np.zeros(1, np.uint8), (50 << 20,))  # 50 MB that take none
    for seq in range(5):
        inbox.put("camera", Frame("camera", seq, seq, "bgr8", picture))
    for seq in range(5, 100):
        inbox.put("camera", frame(seq))
    assert waiting(inbox) == [*range(2, 100)]
    assert metrics.dropped() == {"camera": {"reader too slow": 2}}
