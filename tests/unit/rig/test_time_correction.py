"""A measured offset takes effect: capture times move, and their error bound grows by how well the offset is known."""

from __future__ import annotations

import numpy as np
import pytest

import run_pipeline
from nodes.auto_time import AutoTime
from nodes.microphone import Microphone
from pipeline.cli.auto_time import with_auto_time
from pipeline.clock import ManualClock
from pipeline.errors import ConfigError
from pipeline.frame import FOREVER_NS, Frame, StreamInfo, silence
from pipeline.metrics import Metrics
from pipeline.node import Context, Source
from pipeline.rig.rig import Rig, TimeOffset
from pipeline.rig.rig_file import save_rig
from pipeline.rig.time_correction import TimeCorrection, time_correction
from pipeline.runtime.config import load
from pipeline.runtime.node_loop import run
from pipeline.testing import NodeHarness, play
from pipeline.transport.input_queue import InputQueue


@pytest.fixture
def tone(tmp_path):
    """A second of sound."""
    import wave

    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((3000 * np.sin(np.arange(16000) / 5)).astype(np.int16).tobytes())
    return str(tmp_path / "tone.wav")


@pytest.fixture
def rig_file(tmp_path):
    path = tmp_path / "rig.yaml"
    save_rig(Rig().with_time_offset(TimeOffset("microphone", "camera", -21.5, 1.5)), path)
    return str(path)


def test_offset_ms_moves_every_capture_time(tone):
    plain = play(Microphone(device=tone, realtime=False), name="microphone")
    moved = play(Microphone(device=tone, realtime=False, offset_ms=-30.0), name="microphone")
    assert {b.capture_ns - a.capture_ns for a, b in zip(plain, moved, strict=True)} == {-30_000_000}


def test_a_rig_gives_the_offset_under_the_nodes_name_and_how_well_it_is_known(tone, rig_file):
    plain = play(Microphone(device=tone, realtime=False), name="microphone", count=1)[0]
    moved = play(Microphone(device=tone, realtime=False, rig=rig_file), name="microphone", count=1)[0]
    assert moved.capture_ns - plain.capture_ns == -21_500_000
    assert moved.clock_error_ns - plain.clock_error_ns == 3_000_000  # 2 σ


class Thermometer(Source):
    """A sensor of somebody's own, late by what they measured."""

    def __init__(self, *, offset_ms: float | None = None, rig: str | None = None) -> None:
        super().__init__(offset_ms=offset_ms, rig=rig)

    def info(self) -> StreamInfo:
        return StreamInfo(self.name, "series_f32")

    def frames(self, clock):
        yield Frame(self.name, -1, 0, "series_f32", np.float32([21.5]))


def test_a_sensor_of_ones_own_takes_the_options_too(rig_file):
    assert [frame.capture_ns for frame in play(Thermometer(offset_ms=-30.0))] == [-30_000_000]
    assert [frame.capture_ns for frame in play(Thermometer(rig=rig_file), name="microphone")] == [-21_500_000]


def test_the_reference_itself_is_not_moved(rig_file):
    assert time_correction("camera", offset_ms=None, rig=rig_file) == TimeCorrection()


def test_a_sensor_that_the_rig_does_not_hold_is_refused_with_the_nearest(rig_file):
    with pytest.raises(ConfigError, match="no sensor called 'microfone'.*Did you mean 'microphone'"):
        time_correction("microfone", offset_ms=None, rig=rig_file)


def test_an_offset_and_a_rig_contradict_each_other(rig_file):
    with pytest.raises(ConfigError, match="leave one of them out"):
        Microphone(offset_ms=3.0, rig=rig_file)


def test_a_promise_of_silence_moves_with_the_frames_but_the_end_of_time_does_not():
    correction = TimeCorrection(-5, 0)
    assert correction.apply(silence("microphone", 100, "muted")).capture_ns == 95
    assert correction.apply(silence("microphone", FOREVER_NS, "ended")).capture_ns == FOREVER_NS


def test_auto_time_is_added_to_a_graph_with_the_offset_that_is_in_use():
    config = load("configs/emotion-live.yaml", ["nodes.microphone.offset_ms=12"])
    node = with_auto_time(config, "").nodes["auto-time"]
    assert [i.source for i in node.inputs] == ["camera", "microphone"] and node.options["in_use_ms"] == 12


def test_auto_time_without_a_microphone_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("nodes:\n  camera: {use: camera}\n  console: {use: dashboard, inputs: [camera]}\n")
    with pytest.raises(ConfigError, match="has no microphone"):
        with_auto_time(load(tmp_path / "c.yaml"), "")


def test_the_command_line_knows_auto_time():
    assert run_pipeline.parser().parse_args(["run", "--auto-time"]).auto_time


def test_a_session_with_flashes_offers_the_correction_at_its_end(capsys):
    harness = NodeHarness(AutoTime(faces=False, in_use_ms=10.0), inputs=["camera", "microphone"])
    draw = np.random.default_rng(0)
    events = 1 + np.cumsum(draw.uniform(0.5, 1.2, 10))
    sound = draw.normal(0, 0.002, round((events[-1] + 1) * 16000)).astype(np.float32)
    for event in events:
        sound[round((event - 0.04) * 16000) :][:800] += 0.4  # stamped 40 ms too early
    for k in range(round((events[-1] + 1) * 30)):
        lit = float(np.clip((k / 30 + 0.01 - events) / 0.02, 0, 1)[np.abs(k / 30 - events - 0.03) < 0.1].max(initial=0))
        picture = np.full((24, 32, 3), round(60 + 120 * lit), np.uint8)
        harness.send("camera", Frame("camera", k, k * 10**9 // 30, "bgr8", picture))
        chunk = sound[k * 533 : k * 533 + 533].copy()
        at_ns = k * 533 * 10**9 // 16000
        harness.send(
            "microphone", Frame("microphone", k, at_ns, "pcm_f32", chunk, duration_ns=len(chunk) * 10**9 // 16000)
        )
    harness.end()
    out = capsys.readouterr().out
    assert "leads the picture" in out
    offered = float(out.partition("nodes.microphone.offset_ms=")[2].split()[0])
    assert offered == pytest.approx(50, abs=3)


def test_a_session_in_which_nothing_happened_says_what_to_do(capsys):
    harness = NodeHarness(AutoTime(faces=False), inputs=["camera", "microphone"])
    harness.end()
    assert "unknown" in capsys.readouterr().out


def test_the_loop_that_runs_a_source_applies_it(tone):
    sent: list[Frame] = []
    microphone = Microphone(device=tone, realtime=False, offset_ms=-30.0)
    microphone.context = Context("microphone", ManualClock(0))
    microphone.open()
    run(microphone, InputQueue(microphone.context.clock, Metrics()), sent.append)
    microphone.close()
    assert sent[0].capture_ns == -30_000_000
