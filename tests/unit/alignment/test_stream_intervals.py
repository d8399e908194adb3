"""An answer may come early, by a stream's minimum interval, where that proves that no nearer frame can follow."""

from __future__ import annotations

from collections.abc import Sequence

from test_aligner import add, aligner, dropped, frame, states

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.sync_policies import MS, Nearest
from pipeline.frame import AlignedSet


def add_all(align: Aligner, stream: str, times_ms: Sequence[float], *, delay_ms: float = 1) -> list[AlignedSet]:
    return [s for i, t in enumerate(times_ms) for s in add(align, frame(stream, i, t), t + delay_ms)]


def test_learned_interval_answers_before_proof_and_the_receipt_is_predicted():
    align = aligner(lidar=Nearest(60), max_wait_ms=100)
    add_all(align, "lidar", range(-2000, 1, 100))
    [aligned] = add(align, frame("camera", 0, 30), at_ms=35)  # the next sweep cannot come before 100
    assert states(aligned)["lidar"] == "predicted"
    assert aligned.frames["lidar"][0].capture_ns == 0


def test_learned_interval_is_not_trusted_where_the_next_frame_may_be_nearer():
    align = aligner(lidar=Nearest(60), max_wait_ms=100)
    add_all(align, "lidar", range(-2000, 1, 100))
    assert add(align, frame("camera", 0, 55), at_ms=56) == []
    [aligned] = add(align, frame("lidar", 99, 100), at_ms=120)
    assert states(aligned)["lidar"] == "nearest"
    assert aligned.frames["lidar"][0].capture_ns == 100 * MS


def test_rate_that_doubles_breaks_at_most_one_answer_and_is_counted():
    align = aligner(lidar=Nearest(60), max_wait_ms=100)
    add_all(align, "lidar", range(-2000, 1, 100))
    add(align, frame("camera", 0, 40), at_ms=41)
    add(align, frame("lidar", 99, 50), at_ms=51)  # 40 was answered with 0, and 50 is nearer
    assert add(align, frame("camera", 1, 90), at_ms=91) == []  # from now on 50 ms is what the stream can do
    add(align, frame("lidar", 100, 90), at_ms=92)
    align.finish(200 * MS)
    assert dropped(align) == {("lidar", "earlier than its rate predicts"): 1}


def test_dropped_frames_do_not_shorten_the_learned_interval():
    align = aligner(lidar=Nearest(60), max_wait_ms=100)
    add_all(align, "lidar", [t for t in range(-3000, 1, 100) if t % 700 != 300])
    assert len(add(align, frame("camera", 0, 30), at_ms=35)) == 1


def test_proof_mode_never_trusts_a_learned_interval():
    align = aligner(lidar=Nearest(60), max_wait_ms=None)
    add_all(align, "lidar", range(-2000, 1, 100))
    assert add(align, frame("camera", 0, 30), at_ms=35) == []


def test_default_tolerance_is_half_of_the_streams_own_period():
    for camera_ms, missing in ((180, ()), (185, ("right",))):  # the last frame is at 168, and frames come every 33 ms
        align = aligner(right=Nearest(), max_wait_ms=10)
        add_all(align, "right", range(-3000, 200, 33))
        sets = add(align, frame("camera", 0, camera_ms), at_ms=190)
        sets += align.advance(300 * MS)
        assert sets[-1].missing == missing


def test_emit_now_sends_when_every_stream_has_a_match():
    align = Aligner("left", {"right": Nearest(20)}, max_wait_ns=60 * MS, emit="now")
    assert add(align, frame("left", 0, 0), at_ms=5) == []
    [aligned] = add(align, frame("right", 0, 8), at_ms=14)
    assert aligned.missing == ()
    add(align, frame("left", 1, 40), at_ms=45)
    [late] = align.advance(200 * MS)[:1]
    assert late.missing == ("right",)
