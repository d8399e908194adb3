"""Every decision of the aligner can be derived again from what arrived, and a log that was altered is found out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes.align import Align
from pipeline.alignment.event_log import verify
from pipeline.alignment.options import AlignerOptions
from pipeline.alignment.sync_policies import MS
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.testing import NodeHarness

SYNC = {
    "microphone": {"policy": "window", "before_ms": 100},
    "imu": {"policy": "nearest"},
    "pose": {"policy": "interpolate"},
}


def align(path: Path, **options) -> Align:
    return Align(anchor="camera", sync=SYNC, event_log=str(path), **options)


def arrivals(seed_gaps_ms: list[int]) -> list[tuple[str, Frame, int]]:
    """Four streams in an order that the drawn gaps decide; some frames come long after their time."""
    seqs = dict.fromkeys(("camera", "microphone", "imu", "pose"), 0)
    at_ms, out = 0, []
    for i, gap_ms in enumerate(seed_gaps_ms):
        name = list(seqs)[(gap_ms + i) % 4]
        at_ms += gap_ms
        lasting_ns = 20 * MS if name == "microphone" else 0
        captured_ms = seqs[name] * 20 if name == "microphone" else at_ms - gap_ms % 13
        out.append((name, Frame(name, seqs[name], captured_ms * MS, "series_f32", duration_ns=lasting_ns), at_ms * MS))
        seqs[name] += 1
    return out


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 60), max_size=120), st.sampled_from([0, 25, 60, None]), st.sampled_from(["ready", "now"])
)
def test_every_set_of_any_run_follows_from_its_event_log(tmp_path, gaps_ms, max_wait_ms, emit):
    path = tmp_path / "events.jsonl"
    node = align(path, max_wait_ms=max_wait_ms, emit=emit)
    with NodeHarness(node, inputs=["camera", "microphone", "imu", "pose"]) as harness:
        for i, (source, frame, at_ns) in enumerate(arrivals(gaps_ms)):
            if i % 3 == 0:  # as often as a real loop finds nothing to do
                harness.wait_until(max(harness.clock.now_ns(), at_ns - MS))
            harness.send(source, frame, at_ns=at_ns)
        harness.end()
        sent = len(harness.emitted)
    verdict = verify(path)
    assert verdict.differences == ()
    assert verdict.sets == sent


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    with NodeHarness(align(path), inputs=["camera", "microphone", "imu", "pose"]) as harness:
        for source, frame, at_ns in arrivals([7, 13, 21, 4, 9, 30] * 20):
            harness.send(source, frame, at_ns=at_ns)
        harness.end()
    return path


def alter(path: Path, kind: str, change) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = [i for i, event in enumerate(lines) if event[0] == kind]
    change(lines, chosen[len(chosen) // 2])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_set_that_was_altered_is_named(log):
    alter(log, "set", lambda lines, i: lines[i].__setitem__(2, ["imu"]))
    assert len(verify(log).differences) == 1


@pytest.mark.parametrize(("field", "value"), [(0, "lidar"), (1, "late"), (2, [99]), (4, 12345), (6, 7), (7, "altered")])
def test_receipt_that_was_altered_in_any_field_but_its_age_is_named(log, field, value):
    alter(log, "set", lambda lines, i: lines[i][3][0].__setitem__(field, value))
    assert len(verify(log).differences) == 1


def test_last_set_that_was_removed_is_noticed(log):
    lines = log.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith('["set"'))
    log.write_text("\n".join(lines[:last] + lines[last + 1 :]) + "\n")
    [difference] = verify(log).differences
    assert "derived, but was not sent" in difference


def test_arrival_that_was_removed_is_noticed(log):
    alter(
        log,
        "arrival",
        lambda lines, i: lines.pop(next(j for j in range(i, len(lines)) if lines[j][:2] == ["arrival", "camera"])),
    )
    assert verify(log).differences


def test_set_that_was_removed_is_noticed(log):
    alter(log, "set", lambda lines, i: lines.pop(i))
    assert verify(log).differences


def test_foreign_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    with pytest.raises(ConfigError, match=r"notes\.txt:1: not a line of an event log"):
        verify(path)


def test_event_log_that_cannot_be_written_names_the_place(tmp_path):
    node = align(tmp_path / "no-such-folder" / "events.jsonl")
    with pytest.raises(ConfigError, match="no-such-folder"), NodeHarness(node, inputs=["camera", *SYNC]) as harness:
        harness.wait_until(1)
        harness.send("imu", Frame("imu", 0, 0, "series_f32"))


# --- logs of others ---------------------------------------------------------------------------------------------------

CONFIG = '["config", {anchor}, {{"imu": {imu}}}, {wait}, "ready", {start}]\n'
PLAIN = {"anchor": "10.0", "imu": '{"policy": "nearest"}', "wait": "10000000", "start": "0"}
ARRIVAL = '["arrival", "imu", 0, {capture}, {duration}, 0, "series_f32", "", {arrival}]\n'


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"anchor": "0.0"}, "anchor_rate_hz: found 0, expected 0.0001 to 10000"),
        ({"anchor": "-1.0"}, "anchor_rate_hz: found -1"),
        ({"anchor": "1e308"}, "anchor_rate_hz: found 1e[+]308"),
        ({"wait": "-5"}, "max_wait_ms: found"),
        ({"wait": "9000000000000000000"}, "max_wait_ms: found 9e[+]12"),
        ({"start": "9000000000000000000"}, "start_ns: found 9000000000000000000"),
        ({"imu": '{"policy": "window", "before_ms": 1e300}'}, "sync.imu.before_ms: found 1e[+]300"),
        ({"imu": '{"policy": "nearest", "within_ms": -1.0}'}, "sync.imu.within_ms: found -1"),
        ({"imu": '{"policy": "nearest", "wihtin_ms": 1.0}'}, "sync.imu: unknown key 'wihtin_ms'"),
    ],
)
def test_a_log_whose_aligner_could_not_have_run_is_refused(tmp_path, changed, message):
    path = tmp_path / "events.jsonl"
    path.write_text(CONFIG.format(**{**PLAIN, **changed}))
    with pytest.raises(ConfigError, match=rf"events\.jsonl: {message}"):
        verify(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (ARRIVAL.format(capture=0, duration=0, arrival=10**18), "event 1 lies so far after the one before"),
        (ARRIVAL.format(capture=0, duration=0, arrival=1 << 63), "not a line|event 1: a time of 9223372036854775808"),
        ('["finish", 1000000000000000000]\n', "event 1 lies so far after"),
        ("[" * 10_000 + "\n", "2: not a line of an event log"),
        ("x" * (3 << 20), "2: not a line of an event log"),
    ],
)
def test_a_log_with_a_time_that_is_never_reached_is_refused_at_once(tmp_path, lines, message):
    path = tmp_path / "events.jsonl"
    path.write_text(CONFIG.format(**PLAIN) + lines)
    with pytest.raises(ConfigError, match=rf"events\.jsonl.*{message}"):
        verify(path)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 0.0, 1e308])
def test_check_refuses_an_anchor_rate_that_a_run_would_choke_on(rate):
    with pytest.raises(ValueError, match=r"anchor_rate_hz: found|either anchor"):
        AlignerOptions(anchor_rate_hz=rate)
