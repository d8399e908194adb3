"""Every sync policy answers Match, NoMatch or WAIT, and WAIT only while a later frame could change the answer."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pipeline.alignment.sync_policies import MS, WAIT, Interpolate, Latest, Match, Nearest, NoMatch, SyncPolicy, Window
from pipeline.frame import FOREVER_NS, Frame


def at(*times_ms: float, lasting_ms: float = 0, clock_error_ms: float = 0) -> list[Frame]:
    return [
        Frame(
            "s",
            seq,
            round(t * MS),
            "series_f32",
            duration_ns=round(lasting_ms * MS),
            clock_error_ns=round(clock_error_ms * MS),
        )
        for seq, t in enumerate(times_ms)
    ]


def ask(policy: SyncPolicy, frames: list[Frame], anchor_ms: float, complete_before_ms: float | None = None):
    complete_ns = FOREVER_NS if complete_before_ms is None else round(complete_before_ms * MS)
    return policy.answer(frames, round(anchor_ms * MS), complete_ns)


def seqs(answer) -> list[int]:
    assert isinstance(answer, Match), answer
    return [frame.seq for frame in answer.frames]


def test_nearest_takes_the_frame_on_either_side_that_is_closer():
    frames = at(0, 10, 20)
    assert seqs(ask(Nearest(20), frames, 14)) == [1]
    assert seqs(ask(Nearest(20), frames, 16)) == [2]


def test_nearest_prefers_the_earlier_of_two_equally_near_frames():
    assert seqs(ask(Nearest(20), at(0, 10), 5)) == [0]


def test_nearest_is_exact_only_at_the_time_of_the_anchor():
    assert ask(Nearest(20), at(0, 10), 10).state == "exact"
    assert ask(Nearest(20), at(0, 10), 11).state == "nearest"


def test_nearest_waits_while_a_nearer_frame_may_still_come():
    frames = at(0)
    assert ask(Nearest(20), frames, 8, complete_before_ms=10) == WAIT
    assert seqs(ask(Nearest(20), frames, 8, complete_before_ms=16)) == [0]


def test_nearest_without_a_frame_waits_for_its_whole_tolerance():
    assert ask(Nearest(20), [], 100, complete_before_ms=120) == WAIT
    assert isinstance(ask(Nearest(20), [], 100, complete_before_ms=120.001), NoMatch)


def test_nearest_beyond_the_tolerance_is_no_match_and_names_the_distance():
    answer = ask(Nearest(20), at(0), 50)
    assert answer == NoMatch("the nearest is -50.0 ms away, tolerance 20 ms")


def test_nearest_flags_a_tolerance_finer_than_the_clock():
    answer = ask(Nearest(3), at(2, clock_error_ms=5), 0)
    assert answer.reason == "tolerance 3 ms is finer than the clock error 5.0 ms"


def test_latest_never_looks_ahead_of_the_anchor():
    assert seqs(ask(Latest(50), at(0, 10, 20), 19)) == [1]
    assert isinstance(ask(Latest(50), at(20), 19), NoMatch)


def test_latest_waits_until_nothing_can_come_before_the_anchor():
    assert ask(Latest(50), at(0), 10, complete_before_ms=10) == WAIT
    assert seqs(ask(Latest(50), at(0), 10, complete_before_ms=10.001)) == [0]


def test_latest_older_than_allowed_is_no_match():
    assert isinstance(ask(Latest(50), at(0), 51), NoMatch)


def test_window_holds_every_chunk_that_overlaps_it():
    chunks = at(0, 20, 40, 60, lasting_ms=20)
    assert seqs(ask(Window(before_ms=30), chunks, 65)) == [1, 2, 3]


def test_window_waits_for_the_chunk_that_holds_its_end():
    chunks = at(0, 20, lasting_ms=20)
    assert ask(Window(before_ms=30), chunks, 45, complete_before_ms=40) == WAIT


def test_window_with_a_lost_chunk_is_partial_and_names_the_missing_time():
    chunks = [chunk for chunk in at(0, 20, 40, 60, lasting_ms=20) if chunk.seq != 2]
    answer = ask(Window(before_ms=80), chunks, 80)
    assert answer.state == "partial"
    assert answer.reason == "20 of 80 ms are missing"


def test_window_allows_for_seams_of_a_fitted_clock():
    chunks = at(0, 20.05, 40.02, lasting_ms=20)
    assert ask(Window(before_ms=60), chunks, 60).state == "exact"


@pytest.mark.parametrize("lost_ms", [2, 9])
def test_window_reports_lost_sound_of_milliseconds_within_it_and_at_its_end(lost_ms: int):
    first, second = at(0, 20 + lost_ms, lasting_ms=20)
    within = ask(Window(before_ms=40 + lost_ms), [first, second], 40 + lost_ms)
    at_the_end = ask(Window(before_ms=20 + lost_ms), [first], 20 + lost_ms)
    for answer in (within, at_the_end):
        assert isinstance(answer, Match)
        assert answer.state == "partial" and answer.reason.startswith(f"{lost_ms} of ")


def test_window_with_chunks_inside_each_other_reports_what_is_missing_once():
    whole, inner, after = at(0, 10, 60, lasting_ms=40)
    answer = ask(Window(before_ms=100), [whole, msgspec.structs.replace(inner, duration_ns=10 * MS), after], 100)
    assert isinstance(answer, Match) and "20 of 100 ms" in answer.reason, answer


def test_window_of_instants_holds_both_of_its_ends():
    assert seqs(ask(Window(before_ms=10, after_ms=10), at(0, 10, 20, 30), 10)) == [0, 1, 2]


@pytest.mark.parametrize("policy", [Nearest(20), Latest(50), Window(before_ms=30), Interpolate(30)], ids=repr)
def test_no_policy_waits_for_a_stream_that_has_ended(policy):
    for frames in ([], at(0), at(100), at(0, 20, 40, lasting_ms=20)):
        assert ask(policy, frames, 50) != WAIT


def test_interpolation_lies_on_the_line_between_the_neighbours():
    a, b = (Frame("imu", i, i * 10 * MS, "imu_f64", np.full(6, 10.0 * i)) for i in range(2))
    answer = ask(Interpolate(20), [a, b], 4)
    assert answer.state == "interpolated"
    assert np.allclose(answer.frames[0].data, 4.0)
    assert [frame.seq for frame in answer.used] == [0, 1]


def test_interpolation_waits_for_the_neighbour_on_the_far_side_but_not_for_ever():
    assert ask(Interpolate(20), at(0), 5, complete_before_ms=19) == WAIT
    assert isinstance(ask(Interpolate(20), at(0), 5, complete_before_ms=21), NoMatch)


def test_interpolation_refuses_a_gap_that_is_too_wide_and_pictures():
    assert "30 ms apart" in ask(Interpolate(20), at(0, 30), 5).reason
    pictures = [Frame("c", i, i * 10 * MS, "jpeg") for i in range(2)]
    assert "nothing between two frames of 'jpeg'" in ask(Interpolate(20), pictures, 5).reason
