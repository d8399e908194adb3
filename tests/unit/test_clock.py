"""clock.py: counters become host time, honestly, whatever the callbacks do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import (
    NS,
    DelayFloor,
    HeaderClock,
    LiveClock,
    ManualClock,
    PtsClock,
    SampleClock,
    offset_to_monotonic,
    utc_offset_ns,
)

RATE_HZ, CHUNK = 16000, 320
MS = 1_000_000
START_NS = 5 * NS

Jitter = Callable[[np.random.Generator, int], np.ndarray]


def uniform_1_to_3_ms(random: np.random.Generator, n: int) -> np.ndarray:
    return random.uniform(1 * MS, 3 * MS, n)


def exponential_1_ms(random: np.random.Generator, n: int) -> np.ndarray:
    return 1 * MS + random.exponential(1 * MS, n)


def half_normal_2_ms(random: np.random.Generator, n: int) -> np.ndarray:
    return 1 * MS + np.abs(random.normal(0, 2 * MS, n))


JITTERS = [uniform_1_to_3_ms, exponential_1_ms, half_normal_2_ms]
FLOOR_NS = 1 * MS  # of all three: a constant delay that no clock can see


class Card:
    """A sound card with a known clock: its chunks' true times, and when a jittered callback brought them."""

    def __init__(self, *, seconds: float, ppm: float, jitter: Jitter, seed: int = 0, wander_ppm: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.n = int(seconds * RATE_HZ / CHUNK)
        t_s = np.arange(self.n + 1) * CHUNK / RATE_HZ
        wander_s = wander_ppm * 1e-6 * 300 / (2 * np.pi) * (1 - np.cos(2 * np.pi * t_s / 300))  # a period of 5 minutes
        edges_ns = START_NS + (t_s / (1 + ppm * 1e-6) + wander_s) * NS
        self.start_ns, self.end_ns = edges_ns[:-1], edges_ns[1:]
        bursts_ns = np.where(random.random(self.n) < 0.02, random.exponential(30 * MS, self.n), 0)
        self.arrival_ns = np.maximum.accumulate(self.end_ns + jitter(random, self.n) + bursts_ns)

    def stamped(self, clock: SampleClock) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(error, stated bound, ppm) of every chunk, the floor's constant delay taken off."""
        rows = []
        for k, arrival_ns in enumerate(self.arrival_ns.astype(np.int64).tolist()):
            capture_ns = clock.stamp_chunk(k * CHUNK, CHUNK, arrival_ns)
            rows.append((capture_ns - self.start_ns[k] - FLOOR_NS, clock.error_ns, clock.rate_error * 1e6))
        error_ns, bound_ns, ppm = np.array(rows).T
        return error_ns, bound_ns, ppm


@pytest.mark.parametrize("jitter", JITTERS)
def test_sample_clock_finds_time_and_rate_within_30_s(jitter: Jitter) -> None:
    rate_errors = []
    for seed, ppm in enumerate([-120.0, -70.0, -30.0, 0.0, 25.0, 50.0]):
        error_ns, _, fitted_ppm = Card(seconds=45, ppm=ppm, jitter=jitter, seed=seed).stamped(SampleClock(RATE_HZ))
        after_30_s = error_ns[1500:]
        assert np.std(after_30_s) <= 60_000
        assert np.abs(after_30_s).max() <= 100_000
        rate_errors.append(abs(fitted_ppm[1500] - ppm))
    assert np.median(rate_errors) <= 0.5
    assert max(rate_errors) <= 1.5


def test_sample_clock_follows_a_rate_that_wanders() -> None:
    error_ns, _, _ = Card(seconds=300, ppm=20, jitter=uniform_1_to_3_ms, wander_ppm=15).stamped(SampleClock(RATE_HZ))
    assert np.std(error_ns[1500:]) <= 60_000


def test_stated_bound_grows_with_the_jitter_of_the_least_delays() -> None:
    """A driver that is late by up to 3 ms for seconds at a time: no reading shows the true line."""
    random = np.random.default_rng(0)
    clock = SampleClock(RATE_HZ)
    errors_ns, bounds_ns = [], []
    for k in range(3000):
        if k % 100 == 0:
            late_ns = round(random.uniform(0, 3 * MS))
        end_ns = START_NS + (k + 1) * CHUNK * NS // RATE_HZ
        capture_ns = clock.stamp_chunk(k * CHUNK, CHUNK, end_ns + late_ns)
        errors_ns.append(abs(capture_ns - (end_ns - CHUNK * NS // RATE_HZ)))
        bounds_ns.append(clock.error_ns)
    late = np.array(errors_ns[1500:]) > np.array(bounds_ns[1500:])
    assert np.median(bounds_ns[1500:]) > 1 * MS and late.mean() <= 0.01


@pytest.mark.parametrize("jitter", JITTERS)
def test_stated_bound_holds_from_the_first_chunk_on(jitter: Jitter) -> None:
    for seed in range(8):
        error_ns, bound_ns, _ = Card(seconds=40, ppm=-120, jitter=jitter, seed=seed).stamped(SampleClock(RATE_HZ))
        inside = np.abs(error_ns) <= bound_ns
        assert inside[:150].mean() >= 0.97  # the first 3 s
        assert inside.mean() >= 0.99
        assert np.median(bound_ns[1500:]) < 1 * MS  # a bound that says nothing would hold too


def test_a_lost_buffer_is_a_step_that_is_counted_and_survived() -> None:
    card = Card(seconds=40, ppm=30, jitter=uniform_1_to_3_ms)
    lost_ns, at = 40 * MS, 1200
    card.start_ns[at:] += lost_ns
    card.arrival_ns[at:] += lost_ns
    clock = SampleClock(RATE_HZ)
    error_ns, bound_ns, _ = card.stamped(clock)
    assert clock.steps == 1
    unsure = error_ns[at : at + 60] < -10 * MS
    assert 40 <= unsure.sum() <= 55  # about a second, until it can be no burst
    assert (np.abs(error_ns) <= bound_ns)[at + 3 :].mean() > 0.99  # and in that second the bound grew with the doubt
    assert np.abs(error_ns[at + 150 :]).max() < 0.3 * MS


def test_a_device_that_pauses_for_seconds_is_followed_at_once() -> None:
    card = Card(seconds=20, ppm=0, jitter=uniform_1_to_3_ms)
    card.start_ns[500:] += 3 * NS
    card.arrival_ns[500:] += 3 * NS
    clock = SampleClock(RATE_HZ)
    error_ns, _, _ = card.stamped(clock)
    assert clock.steps == 1
    assert np.abs(error_ns[510:]).max() < 5 * MS


def test_a_queue_that_drains_after_a_stall_is_no_step() -> None:
    card = Card(seconds=20, ppm=0, jitter=uniform_1_to_3_ms)
    stall = slice(500, 600)  # 2 s of sound, delivered all at once
    card.arrival_ns[stall] = card.arrival_ns[600] + np.arange(100) * 1000
    clock = SampleClock(RATE_HZ)
    error_ns, _, _ = card.stamped(clock)
    assert clock.steps == 0
    assert np.abs(error_ns[150:]).max() < 1 * MS


def test_an_index_that_jumps_ahead_is_a_step() -> None:
    clock = SampleClock(RATE_HZ)
    for k in range(200):
        clock.stamp_chunk(k * CHUNK, CHUNK, START_NS + k * 20 * MS)
    for k in range(200, 400):  # the card counts 100 ms that never were
        capture_ns = clock.stamp_chunk(k * CHUNK + 1600, CHUNK, START_NS + k * 20 * MS)
    assert clock.steps == 1
    assert abs(capture_ns - (START_NS + 398 * 20 * MS)) < 1 * MS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.integers(0, 300 * MS)), min_size=2, max_size=120),
    st.integers(0, 10**15),
)
def test_stamps_never_go_back_and_never_lie_after_the_arrival(steps: list[tuple[int, int]], first_ns: int) -> None:
    clock = SampleClock(RATE_HZ)
    index, arrival_ns, last_ns = 0, first_ns, -NS
    for skipped, waited_ns in steps:  # samples appear and vanish, callbacks come when they like
        index += skipped
        arrival_ns += waited_ns
        capture_ns = clock.stamp_chunk(index, CHUNK, arrival_ns)
        assert capture_ns >= last_ns
        assert capture_ns + CHUNK * NS // RATE_HZ <= arrival_ns or capture_ns == last_ns
        assert clock.error_ns >= 0
        last_ns = capture_ns
        index += CHUNK


@settings(max_examples=40, deadline=None)
@given(st.floats(-120, 50), st.integers(0, 2**32 - 1), st.sampled_from(JITTERS))
def test_no_jitter_or_burst_is_taken_for_a_step(ppm: float, seed: int, jitter: Jitter) -> None:
    clock = SampleClock(RATE_HZ)
    Card(seconds=8, ppm=ppm, jitter=jitter, seed=seed).stamped(clock)
    assert clock.steps == 0


def test_wide_jitter_without_a_floor_is_not_taken_for_steps() -> None:
    clock = SampleClock(RATE_HZ)
    random = np.random.default_rng(5)
    arrivals_ns = START_NS + np.arange(3000) * 20 * MS + np.abs(random.normal(12 * MS, 3 * MS, 3000))
    for k, arrival_ns in enumerate(np.maximum.accumulate(arrivals_ns).astype(np.int64).tolist()):
        clock.stamp_chunk(k * CHUNK, CHUNK, arrival_ns)
    assert clock.steps == 0


def test_long_runs_keep_bounded_memory() -> None:
    clock = SampleClock(RATE_HZ)
    for k in range(20_000):
        clock.stamp_chunk(k * CHUNK, CHUNK, START_NS + k * 20 * MS)
    assert len(clock._block_minima) <= DelayFloor.WINDOW_NS // DelayFloor.BLOCK_NS + 2


def test_pts_are_tied_to_the_least_delayed_arrival() -> None:
    random = np.random.default_rng(3)
    clock, pts_epoch_ns = PtsClock(), 1_700_000_000 * NS  # an epoch of its own
    errors_ns = []
    for k in range(600):
        true_ns = START_NS + k * 33 * MS
        arrival_ns = true_ns + 8 * MS + int(random.exponential(15 * MS))
        capture_ns = clock.stamp_frame(pts_epoch_ns + k * 33 * MS, arrival_ns)
        assert capture_ns <= arrival_ns
        errors_ns.append(capture_ns - (true_ns + 8 * MS))
    assert np.abs(errors_ns[150:]).max() < 2 * MS


def test_pts_that_go_back_a_little_stand_still_and_say_so() -> None:
    clock = PtsClock()
    for k in range(50):
        last_ns = clock.stamp_frame(k * 40 * MS, START_NS + k * 40 * MS)
    assert clock.stamp_frame(47 * 40 * MS, START_NS + 50 * 40 * MS) == last_ns
    assert clock.error_ns >= 80 * MS
    assert clock.stamp_frame(51 * 40 * MS, START_NS + 51 * 40 * MS) == START_NS + 51 * 40 * MS


def test_pts_that_start_over_are_followed() -> None:
    clock = PtsClock()
    for k in range(100):
        clock.stamp_frame(k * 40 * MS, START_NS + k * 40 * MS)
    stamps_ns = [clock.stamp_frame(k * 40 * MS, START_NS + (k + 150) * 40 * MS) for k in range(20)]
    assert clock.steps == 1
    assert stamps_ns == [START_NS + (k + 150) * 40 * MS for k in range(20)]


def test_old_pictures_that_a_server_sends_first_do_not_shift_the_clock() -> None:
    clock = PtsClock()
    for k in range(25):  # the last second, at once
        clock.stamp_frame(k * 40 * MS, START_NS + 1000 * MS + k)
    capture_ns = clock.stamp_frame(26 * 40 * MS, START_NS + 26 * 40 * MS)
    assert abs(capture_ns - (START_NS + 26 * 40 * MS)) <= 1 * MS
    assert clock.steps == 0


@pytest.mark.parametrize(
    ("header", "ns"),
    [
        ("1234.5", 1_234_500_000_000),
        ("1700000000.123456", 1_700_000_000_123_456_000),
        ("1700000000", 1_700_000_000 * NS),
        ("123456789012345", 123_456_789_012_345),
        ("1700000000123456789", 1_700_000_000_123_456_789),
        ("", None),
        (None, None),
        ("yesterday", None),
        ("-3", None),
    ],
)
def test_header_time_is_seconds_or_nanoseconds(header: str | None, ns: int | None) -> None:
    assert HeaderClock.parse(header) == ns


def test_header_of_the_same_host_may_be_monotonic_or_utc() -> None:
    clock = LiveClock()
    header_clock = HeaderClock(clock, same_host=True)
    now_ns = clock.now_ns()
    taken_ns = now_ns - 30 * MS
    assert header_clock.stamp(str(taken_ns), now_ns) == (taken_ns, 0)
    utc = header_clock.stamp(f"{(time.time_ns() - 30 * MS) / NS:.6f}", now_ns)
    assert utc is not None and abs(utc[0] - taken_ns) < 5 * MS and utc[1] < 1 * MS


def test_header_of_another_epoch_is_tied_to_its_arrival() -> None:
    clock = ManualClock(START_NS)
    header_clock = HeaderClock(clock, same_host=True)
    for k in range(50):  # a camera that counts from its own start, 70 s ago
        stamped = header_clock.stamp(f"{70 + k * 0.04:.6f}", START_NS + k * 40 * MS)
    assert stamped is not None and abs(stamped[0] - (START_NS + 49 * 40 * MS)) < 1 * MS


def test_another_clock_s_offset_is_measured_by_reading_it_between_two_readings_of_ours() -> None:
    clock = LiveClock()
    offset_ns, error_ns = offset_to_monotonic(lambda: time.monotonic_ns() - 7 * NS, clock)
    assert abs(offset_ns - 7 * NS) <= error_ns + 1000
    utc_ns, _ = utc_offset_ns(clock)
    assert abs(clock.now_ns() + utc_ns - time.time_ns()) < 50 * MS


def test_sleep_ends_when_interrupted() -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    clock = LiveClock()
    assert clock.sleep_until(clock.now_ns() + 5 * NS, stop) is False
    assert clock.sleep_until(clock.now_ns(), threading.Event()) is True


def test_manual_clock_moves_only_when_advanced_or_slept_on() -> None:
    clock = ManualClock(100)
    clock.advance(5)
    assert clock.now_ns() == 105
    assert clock.sleep_until(90) and clock.now_ns() == 105
    assert clock.sleep_until(200) and clock.now_ns() == 200
