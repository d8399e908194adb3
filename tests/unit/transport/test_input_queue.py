"""The input queue of a node: what stays when the node is slow, the order of arrival, and that every loss is counted."""

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


def input_queue(**depths: QueueDepth) -> tuple[InputQueue, ManualClock, Metrics]:
    clock, metrics = ManualClock(0), Metrics()
    queue = InputQueue(clock, metrics)
    for source, depth in depths.items():
        queue.open(source, depth)
    return queue, clock, metrics


def waiting(queue: InputQueue) -> list[int | str]:
    """All that waits: a frame's seq, or the name of a source that ended."""
    items: list[int | str] = []
    while (item := queue.take(0)[0]) is not None:
        items.append(item.source if isinstance(item, Ended) else item.message.seq)  # type: ignore[union-attr]
    return items


def test_latest_queues_the_newest_and_counts_the_others() -> None:
    queue, _, metrics = input_queue(camera="latest")
    for seq in range(5):
        queue.put("camera", frame(seq))
    assert waiting(queue) == [4]
    assert metrics.dropped() == {"camera": {"replaced by a newer frame": 4}}


def test_a_number_queues_that_many_of_the_newest_and_counts_the_others() -> None:
    queue, _, metrics = input_queue(camera=3)
    for seq in range(5):
        queue.put("camera", frame(seq))
    assert waiting(queue) == [2, 3, 4]
    assert metrics.dropped() == {"camera": {"reader too slow": 2}}


def test_all_drops_nothing() -> None:
    queue, _, metrics = input_queue(camera="all")
    for seq in range(100):
        queue.put("camera", frame(seq))
    assert waiting(queue) == list(range(100))
    assert metrics.dropped() == {}


def test_messages_come_out_in_the_order_of_their_arrival_over_all_sources() -> None:
    queue, _, _ = input_queue(camera=8, sound=8)
    for source, seq in [("camera", 1), ("sound", 2), ("sound", 3), ("camera", 4)]:
        queue.put(source, frame(seq))
    assert waiting(queue) == [1, 2, 3, 4]


def test_the_end_of_a_source_comes_after_its_last_message() -> None:
    queue, _, _ = input_queue(camera=8)
    queue.put("camera", frame(1))
    queue.end("camera")
    assert waiting(queue) == [1, "camera"]


def test_a_full_queue_does_not_displace_the_end() -> None:
    queue, _, _ = input_queue(camera="latest")
    queue.put("camera", frame(1))
    queue.put("camera", frame(2))
    queue.end("camera")
    assert waiting(queue) == [2, "camera"]


def test_arrival_is_stamped_when_it_is_put_not_when_it_is_taken() -> None:
    queue, clock, _ = input_queue(camera=8)
    clock.advance(70)
    queue.put("camera", frame(1))
    clock.advance(30)
    item, now_ns = queue.take(0)
    assert isinstance(item, Arrival) and (item.arrival_ns, now_ns) == (70, 100)


def test_a_source_that_is_not_accepted_stays_in_the_queue() -> None:
    queue, _, _ = input_queue(camera=8, sound=8)
    queue.put("camera", frame(1))
    queue.put("sound", frame(2))
    item, _ = queue.take(0, lambda source: source == "sound")
    assert isinstance(item, Arrival) and item.source == "sound"
    assert waiting(queue) == [1]


def test_an_empty_queue_returns_nothing() -> None:
    queue, _, _ = input_queue(camera=8)
    assert queue.take(0)[0] is None


def test_a_message_wakes_the_reader_that_waits() -> None:
    queue, _, _ = input_queue(camera=8)
    taken: list[object] = []
    reader = threading.Thread(target=lambda: taken.append(queue.take(10)[0]))
    reader.start()
    queue.put("camera", frame(1))
    reader.join(5)
    assert isinstance(taken[0], Arrival)


