"""An anchor stream that was silent is used again, whatever the moment and the delay at which it comes back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipeline.alignment.aligner import SET_ALREADY_SENT, Aligner
from pipeline.alignment.sync_policies import MS, Latest
from pipeline.frame import AlignedSet, Frame

PERIOD_MS, DELAY_MS = 50, 5
SILENT_FROM_MS, BACK_AT_MS, END_MS = 2000, 4000, 9000


def run(*, phase_ms: float, delay_ms: float) -> tuple[list[AlignedSet], Aligner]:
    """A camera at 20 Hz that is silent for two seconds and comes back otherwise; `other` is steady."""
    aligner = Aligner("camera", {"other": Latest()}, max_wait_ns=60 * MS)
    arrivals = [(t + 1.0, Frame("other", t // 10, t * MS, "series_f32")) for t in range(0, END_MS, 10)]
    for seq, t in enumerate(range(0, SILENT_FROM_MS, PERIOD_MS)):
        arrivals.append((t + DELAY_MS, Frame("camera", seq, t * MS, "series_f32")))
    for seq, t in enumerate(range(BACK_AT_MS, END_MS, PERIOD_MS)):
        capture_ms = t + phase_ms
        arrivals.append((capture_ms + delay_ms, Frame("camera", 100 + seq, round(capture_ms * MS), "series_f32")))
    sets: list[AlignedSet] = []
    for arrival_ms, frame in sorted(arrivals, key=lambda pair: (pair[0], pair[1].stream)):
        sets += aligner.add(frame, round(arrival_ms * MS))
    return sets, aligner


@pytest.mark.parametrize("delay_ms", [1, 5, 5.5, 40, 120, 700, 2900])
@pytest.mark.parametrize("phase_ms", [0, 0.4, 25, 49.6])
def test_anchor_that_comes_back_is_used_once_it_has_caught_up(phase_ms: float, delay_ms: float) -> None:
    sets, aligner = run(phase_ms=phase_ms, delay_ms=delay_ms)
    whole_ms = [s.anchor_ns / MS for s in sets if not s.missing and s.anchor_ns >= BACK_AT_MS * MS]
    assert whole_ms, "no frame of the camera was used again"
    assert whole_ms[0] <= BACK_AT_MS + delay_ms + 2 * PERIOD_MS
    after = [s for s in sets if s.anchor_ns / MS >= whole_ms[0]]
    assert not any(s.missing for s in after)
    assert all(b.anchor_ns > a.anchor_ns for a, b in pairwise(sets))
    refused = aligner.take_counts()["camera", SET_ALREADY_SENT]
    assert refused <= delay_ms / PERIOD_MS + 2


def test_frames_of_the_distant_past_do_not_stop_the_stand_ins() -> None:
    aligner = Aligner("camera", {"other": Latest()}, max_wait_ns=60 * MS)
    sets: list[AlignedSet] = []
    for t in range(0, 20_000, 50):
        sets += aligner.add(Frame("other", t // 50, t * MS, "series_f32"), t * MS)
        if t > 10_000:  # its clock is ten seconds behind
            sets += aligner.add(Frame("camera", t // 50, (t - 9_990) * MS // 100, "series_f32"), t * MS + 1)
    assert sum(s.anchor_ns > 10_000 * MS for s in sets) > 90
