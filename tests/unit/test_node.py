"""The loop that runs a node: what it does when a device is lost, muted, absent or finished."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest

from nodes.align import Align
from nodes.jsonl import Jsonl
from pipeline.alignment.sync_policies import MS
from pipeline.clock import NS, ManualClock
from pipeline.errors import ConfigError, DeviceError
from pipeline.frame import AlignedSet, Frame, Prediction, StreamInfo
from pipeline.metrics import Metrics
from pipeline.node import Arrival, Context, Sink, Source, Transform
from pipeline.runtime.node_loop import run
from pipeline.testing import NodeHarness, play
from pipeline.transport.input_queue import InputQueue


class Flaky(Source):
    """Three frames, then the cable is pulled `pulls` times, then three more."""

    def __init__(self, pulls: int = 1) -> None:
        self.pulls = pulls
        self.opened = 0

    def open(self) -> None:
        self.opened += 1
        if 1 < self.opened <= self.pulls:
            raise DeviceError("camera: still unplugged.", retry=True)

    def info(self) -> StreamInfo:
        return StreamInfo(self.name, "series_f32")

    def frames(self, clock):
        for _ in range(3):
            yield Frame(self.name, -1, clock.now_ns(), "series_f32", np.zeros(1, np.float32))
            clock.advance(100 * MS)
        if self.opened <= self.pulls:
            raise DeviceError("camera: unplugged.", retry=True)


def run_source(
    source: Source, *, lost: DeviceError | None = None, muted: bool = False
) -> tuple[list[Frame], list[tuple]]:
    states: list[tuple] = []
    sent: list[Frame] = []
    source.context = Context("camera", ManualClock(), report_state=lambda state, note: states.append((state, note)))
    if muted:
        source.context.muted.set()
    if lost is None:
        source.open()
    run(source, InputQueue(source.context.clock, Metrics()), sent.append, lost=lost)
    return sent, states


class Wrong(Source):
    """What the author of a first node gets wrong."""

    def __init__(self, make) -> None:
        self.make = make

    def frames(self, clock):
        yield self.make(clock.now_ns())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda now_ns: Frame("camera", -1, now_ns, "series_f32", 20.5), "data is float, expected a numpy array"),
        (
            lambda now_ns: Frame("camera", -1, now_ns, "series", np.zeros(1)),
            "no encoding 'series'.*Did you mean 'series_f32'",
        ),
        (
            lambda now_ns: Frame("camera", -1, now_ns / 2, "series_f32", np.zeros(1)),
            "capture_ns is 0.0 .float., expected whole nanos",
        ),
        (lambda now_ns: 20.5, r"Wrong.frames\(\) yielded float, expected a pipeline.frame.Frame"),
    ],
)
def test_an_invalid_frame_is_refused_at_its_source(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run_source(Wrong(make))


def test_lost_device_is_opened_again_and_watermarks_are_sent_meanwhile():
    sent, states = run_source(Flaky())
    assert [f.encoding for f in sent] == ["series_f32"] * 3 + ["none"] + ["series_f32"] * 3
    assert sent[3].reason == "camera: unplugged."
    assert sent[3].capture_ns == 300 * MS + NS // 2  # nothing can come before the next try
    assert ("silent", "camera: unplugged. Trying again in 0.5 s.") in states
    assert states[-1] == ("running", "")


def test_a_device_that_stays_away_is_tried_every_second():
    sent, states = run_source(Flaky(pulls=4))
    waits = [note.split("again in ")[1] for state, note in states if state == "silent"]
    assert waits == ["0.5 s.", "1.0 s.", "1.0 s.", "1.0 s."]
    assert [f.seq for f in sent] == list(range(len(sent)))


def test_device_that_cannot_come_back_ends_the_node():
    class Broken(Flaky):
        def frames(self, clock):
            yield Frame(self.name, -1, clock.now_ns(), "series_f32", np.zeros(1, np.float32))
            raise DeviceError("camera: burnt.", retry=False)

    with pytest.raises(DeviceError, match="burnt"):
        run_source(Broken())


def test_absent_source_keeps_saying_so_until_it_is_stopped():
    class Stopping(ManualClock):
        def sleep_until(self, when_ns, interrupt=None):
            super().sleep_until(when_ns)
            if when_ns > 20 * NS:
                interrupt.set()
            return True

    source = Flaky()
    sent: list[Frame] = []
    states: list[tuple] = []
    source.context = Context("microphone", Stopping(), report_state=lambda *t: states.append(t))
    lost = DeviceError("microphone: PortAudio is missing.", retry=False)
    run(source, InputQueue(source.context.clock, Metrics()), sent.append, lost=lost)
    assert source.opened == 0
    assert {f.encoding for f in sent} == {"none"}
    until = [f.capture_ns for f in sent]
    assert until == sorted(until) and until[-1] > 20 * NS
    assert states[0] == ("absent", "microphone: PortAudio is missing.")


def test_muted_source_sends_silence_instead_of_data():
    sent, states = run_source(Flaky(pulls=0), muted=True)
    assert {(f.encoding, f.reason, f.data.size) for f in sent} == {("none", "muted", 0)}
    assert states[0] == ("muted", "")


def test_frames_the_device_lost_leave_a_gap_in_seq():
    class Lossy(Flaky):
        def frames(self, clock):
            yield Frame(self.name, -1, 1, "series_f32")
            self.dropped(3, "device buffer full")
            yield Frame(self.name, -1, 2, "series_f32")

    assert [f.seq for f in play(Lossy())] == [0, 4]


def test_frame_data_cannot_be_written_to():
    frame = Frame("camera", 0, 0, "series_f32", np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="read-only"):
        frame.data[0] = 1


class Double(Transform):
    consumes = (Frame,)
    produces = Prediction

    def process(self, arrival):
        yield Prediction("t", 0, ("a",), np.ones(1, np.float32), "a", "m@1", timing_ns={"wait": 10, "infer": 20})

    def finish(self):
        yield from self.process(None)


def test_transform_ends_when_all_its_inputs_have_and_sends_what_it_still_held():
    node = Double()
    node.context = Context("emotion", ManualClock(start_ns=100), ("a", "b"))
    input_queue = InputQueue(node.context.clock, node.context.metrics)
    for source in ("a", "b"):
        input_queue.open(source)
    input_queue.put("a", Frame("a", 0, 0, "none"))
    input_queue.end("a")
    input_queue.end("b")
    sent: list[Prediction] = []
    run(node, input_queue, sent.append, sources=("a", "b"))
    assert len(sent) == 2
    assert node.context.metrics.received == {"a": 1}


def test_prediction_carries_its_total_latency_and_what_was_neither_data_nor_model():
    node = Double()
    node.context = Context("emotion", ManualClock(start_ns=5 * MS), ("a",))
    input_queue = InputQueue(node.context.clock, node.context.metrics)
    input_queue.open("a")
    input_queue.put("a", Frame("a", 0, 0, "none"))
    input_queue.end("a")
    sent: list[Prediction] = []
    run(node, input_queue, sent.append, sources=("a",))
    assert sent[0].timing_ns["total"] == 5 * MS
    assert node.context.metrics.latency("rest").count == 2


def test_sink_sees_everything_then_the_end():
    received: list[str] = []

    class Keep(Sink):
        def consume(self, arrival: Arrival) -> None:
            received.append(arrival.source)

        def finish(self) -> None:
            received.append("end")

    node = Keep()
    node.context = Context("keep", ManualClock(), ("a",), stopping=threading.Event())
    input_queue = InputQueue(node.context.clock, node.context.metrics)
    input_queue.open("a")
    input_queue.put("a", Frame("a", 0, 0, "none"))
    input_queue.end("a")
    run(node, input_queue, received.append, sources=("a",))
    assert received == ["a", "end"]


# --- the align node on the harness
# ----------------------------------------------------------------------------------------


def test_align_node_answers_on_the_stage_without_a_socket():
    with NodeHarness(
        Align(anchor="camera", sync={"imu": {"policy": "latest", "max_age_ms": 50}}), inputs=["camera", "imu"]
    ) as harness:
        harness.send("imu", Frame("imu", 0, 10, "imu_f64"), at_ns=20)
        harness.send("camera", Frame("camera", 0, 30, "bgr8"), at_ns=40)
        [aligned] = harness.send("imu", Frame("imu", 1, 50, "imu_f64"), at_ns=60)
        assert isinstance(aligned, AlignedSet)
        assert aligned.frames["imu"][0].seq == 0
        assert aligned.sent_ns == 60


def test_align_node_gives_up_waiting_when_time_passes():
    with NodeHarness(Align(anchor="camera", max_wait_ms=60), inputs=["camera", "imu"]) as harness:
        harness.send("camera", Frame("camera", 0, 0, "bgr8"), at_ns=0)
        assert harness.wait_until(60 * MS) == []
        assert harness.node.wake_ns() == 60 * MS + 1
        [aligned] = harness.wait_until(61 * MS)
        assert aligned.missing == ("imu",)


def test_align_node_answers_for_a_stream_that_has_ended():
    with NodeHarness(Align(anchor="camera", max_wait_ms=None), inputs=["camera", "imu"]) as harness:
        harness.send("camera", Frame("camera", 0, 0, "bgr8"), at_ns=0)
        [aligned] = harness.end("imu")
        assert aligned.missing == ("imu",)


def test_align_node_names_the_nearest_input_when_its_anchor_is_unknown():
    with pytest.raises(ConfigError, match="Did you mean 'camera'"):
        NodeHarness(Align(anchor="kamera"), inputs=["camera", "imu"])


def test_align_node_refuses_an_anchor_and_a_rate_together():
    with pytest.raises(ValueError, match="either anchor"):
        Align(anchor="camera", anchor_rate_hz=10)


def test_unknown_pick_rule_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'nearest'"):
        Align(anchor="camera", sync={"imu": {"policy": "neares"}})


class Disk:
    """A file on a disk that has room for `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.content = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = data[: self.room]
        self.room -= len(written)
        self.content += written
        return len(written)

    def truncate(self, size: int) -> None:
        self.content = self.content[:size]

    def seek(self, size: int) -> None: ...

    def close(self) -> None: ...


def test_out_holds_whole_lines_only_when_the_disk_is_full_for_a_while(tmp_path):
    node = Jsonl(path=str(tmp_path / "p.jsonl"))
    prediction = Prediction("mood", 0, ("a",), np.ones(1, np.float32), "a", "m")
    with NodeHarness(node, inputs=["mood"]) as harness:
        node._file._file.close()
        node._file._file = disk = Disk(0)
        length = len(msgspec.json.encode(prediction.record())) + 1
        disk.room = 2 * length + length // 2
        for _ in range(4):
            harness.send("mood", prediction)
        disk.room = length
        harness.send("mood", prediction)
    assert len(disk.content.splitlines()) == 3 and len(disk.content) == 3 * length
    assert node.context.metrics.dropped() == {"mood": {"disk full": 2}}