def test_credits_are_the_messages_taken_since_the_last_call() -> None:
    queue, _, _ = input_queue(camera="all")
    for seq in range(3):
        queue.put("camera", frame(seq))
    queue.take(0)
    queue.take(0)
    assert [queue.take_credits("camera"), queue.take_credits("camera")] == [2, 0]


def test_a_node_of_the_same_process_waits_for_room() -> None:
    queue, _, metrics = input_queue(camera="all")
    stopping, all_put = threading.Event(), threading.Event()

    def write() -> None:
        for seq in range(3 * BACKPRESSURE_DEPTH):
            queue.put_when_room("camera", frame(seq), stopping)
        all_put.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert not all_put.wait(0.1)  # it waits, with a third delivered
    taken = []
    while len(taken) < 3 * BACKPRESSURE_DEPTH:
        item, _ = queue.take(5)
        assert isinstance(item, Arrival) and isinstance(item.message, Frame)
        taken.append(item.message.seq)
    writer.join(5)
    assert taken == list(range(3 * BACKPRESSURE_DEPTH))
    assert metrics.dropped() == {}


def test_a_node_that_waits_for_room_goes_on_when_it_is_stopped() -> None:
    queue, _, _ = input_queue(camera="all")
    stopping = threading.Event()
    for seq in range(BACKPRESSURE_DEPTH):
        queue.put("camera", frame(seq))
    writer = threading.Thread(target=lambda: queue.put_when_room("camera", frame(99), stopping))
    writer.start()
    stopping.set()
    writer.join(5)
    assert not writer.is_alive()


def test_lost_messages_are_counted_by_reason() -> None:
    queue, _, metrics = input_queue(camera=8)
    queue.count_lost("camera", 3)
    queue.count_lost("camera", 1, "malformed")
    assert metrics.dropped() == {"camera": {"lost in transport": 3, "malformed": 1}}


def test_unread_messages_are_counted_when_the_reader_ends() -> None:
    queue, _, metrics = input_queue(camera=8, health=8)
    queue.put("camera", frame(1))
    queue.put("health", frame(2))
    queue.end("camera")
    queue.close(uncounted="health")
    assert metrics.dropped() == {"camera": {"not read before the end": 1}}


# --- from another host ------------------------------------------------------------------------------------------------


def test_compressed_frame_is_decompressed_when_it_is_taken_and_the_replaced_one_never() -> None:
    queue, _, metrics = input_queue(lidar="latest")
    points = np.ones((20, 4), np.float32)
    for seq in range(3):
        queue.put("lidar", compress(Frame("lidar", seq, seq, "points_xyzi_f32", points * seq)))
    item, _ = queue.take(0)
    assert isinstance(item, Arrival) and isinstance(item.message, Frame)
    assert item.message.encoding == "points_xyzi_f32" and np.array_equal(item.message.data, points * 2)
    assert metrics.dropped() == {"lidar": {"replaced by a newer frame": 2}}


def test_frame_that_cannot_be_decompressed_is_counted_and_the_next_one_comes() -> None:
    queue, _, metrics = input_queue(lidar="all")
    queue.put("lidar", Frame("lidar", 0, 0, "points_zlib", np.zeros(9, np.uint8)))
    queue.put("lidar", frame(1))
    assert waiting(queue) == [1]
    assert metrics.dropped() == {"lidar": {"malformed": 1}}


def test_many_may_wait_as_long_as_they_are_small() -> None:
    queue, _, metrics = input_queue(camera=4000)
    picture = np.broadcast_to(np.zeros(1, np.uint8), (50 << 20,))  # 50 MB that occupy none
    for seq in range(5):
        queue.put("camera", Frame("camera", seq, seq, "bgr8", picture))
    for seq in range(5, 100):
        queue.put("camera", frame(seq))
    assert waiting(queue) == [*range(2, 100)]
    assert metrics.dropped() == {"camera": {"reader too slow": 2}}
