"""Whatever the network does to the pings, the true offset lies inside the stated bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import NS
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, Health, Prediction, Receipt, left_ns, moved, silence
from pipeline.transport.host_clock import HostClock

MS, US = 1_000_000, 1_000


@dataclass
class Network:
    """Two hosts and the network between them. The other clock reads (ours − offset) · (1 + ppm), and may jump."""

    seed: int = 0
    ppm: float = 0.0
    offset_ns: int = 5000 * NS
    there_ms: float = 0.1  # the least delay in each direction
    back_ms: float = 0.1
    jitter_ms: float = 0.1

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.now_ns = 10_000 * NS
        self.clock = HostClock()

    def remote(self, local_ns: int) -> int:
        return local_ns - self.offset_ns + round((local_ns - 10_000 * NS) * self.ppm * 1e-6)

    def ping(self) -> None:
        there_ns, back_ns = (
            round((min_ms + self.random.exponential(self.jitter_ms)) * MS) for min_ms in (self.there_ms, self.back_ms)
        )
        arrives_ns = self.now_ns + there_ns
        leaves_ns = arrives_ns + round(self.random.exponential(50 * US))
        self.clock.exchange(self.now_ns, self.remote(arrives_ns), self.remote(leaves_ns), leaves_ns + back_ns)
        self.now_ns = leaves_ns + back_ns

    def run(self, seconds: float) -> Iterator[tuple[int, int]]:
        """Pings as ClockClient sends them; between two of them (error, stated bound) of a frame captured 20 ms ago."""
        until_ns = self.now_ns + round(seconds * NS)
        while self.now_ns < until_ns:
            self.ping()
            next_ns = self.now_ns + (20 * MS if self.clock.exchanges < 100 else 500 * MS)
            while self.now_ns < next_ns:
                captured_ns = self.now_ns - 20 * MS
                local_ns, bound_ns = self.clock.to_local(self.remote(captured_ns))
                yield local_ns - captured_ns, bound_ns
                self.now_ns += 10 * MS


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-50, 50),
    st.integers(-(10**15), 10**15),
    st.floats(0.02, 40),
    st.floats(0.02, 40),
    st.floats(0.01, 20),
)
def test_true_offset_lies_in_the_stated_bound_on_any_network(
    seed: int, ppm: float, offset_ns: int, there_ms: float, back_ms: float, jitter_ms: float
) -> None:
    network = Network(seed, ppm, offset_ns, there_ms, back_ms, jitter_ms)
    for error_ns, bound_ns in network.run(8):
        assert abs(error_ns) <= bound_ns
    assert network.clock.jumps == 0


@pytest.mark.parametrize("ppm", [-50.0, 0.0, 50.0])
def test_bound_is_half_the_best_round_trip_within_5_s(ppm: float) -> None:
    network = Network(ppm=ppm, there_ms=20, back_ms=20, jitter_ms=2.5)
    bounds_ns = [bound_ns for _, bound_ns in network.run(5)]
    assert bounds_ns[-1] < 22 * MS  # half of 40 ms, plus the least jitter
    assert min(bounds_ns) > 19 * MS  # less would claim to know how the round trip divides into its two directions


def test_over_a_quiet_network_offset_and_drift_are_known_to_microseconds() -> None:
    network = Network(ppm=-50, there_ms=0.1, back_ms=0.1, jitter_ms=0.05)
    errors_ns, bounds_ns = np.array(list(network.run(60))).T
    late = slice(len(errors_ns) // 2, None)
    assert np.percentile(np.abs(errors_ns[late]), 99) < 50 * US
    assert np.median(bounds_ns[late]) < 150 * US
    assert network.clock.drift == pytest.approx(50e-6, abs=3e-6)  # the other clock runs slow: this host's gains on it


def test_bound_grows_while_no_ping_comes_back() -> None:
    network = Network(ppm=50)
    bound_ns = list(network.run(10))[-1][1]
    network.now_ns += 60 * NS  # a partition
    local_ns, later_bound_ns = network.clock.to_local(network.remote(network.now_ns))
    assert later_bound_ns > bound_ns + 100 * US
    assert abs(local_ns - network.now_ns) <= later_bound_ns


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-50, 50), st.floats(0.05, 30))
def test_a_better_estimate_is_approached_and_not_jumped_to(seed: int, ppm: float, jitter_ms: float) -> None:
    network, last_ns, last_local_ns = Network(seed, ppm, jitter_ms=jitter_ms), 0, 0
    for _ in network.run(4):
        if network.clock.exchanges > HostClock.READY_AFTER:
            local_ns, _ = network.clock.to_local(network.remote(network.now_ns))
            passed_ns = network.now_ns - last_ns
            assert not last_ns or abs(local_ns - last_local_ns - passed_ns) <= 0.012 * passed_ns
            last_ns, last_local_ns = network.now_ns, local_ns


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([-3600 * NS, -NS, -30 * MS, 30 * MS, NS, 3600 * NS]), st.floats(-50, 50)
)
def test_a_jump_of_the_other_clock_is_reported_and_corrected(seed: int, jump_ns: int, ppm: float) -> None:
    network = Network(seed, ppm, jitter_ms=1)
    list(network.run(3))
    network.offset_ns += jump_ns
    network.ping()
    assert network.clock.jumps == 1
    for error_ns, bound_ns in network.run(3):
        assert abs(error_ns) <= bound_ns
    assert network.clock.jumps == 1


def test_a_frame_from_the_future_proves_a_jump_before_any_ping_does() -> None:
    network = Network()
    list(network.run(3))
    assert network.clock.admits(network.remote(network.now_ns - 5 * MS), network.now_ns)
    network.offset_ns -= 10 * NS  # the other clock now reads ten seconds more
    assert not network.clock.admits(network.remote(network.now_ns - 5 * MS), network.now_ns)
    assert not network.clock.known
    assert network.clock.jumps == 1
    network.ping()
    assert network.clock.known
    assert network.clock.jumps == 1
    assert network.clock.admits(network.remote(network.now_ns - 5 * MS), network.now_ns)


def test_a_drift_that_changes_is_followed() -> None:
    network = Network(ppm=0, jitter_ms=0.05)
    list(network.run(40))
    network.offset_ns += round((network.now_ns - 10_000 * NS) * 8e-6)  # so that the clock bends and does not jump
    network.ppm = 8.0
    for error_ns, bound_ns in network.run(40):
        assert abs(error_ns) <= bound_ns + 20 * US
    assert network.clock.drift == pytest.approx(-8e-6, abs=3e-6)


def test_long_runs_keep_bounded_memory() -> None:
    network = Network()
    for _ in network.run(100):
        pass
    assert len(network.clock._intervals) <= HostClock.BLOCKS


# --- moved times ------------------------------------------------------------------------------------------------------


def five_seconds_ago(time_ns: int) -> tuple[int, int]:
    return time_ns - 5 * NS, 100 * US


def test_frame_is_moved_and_its_clock_error_grows_by_the_bound() -> None:
    frame = Frame("camera", 7, 20 * NS, "label", publish_ns=21 * NS, clock_error_ns=40 * US)
    here = moved(frame, five_seconds_ago)
    assert isinstance(here, Frame)
    assert (here.capture_ns, here.publish_ns, here.clock_error_ns, here.seq) == (15 * NS, 16 * NS, 140 * US, 7)


def test_the_end_of_time_is_the_same_everywhere() -> None:
    here = moved(silence("camera", FOREVER_NS, "it has ended"), five_seconds_ago)
    assert isinstance(here, Frame)
    assert (here.capture_ns, here.publish_ns) == (FOREVER_NS, 0)


def test_sets_and_predictions_carry_the_error_in_every_receipt() -> None:
    receipts = (Receipt("camera", "exact", clock_error_ns=10 * US), Receipt("microphone", "silent"))
    frames = {"camera": (Frame("camera", 1, 20 * NS, "label"),)}
    aligned = moved(
        AlignedSet("camera", 20 * NS, frames, receipts, arrival_ns=21 * NS, sent_ns=22 * NS), five_seconds_ago
    )
    assert isinstance(aligned, AlignedSet)
    assert (aligned.anchor_ns, aligned.arrival_ns, aligned.sent_ns) == (15 * NS, 16 * NS, 17 * NS)
    assert aligned.frames["camera"][0].capture_ns == 15 * NS
    assert [r.clock_error_ns for r in aligned.receipts] == [110 * US, 100 * US]
    prediction = moved(
        Prediction("emotion", 20 * NS, ("a",), np.ones(1, np.float32), "a", "m", receipts=receipts), five_seconds_ago
    )
    assert isinstance(prediction, Prediction)
    assert prediction.capture_ns == 15 * NS
    assert [r.clock_error_ns for r in prediction.receipts] == [110 * US, 100 * US]
    assert left_ns(moved(Health(20 * NS, ()), five_seconds_ago)) == 15 * NS


def test_the_bound_holds_while_no_ping_is_answered_and_the_drift_itself_moves_a_little() -> None:
    network = Network(ppm=20.0, there_ms=0.01, back_ms=0.01, jitter_ms=0.002)
    for error_ns, bound_ns in network.run(120):
        assert abs(error_ns) <= bound_ns
    last_ns = network.now_ns
    for silent_s in range(1, 31):
        warmer_ns = round(silent_s * NS * 0.8e-6)  # the other clock runs 0.8 ppm faster from now on
        now_ns = last_ns + silent_s * NS
        local_ns, bound_ns = network.clock.to_local(network.remote(now_ns) + warmer_ns)
        assert abs(local_ns - now_ns) <= bound_ns
