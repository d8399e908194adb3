"""Recorded arrivals fed to an aligner again, and the clock of a replay. Nothing runs here."""

from __future__ import annotations

import threading
import time

import msgspec
import numpy as np

from pipeline.alignment.event_log import AlignerConfig, ArrivalEvent, FinishEvent
from pipeline.alignment.options import AlignerOptions
from pipeline.alignment.sync_policies import MS
from pipeline.clock import NS, ReplayClock
from pipeline.frame import Frame
from pipeline.recording.arrival_replay import NOT_RECEIVED, NOT_RECORDED, ArrivalReplay, ShedSets, realigned_events
from pipeline.recording.writer import Writer


def test_the_clock_of_a_replay_goes_at_its_speed_and_stands_while_paused():
    clock, stop = ReplayClock(1000 * NS, speed=20), threading.Event()
    assert clock.now_ns() == 1000 * NS
    clock.begin(time.monotonic_ns())
    assert clock.sleep_until(1001 * NS, stop)
    assert clock.now_ns() >= 1001 * NS
    clock.pause()
    stands_ns = clock.now_ns()
    time.sleep(0.01)
    assert clock.now_ns() == stands_ns and clock.paused
    clock.resume()
    assert clock.wait_while_paused(stop) and clock.now_ns() >= stands_ns
    stop.set()
    assert not clock.sleep_until(stands_ns + 3600 * NS, stop)


def picture(seq: int) -> Frame:
    return Frame("camera", seq, seq * 40 * MS, "bgr8", np.full((60, 80, 3), seq, np.uint8), publish_ns=seq * 40 * MS)


def arrivals(*frames: Frame) -> list[ArrivalEvent]:
    return [ArrivalEvent(f.stream, f.seq, f.capture_ns, 0, 0, f.encoding, "", f.capture_ns + MS) for f in frames]


def aligner_config() -> AlignerConfig:
    return AlignerOptions(anchor="camera").config(["camera"], 0)


def test_frames_that_the_recorded_aligner_did_not_receive_are_passed_over_and_counted():
    replay = ArrivalReplay(iter([aligner_config(), *arrivals(picture(0), picture(2))]))
    sets = [s for seq in range(4) for s in replay.add(picture(seq))] + replay.ended("camera") + replay.finish()
    assert [s.anchor_ns for s in sets] == [0, 80 * MS]
    assert dict(replay.counts) == {("camera", NOT_RECEIVED): 2}


def test_a_replay_counts_what_becomes_of_frames_as_the_live_aligner_does():
    """Two pictures at one time, and one that goes back: all of them arrived, and the live aligner dropped two."""
    again = msgspec.structs.replace(picture(1), seq=2)
    back = msgspec.structs.replace(picture(0), seq=3)
    frames = [picture(0), picture(1), again, back]
    live = aligner_config().aligner()
    for frame, arrival in zip(frames, arrivals(*frames), strict=True):
        live.add(frame, max(arrival.arrival_ns, 40 * MS + MS))
    live.finish(NS)
    at_ns = 40 * MS + MS
    recorded = [msgspec.structs.replace(arrival, arrival_ns=at_ns) for arrival in arrivals(*frames)]
    replay = ArrivalReplay(iter([aligner_config(), *recorded, FinishEvent(NS)]))
    for frame in frames:
        replay.add(frame)
    replay.ended("camera")
    replay.finish()
    counts = replay.take_counts()
    assert counts == live.take_counts() and counts.total() == len(frames)


def test_a_frame_that_is_not_in_the_recording_keeps_its_place_without_its_payload():
    replay = ArrivalReplay(iter([aligner_config(), *arrivals(picture(0), picture(1), picture(2))]))
    sets = [s for seq in (0, 2) for s in replay.add(picture(seq))] + replay.ended("camera") + replay.finish()
    assert [(s.frames["camera"][0].seq, s.frames["camera"][0].data.size) for s in sets] == [
        (0, 14400),
        (1, 0),
        (2, 14400),
    ]
    assert dict(replay.counts) == {("camera", NOT_RECORDED): 1}


def test_arrivals_outside_of_the_replayed_part_are_skipped():
    replay = ArrivalReplay(
        iter([aligner_config(), *arrivals(*map(picture, range(6))), FinishEvent(99 * NS)]), partial=True
    )
    sets = [s for seq in (2, 3) for s in replay.add(picture(seq))] + replay.ended("camera") + replay.finish()
    assert [s.anchor_ns for s in sets] == [80 * MS, 120 * MS]
    assert +replay.counts == {}


def test_only_the_stream_that_is_due_is_asked_for():
    replay = ArrivalReplay(iter([aligner_config(), *arrivals(picture(0))]))
    replay._advance()
    assert replay.next_stream == "camera"
    replay.add(picture(0))
    assert replay.next_stream is None


def test_sets_that_were_shed_are_those_without_a_prediction():
    shed = ShedSets([10, 30, 40])
    assert [(anchor in shed) for anchor in (10, 20, 30, 35, 40, 50)] == [False, True, False, True, False, True]


def test_realigned_frames_arrive_in_the_order_in_which_they_left_their_sources(tmp_path):
    path = tmp_path / "a.mcap"
    with Writer(path, about={}) as writer:
        for frame in (picture(2), picture(0), picture(1)):
            writer.write("camera", frame)
    events = [e for e in realigned_events(path, aligner_config(), ["camera"]) if isinstance(e, ArrivalEvent)]
    assert [e.seq for e in events] == [0, 1, 2]
