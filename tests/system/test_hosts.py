"""Two hosts, as two network namespaces with their own monotonic clocks, over an encrypted line that loses and breaks.

`front` has the camera, and a clock that reads 5000 s more; `brain` has the microphone, the aligner and a transform of
somebody else's. Both derive from the one clock of this machine, so the truth about every stamp is known.
"""

from __future__ import annotations

import json
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from network_hosts import SHIFT_S, Cable, connected_hosts, why_not

from pipeline.clock import NS

FRAMES, RATE_HZ = 480, 30

pytestmark = [pytest.mark.system, pytest.mark.paced, pytest.mark.timeout(180)]

CONFIG = """
hosts: {front: FRONT, brain: BRAIN}
nodes:
  camera:
    {use: synthetic, host: front, shared: true, encoding: bgr8, rate_hz: 30, width_px: 96, height_px: 32, count: COUNT}
  sent:       {use: "two_hosts:Stamps", host: front, inputs: [{from: camera, queue: 2000}], path: "SENT"}
  microphone: {use: synthetic, host: brain, encoding: pcm_f32, rate_hz: 50}
  align:
    use: align
    host: brain
    inputs: [camera, microphone]
    anchor: camera
    max_wait_ms: 500  # a loaded machine may wake the microphone late: that is not what is tested here
    sync: {microphone: {policy: window, before_ms: 100}}
  pairs:      {use: "two_hosts:Pairs", host: brain, inputs: [align], process: align}
  received:   {use: "two_hosts:Stamps", host: brain, inputs: [{from: camera, queue: 2000}], path: "RECEIVED"}
"""

NODES = '''
"""Somebody else's nodes."""
import json

import numpy as np

from pipeline.frame import AlignedSet, Frame, Prediction
from pipeline.node import Sink, Transform


class Stamps(Sink):
    """Writes down when each frame was captured."""
    consumes = (Frame,)

    def __init__(self, *, path: str):
        self._path = path

    def open(self):
        self._file = open(self._path, "w", buffering=1)

    def consume(self, arrival):
        f = arrival.message
        print(json.dumps([f.seq, f.capture_ns, f.clock_error_ns, arrival.arrival_ns]), file=self._file)

    def close(self):
        self._file.close()


class Pairs(Transform):
    """What stands in the place of a model: an answer that says nothing, with the receipts of its set."""
    consumes, produces = (AlignedSet,), Prediction

    def process(self, arrival):
        s = arrival.message
        one = np.ones(1, np.float32)
        how = {"used": tuple(s.frames), "missing": s.missing, "receipts": s.receipts}
        yield Prediction("pairs", s.anchor_ns, ("received_stamps",), one, "received_stamps", "pairs", **how)
'''


@pytest.fixture(scope="module")
def cable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cable]:
    if missing := why_not():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "two_hosts.py").write_text(textwrap.dedent(NODES))
    with connected_hosts(folder) as cable:
        yield cable


def stamps(path: Path) -> dict[int, list[int]]:
    """seq → [capture_ns, clock_error_ns, arrival_ns]"""
    return {row[0]: row[1:] for row in map(json.loads, path.read_text().splitlines())}


def config(folder: Path, *, count: int) -> Path:
    text = CONFIG.replace("FRONT", "10.77.0.1").replace("BRAIN", "10.77.0.2").replace("COUNT", str(count))
    text = text.replace("SENT", str(folder / "sent.jsonl")).replace("RECEIVED", str(folder / "received.jsonl"))
    path = folder / "two-hosts.yaml"
    path.write_text(text)
    return path


def until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    give_up_s = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < give_up_s, f"after {seconds} s not yet: {what}"
        time.sleep(0.1)


@dataclass
class Run:
    """What a run on two hosts left behind."""

    sent_stamps: dict[int, list[int]]  # by front's clock
    received_stamps: dict[int, list[int]]  # by brain's
    records: list[dict[str, Any]]
    summaries: dict[str, dict[str, Any]]
    output: dict[str, str]
    parted_ns: tuple[int, int]  # when the cable was pulled and plugged in, by brain's clock


