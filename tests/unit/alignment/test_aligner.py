"""The promises of the aligner, for any frames in any order of arrival."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment.aligner import Aligner
from pipeline.alignment.sync_policies import MS, Latest, Nearest, Window
from pipeline.frame import FOREVER_NS, AlignedSet, Frame, silence
from pipeline.metrics import UNUSED, USED

SECOND = 1000  # in ms, as all times in these tests


def frame(stream: str, seq: int, capture_ms: float, lasting_ms: float = 0) -> Frame:
    return Frame(stream, seq, round(capture_ms * MS), "series_f32", duration_ns=round(lasting_ms * MS))


def aligner(*, max_wait_ms: float | None = 60, anchor: str | float = "camera", **policies) -> Aligner:
    return Aligner(anchor, policies, max_wait_ns=None if max_wait_ms is None else round(max_wait_ms * MS))


def add(align: Aligner, item: Frame, at_ms: float) -> list[AlignedSet]:
    return align.add(item, round(at_ms * MS))


def states(aligned: AlignedSet) -> dict[str, str]:
    return {r.stream: r.state for r in aligned.receipts}


def content(sets: Iterable[AlignedSet]) -> list[tuple]:
    """All that a replay must reproduce: everything but when a set was sent."""
    return [
        (s.anchor_ns, s.missing, tuple((r.stream, r.state, r.seq, r.span_ns, r.skew_ns, r.reason) for r in s.receipts))
        for s in sets
    ]


def dropped(align: Aligner) -> dict[tuple[str, str], int]:
    return {key: count for key, count in align.take_counts().items() if key[1] not in (USED, UNUSED)}


# --- live: a deadline -------------------------------------------------------------------------------------------------


def test_set_is_sent_as_soon_as_every_answer_is_final():
    align = aligner(imu=Nearest(20))
    assert add(align, frame("camera", 0, 0), at_ms=5) == []
    assert add(align, frame("imu", 0, -1), at_ms=6) == []
    [aligned] = add(align, frame("imu", 1, 4), at_ms=7)
    assert aligned.frames["imu"][0].seq == 0
    assert aligned.missing == ()
    assert states(aligned) == {"camera": "exact", "imu": "nearest"}


def test_set_is_sent_without_the_lidar_when_it_is_60_ms_late():
    align = aligner(max_wait_ms=60, lidar=Nearest(50))
    add(align, frame("lidar", 0, -100), at_ms=-80)
    add(align, frame("camera", 0, 0), at_ms=5)
    assert align.advance(65 * MS) == []
    [aligned] = align.advance(65 * MS + 1)
    assert aligned.missing == ("lidar",)
    assert states(aligned)["lidar"] == "late"


def test_frame_that_arrives_at_the_deadline_is_in_time_and_one_later_is_not():
    for arrival_ms, missing in ((65, ()), (65.001, ("lidar",))):
        align = aligner(max_wait_ms=60, lidar=Nearest(50))
        add(align, frame("lidar", 0, -100), at_ms=-80)
        add(align, frame("camera", 0, 0), at_ms=5)
        [aligned] = add(align, frame("lidar", 1, 0), at_ms=arrival_ms)
        assert aligned.missing == missing


def test_frame_that_comes_after_its_set_was_sent_is_counted_late():
    align = aligner(max_wait_ms=60, lidar=Nearest(50))
    add(align, frame("lidar", 0, -100), at_ms=-80)
    add(align, frame("camera", 0, 0), at_ms=5)
    add(align, frame("lidar", 1, 0), at_ms=100)
    align.finish(200 * MS)
    assert align.take_counts() == {("camera", USED): 1, ("lidar", UNUSED): 1, ("lidar", "late"): 1}


def test_stream_without_a_frame_is_absent():
    align = aligner(lidar=Nearest(50))
    add(align, frame("camera", 0, 0), at_ms=5)
    [aligned] = align.advance(66 * MS)
    assert states(aligned)["lidar"] == "absent"


def test_declared_silence_is_not_waited_for():
    align = aligner(microphone=Window(before_ms=100))
    add(align, silence("microphone", 2 * SECOND * MS, "muted"), at_ms=0)
    [aligned] = add(align, frame("camera", 0, 200), at_ms=205)
    assert states(aligned)["microphone"] == "silent"
    assert aligned.receipts[1].reason == "muted"


def test_stream_that_stopped_without_a_watermark_is_not_waited_for_after_a_second():
    align = aligner(microphone=Window(before_ms=100))
    add(align, frame("microphone", 0, 0, lasting_ms=20), at_ms=20)
    for i in range(15):  # the anchor continues, so no tick stands in for it
        add(align, frame("camera", i, i * 100), at_ms=i * 100 + 5)
    [aligned] = add(align, frame("camera", 15, 1500), at_ms=1505)
    assert states(aligned)["microphone"] == "silent"
    assert aligned.receipts[1].reason == "nothing arrived for 1.5 s"


def test_max_wait_of_zero_sends_at_once_with_what_is_there():
    align = aligner(max_wait_ms=0, imu=Latest(50))
    add(align, frame("imu", 0, 0), at_ms=1)
    add(align, frame("camera", 0, 10), at_ms=12)
    [aligned] = align.advance(12 * MS + 1)
    assert states(aligned) == {"camera": "exact", "imu": "held"}


# --- silent anchor, fixed rate ----------------------------------------------------------------------------------------


def test_ticks_at_the_last_rate_take_over_when_the_anchor_falls_silent():
    align = aligner(max_wait_ms=60, imu=Latest(50))
    sets = []
    for i in range(10):
        sets += add(align, frame("imu", i, i * 100 + 1), at_ms=i * 100 + 1)
        sets += add(align, frame("camera", i, i * 100 + 2), at_ms=i * 100 + 3)
    for i in range(10, 20):
        sets += add(align, frame("imu", i, i * 100 + 1), at_ms=i * 100 + 1)
    ticks = [s for s in sets if "camera" in s.missing]
    assert [s.anchor_ns / MS for s in ticks] == [1402, 1502, 1602, 1702, 1802]
    assert all(states(s)["camera"] == "silent" for s in ticks)


def test_the_anchor_coming_back_ends_the_ticks_and_nothing_goes_back_in_time():
    align = aligner(max_wait_ms=0)
    sets = [s for i in range(5) for s in add(align, frame("camera", i, i * 100), at_ms=i * 100)]
    sets += align.advance(1000 * MS)
    sets += add(align, frame("camera", 5, 850), at_ms=1000)  # older than the last tick
    sets += add(align, frame("camera", 6, 1050), at_ms=1050)
    sets += align.advance(1060 * MS)
    anchors = [s.anchor_ns for s in sets]
    assert anchors == sorted(set(anchors))
    assert anchors[-1] == 1050 * MS
    assert align.take_counts() == {("camera", USED): 6, ("camera", "late: its set was already sent"): 1}


def test_finished_anchor_starts_no_ticks():
    align = aligner(max_wait_ms=0)
    add(align, frame("camera", 0, 0), at_ms=0)
    add(align, silence("camera", FOREVER_NS, "ended"), at_ms=10)
    assert align.advance(10 * SECOND * MS) == []


def test_fixed_rate_makes_a_set_at_every_tick_whatever_arrives():
    align = aligner(anchor=10.0, max_wait_ms=0, imu=Latest(50))
    sets = align.advance(1 * SECOND * MS)
    assert [s.anchor_ns // MS for s in sets] == list(range(0, 1000, 100))
    assert all(s.missing == ("imu",) for s in sets)


# --- order, duplicates, bounds ----------------------------------------------------------------------------------------


def test_in_proof_mode_ticks_are_sent_once_every_stream_has_passed_them():
    align = aligner(anchor=10.0, max_wait_ms=None, imu=Nearest(20), lidar=Nearest(20))
    sets = [
        aligned
        for seq in range(51)
        for stream in ("imu", "lidar")
        for aligned in add(align, frame(stream, seq, 20 * seq), at_ms=20 * seq + 1)
    ]
    assert [aligned.anchor_ns // MS for aligned in sets] == list(range(0, 1001, 100))
    assert all(aligned.missing == () for aligned in sets)


def test_anchor_after_one_that_had_to_go_without_a_stream_is_answered_at_once():
    align = aligner(lidar=Nearest(50))
    add(align, frame("camera", 0, 0), at_ms=5)
    [without] = align.advance(66 * MS)
    assert without.missing == ("lidar",)
    add(align, frame("lidar", 0, 100), at_ms=120)
    add(align, frame("lidar", 1, 200), at_ms=201)
    [aligned] = add(align, frame("camera", 1, 110), at_ms=202)
    assert aligned.frames["lidar"][0].seq == 0


def test_an_anchor_that_comes_twice_starts_one_set_and_is_counted():
    align = aligner(max_wait_ms=0)
    sets = [s for seq in (0, 1) for s in add(align, frame("camera", seq, 10), at_ms=11 + seq)] + align.finish(99 * MS)
    assert len(sets) == 1
    assert dropped(align) == {("camera", "late: its set was already sent"): 1}


def test_duplicates_and_frames_that_go_back_in_time_are_counted_and_change_nothing():
    align = aligner(max_wait_ms=None, imu=Nearest(20))
    add(align, frame("imu", 0, 0), at_ms=0)
    add(align, frame("imu", 0, 0), at_ms=1)
    add(align, frame("imu", 1, -5), at_ms=2)
    add(align, frame("camera", 0, 1), at_ms=3)
    [aligned] = add(align, frame("imu", 2, 30), at_ms=31)
    assert aligned.frames["imu"][0].seq == 0
    assert dropped(align) == {("imu", "duplicate"): 1, ("imu", "timestamp before the last one"): 1}


def test_source_that_was_restarted_counts_from_zero_and_is_read_on():
    align = aligner(max_wait_ms=None, imu=Nearest(20))
    add(align, frame("imu", 900, 0), at_ms=0)
    add(align, frame("imu", 0, 500), at_ms=500)
    [aligned] = add(align, frame("camera", 0, 500), at_ms=501)
    assert aligned.frames["imu"][0].capture_ns == 500 * MS
    assert align.take_counts() == {("camera", USED): 1, ("imu", UNUSED): 1}


def test_pending_anchors_are_bounded_and_dropped_ones_are_counted():
    align = Aligner("camera", {"imu": Nearest(20)}, max_wait_ns=None, max_pending=8)
    for i in range(20):
        add(align, frame("camera", i, i * 10), at_ms=i * 10)
    assert align.take_counts() == {("camera", "too many anchors pending"): 12}


def test_memory_does_not_grow_with_the_run():
    align = aligner(max_wait_ms=60, microphone=Window(before_ms=1000), imu=Nearest(5))
    for i in range(3000):
        add(align, frame("microphone", i, i * 20, lasting_ms=20), at_ms=i * 20 + 20)
        add(align, frame("imu", i, i * 20), at_ms=i * 20 + 20)
        add(align, frame("camera", i, i * 20), at_ms=i * 20 + 20)
    buffered = {name: len(stream.frames) for name, stream in align._buffers.items()}
    assert buffered["microphone"] <= 60 and buffered["imu"] <= 5


def test_a_stream_far_ahead_has_no_room_but_never_all_streams():
    align = aligner(max_wait_ms=None, imu=Nearest(20))
    for i in filter(lambda _: align.has_room("imu"), range(200)):
        add(align, frame("imu", i, i * 10), at_ms=i)
    assert not align.has_room("imu") and align.has_room("camera")


# --- properties -------------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> dict[str, list[Frame]]:
    """Three streams with jitter, drops and declared silences, each in its own order."""
    streams: dict[str, list[Frame]] = {}
    for name, period_ms, lasting_ms in (("camera", 33, 0), ("microphone", 20, 20), ("imu", 11, 0)):
        items: list[Frame] = []
        paused_ms = 0
        for i in range(draw(st.integers(0, 25))):
            what = draw(st.sampled_from(["frame"] * 8 + ["drop", "silence", "pause"]))
            capture_ms = paused_ms + i * period_ms + (0 if lasting_ms else draw(st.integers(0, 8)))
            if what == "frame":
                items.append(frame(name, i, capture_ms, lasting_ms))
            elif what == "silence":
                items.append(silence(name, capture_ms * MS, f"nothing at {i}"))
            elif what == "pause":  # long enough for ticks to stand in for the anchor
                paused_ms += 700
                items.append(silence(name, (capture_ms + 700) * MS, f"pause at {i}"))
        items.append(silence(name, FOREVER_NS, "ended"))
        streams[name] = items
    return streams


def interleave(streams: dict[str, list[Frame]], choices: Sequence[int]) -> list[Frame]:
    left = {name: list(items) for name, items in streams.items()}
    order = []
    for choice in choices:
        names = [name for name, items in left.items() if items]
        if not names:
            break
        order.append(left[names[choice % len(names)]].pop(0))
    return order + [item for items in left.values() for item in items]


POLICIES = {"microphone": Window(before_ms=100), "imu": Nearest(6)}
choices = st.lists(st.integers(0, 5), max_size=90)


@settings(max_examples=150, deadline=None)
@given(runs(), choices, choices)
def test_in_proof_mode_the_result_does_not_depend_on_how_the_streams_interleave(streams, one, other):
    results = []
    for order in (one, other):
        align = Aligner("camera", POLICIES, max_wait_ns=None)
        sets = [s for i, item in enumerate(interleave(streams, order)) for s in align.add(item, i)]
        results.append(content(sets + align.finish(10_000)))
    assert results[0] == results[1]


@settings(max_examples=150, deadline=None)
@given(runs(), choices, st.lists(st.integers(0, 40), min_size=90, max_size=90), st.data())
def test_the_result_does_not_depend_on_when_advance_is_called(streams, order, gaps_ms, data):
    arrivals = []
    at_ms = 0
    for item, gap_ms in zip(interleave(streams, order), gaps_ms, strict=False):
        at_ms += gap_ms
        arrivals.append((item, at_ms * MS))

    def play(jittered: bool) -> list[tuple]:
        align = Aligner("camera", POLICIES, max_wait_ns=30 * MS)
        sets: list[AlignedSet] = []
        last_ns = 0
        for item, arrival_ns in arrivals:
            if jittered:
                for now_ns in sorted(data.draw(st.lists(st.integers(last_ns, arrival_ns), max_size=3))):
                    sets += align.advance(now_ns)
            sets += align.add(item, arrival_ns)
            last_ns = arrival_ns
        return content(sets + align.finish(last_ns + 1000 * MS))

    assert play(jittered=True) == play(jittered=False)


@settings(max_examples=150, deadline=None)
@given(runs(), choices, st.lists(st.integers(0, 40), min_size=90, max_size=90), st.sampled_from([None, 0, 30]))
def test_anchors_come_out_in_order_each_once_and_with_a_receipt_for_every_stream(streams, order, gaps_ms, max_wait_ms):
    align = aligner(max_wait_ms=max_wait_ms, **POLICIES)
    sets: list[AlignedSet] = []
    at_ms = 0
    for item, gap_ms in zip(interleave(streams, order), gaps_ms, strict=False):
        at_ms += gap_ms
        sets += add(align, item, at_ms)
    sets += align.finish((at_ms + 1000) * MS)
    anchors = [s.anchor_ns for s in sets]
    assert anchors == sorted(set(anchors))
    in_order = interleave(streams, order)[: len(gaps_ms)]
    added = Counter(item.stream for item in in_order if item.seq >= 0)  # not the aligner's own watermarks
    outcomes: Counter[str] = Counter()
    for (stream, _), count in align.take_counts().items():
        outcomes[stream] += count
    assert outcomes == added, "every frame ends in exactly one of: used, not wanted, dropped with a reason"
    for aligned in sets:
        assert [r.stream for r in aligned.receipts] == ["camera", "microphone", "imu"]
        assert {r.stream for r in aligned.receipts if r.present} == set(aligned.frames)
        assert set(aligned.missing) == {"camera", "microphone", "imu"} - set(aligned.frames)


@settings(max_examples=150, deadline=None)
@given(runs(), choices)
def test_in_proof_mode_every_set_is_the_best_one_of_an_offline_matcher(streams, order):
    align = Aligner("camera", POLICIES, max_wait_ns=None)
    sets = [s for i, item in enumerate(interleave(streams, order)) for s in align.add(item, i)]
    sets += align.finish(10_000)
    real = {name: [f for f in items if f.encoding != "none"] for name, items in streams.items()}
    assert [s.anchor_ns for s in sets if "camera" in s.frames] == [f.capture_ns for f in real["camera"]]
    for aligned in sets:
        best = min((abs(f.capture_ns - aligned.anchor_ns) for f in real["imu"]), default=FOREVER_NS)
        if best <= 6 * MS:
            assert abs(aligned.frames["imu"][0].capture_ns - aligned.anchor_ns) == best
        else:
            assert "imu" in aligned.missing
        begin_ns = aligned.anchor_ns - 100 * MS
        inside = [f.seq for f in real["microphone"] if f.end_ns > begin_ns and f.capture_ns < aligned.anchor_ns]
        assert [f.seq for f in aligned.frames.get("microphone", ())] == inside