@pytest.fixture(scope="module")
def run(cable: Cable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """16 s: clean, a fifth of the packets lost, clean, the cable pulled for 5 s, clean."""
    folder = tmp_path_factory.mktemp("run")
    path = str(config(folder, count=FRAMES))
    outs = {host.name: folder / f"{host.name}.jsonl" for host in (cable.front, cable.brain)}
    brain = cable.brain.start("run", path, "--host", "brain", "--out", str(outs["brain"]))
    until(lambda: (folder / "received.jsonl").exists(), 20, "brain runs")
    front = cable.front.start("run", path, "--host", "front", "--out", str(outs["front"]))
    try:
        until(lambda: (folder / "sent.jsonl").exists() and len(stamps(folder / "sent.jsonl")) > 90, 30, "front runs")
        cable.lose(20)
        time.sleep(3)
        cable.heal()
        time.sleep(1)
        cable.pull()
        pulled_ns = time.monotonic_ns()
        time.sleep(5)
        cable.plug_in()
        plugged_ns = time.monotonic_ns()
        output = {"front": front.communicate(timeout=40)[0]}
        time.sleep(1)
        brain.send_signal(signal.SIGINT)  # its microphone never ends
        output["brain"] = brain.communicate(timeout=20)[0]
    finally:
        for process in (front, brain):
            process.kill()
    assert (front.returncode, brain.returncode) == (0, 0), output
    lines = {name: [json.loads(line) for line in out.read_text().splitlines()] for name, out in outs.items()}
    return Run(
        stamps(folder / "sent.jsonl"),
        stamps(folder / "received.jsonl"),
        lines["brain"][:-1],
        {name: rows[-1] for name, rows in lines.items()},
        output,
        (pulled_ns, plugged_ns),
    )


def test_every_stamp_from_the_other_host_is_true_within_its_stated_error(run: Run) -> None:
    assert len(run.received_stamps) > FRAMES / 2
    for seq, (capture_ns, error_ns, arrival_ns) in run.received_stamps.items():
        true_ns = run.sent_stamps[seq][0] - SHIFT_S * NS
        assert abs(capture_ns - true_ns) <= error_ns
        assert error_ns < 10_000_000
        assert capture_ns <= arrival_ns + error_ns


def test_sets_are_aligned_within_the_stated_error(run: Run) -> None:
    both = [r for r in run.records if r["used"] == ["camera", "microphone"]]
    assert len(both) > FRAMES / 2
    for record in both:
        camera, microphone = record["receipts"]
        true_ns = run.sent_stamps[camera["seq"][0]][0] - SHIFT_S * NS
        assert camera["clock_error_ns"] > 0
        assert abs(record["capture_ns"] - true_ns) <= camera["clock_error_ns"]
        assert microphone["state"] in ("exact", "partial")
    assert sum(r["receipts"][1]["state"] == "exact" for r in both) > 0.95 * len(both)


def test_nothing_is_unaccounted_after_loss_and_partition(run: Run) -> None:
    for summary in run.summaries.values():
        assert summary["unaccounted"] == {}
    front, brain = run.summaries["front"], run.summaries["brain"]
    sent = brain["from_other_hosts"]["camera → received"]["sent"]
    unpromised = front["frames_in"]["camera"] - sent  # sent before the reader was there
    assert front["frames_in"]["camera"] == FRAMES
    assert 0 <= unpromised < FRAMES / 3
    assert min(run.received_stamps) >= unpromised
    assert len(run.received_stamps) + sum(brain["dropped"].get("received", {}).get("camera", {}).values()) == sent


def test_what_the_partition_cost_is_counted_and_the_stream_goes_on_after_it(run: Run) -> None:
    pulled_ns, plugged_ns = run.parted_ns
    captured_ns = sorted(capture_ns for capture_ns, *_ in run.received_stamps.values())
    before = [t for t in captured_ns if t < pulled_ns]
    after = [t for t in captured_ns if t > plugged_ns]
    assert len(before) > RATE_HZ * 5
    assert after[0] - plugged_ns < 3 * NS
    assert max(run.received_stamps) == FRAMES - 1  # the last frame, and the end, came through
    assert run.summaries["brain"]["dropped"]["received"]["camera"]["lost in transport"] > 0


def test_other_senses_carry_on_while_a_host_is_away(run: Run) -> None:
    pulled_ns, plugged_ns = run.parted_ns
    during = [r for r in run.records if pulled_ns + NS < r["capture_ns"] < plugged_ns - NS]
    assert during
    for record in during:
        assert record["missing"] == ["camera"]
        assert record["receipts"][0]["state"] == "silent"


def test_state_of_the_other_clock_is_shown(run: Run) -> None:
    clock = run.summaries["brain"]["from_other_hosts"]["camera → align"]["clock"]
    assert clock.startswith("clock known to ±")
    assert "jumped" not in clock
    assert "front" in run.output["brain"]


def test_without_a_key_the_host_does_not_start_and_says_why(cable: Cable, tmp_path: Path) -> None:
    path = str(config(tmp_path, count=10))
    hidden = cable.front.keys / "front.secret"
    hidden.rename(tmp_path / "away")
    try:
        front = cable.front.start("run", path, "--host", "front")
        output = front.communicate(timeout=20)[0]
    finally:
        (tmp_path / "away").rename(hidden)
    assert front.returncode == 2
    assert "python run_pipeline.py keys new front" in output


PROGRAM = """
import itertools, json, sys
import pipeline
for frame in itertools.islice(pipeline.subscribe("camera", config=sys.argv[1], host="brain"), 40):
    print(json.dumps([frame.seq, frame.capture_ns, frame.clock_error_ns]), flush=True)
"""


def test_program_on_another_host_reads_a_shared_node_on_its_own_clock(cable: Cable, tmp_path: Path) -> None:
    path = str(config(tmp_path, count=100_000))
    front = cable.front.start("run", path, "--host", "front")
    program = cable.brain.python("-c", PROGRAM, path)
    try:
        output = program.communicate(timeout=40)[0]
        until(
            lambda: (tmp_path / "sent.jsonl").exists() and len(stamps(tmp_path / "sent.jsonl")) > 60, 20, "front writes"
        )
        cable.front.power_off()
        front.wait()
    finally:
        for process in (front, program):
            process.kill()
    assert program.returncode == 0, output
    sent_stamps, received_stamps = (
        stamps(tmp_path / "sent.jsonl"),
        {row[0]: row[1:] for row in map(json.loads, output.splitlines())},
    )
    assert len(received_stamps) == 40
    assert all(
        abs(capture_ns - (sent_stamps[seq][0] - SHIFT_S * NS)) <= error_ns
        for seq, (capture_ns, error_ns) in received_stamps.items()
    )
    assert all(0 < error_ns < 50_000_000 for _, error_ns in received_stamps.values())


def test_a_host_that_was_restarted_with_another_clock_is_read_again(cable: Cable, tmp_path: Path) -> None:
    path = str(config(tmp_path, count=100_000))
    brain = cable.brain.start("run", path, "--host", "brain", "--for", "60s", "--out", str(tmp_path / "brain.jsonl"))
    started = []

    def has_sent(count: int) -> bool:
        return (tmp_path / "sent.jsonl").exists() and len(stamps(tmp_path / "sent.jsonl")) > count

    try:
        for shift_s in (SHIFT_S, SHIFT_S // 2, SHIFT_S * 2):
            cable.front.shift_s = shift_s
            (tmp_path / "sent.jsonl").unlink(missing_ok=True)
            started.append(front := cable.front.start("run", path, "--host", "front"))
            until(lambda: has_sent(60) or front.poll() is not None, 30, "front runs")
            assert front.poll() is None, front.communicate()[0]
            cable.front.power_off()
            front.wait()
            received_stamps, sent_stamps = stamps(tmp_path / "received.jsonl"), stamps(tmp_path / "sent.jsonl")
            newest = max(
                received_stamps.keys() & sent_stamps.keys()
            )  # one of the two may not have got to the very last
            assert (
                abs(received_stamps[newest][0] - (sent_stamps[newest][0] - shift_s * NS)) <= received_stamps[newest][1]
            )
        brain.send_signal(signal.SIGINT)
        output = brain.communicate(timeout=20)[0]
    finally:
        cable.front.shift_s = SHIFT_S
        for process in (*started, brain):
            process.kill()
    assert brain.returncode == 0
    assert "the clock of host 'front' jumped" in output
    *records, summary = map(json.loads, (tmp_path / "brain.jsonl").read_text().splitlines())
    together = [r["capture_ns"] for r in records if r["used"] == ["camera", "microphone"]]
    assert len(together) > 3 * 30  # each time, and not only the first: the aligner was led nowhere
    assert together == sorted(together)
    assert summary["unaccounted"] == {}
    assert "jumped 2 times" in summary["from_other_hosts"]["camera → align"]["clock"]
