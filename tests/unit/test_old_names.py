"""The names of today in the translation of old files are the ones in use."""

from __future__ import annotations

import msgspec

from pipeline import old_names
from pipeline.alignment import aligner, stream_buffer
from pipeline.alignment.event_log import AlignerConfig, ArrivalEvent, FinishEvent, SetEvent
from pipeline.old_names import current_event_line, current_note, current_options
from pipeline.transport import drop_reasons


def test_old_reasons_become_reasons_that_are_in_use() -> None:
    in_use = {
        value
        for module in (aligner, stream_buffer, drop_reasons)
        for value in vars(module).values()
        if type(value) is str
    }
    assert set(old_names.DROP_REASONS.values()) <= in_use


def test_old_event_lines_begin_like_the_events_of_today() -> None:
    tags = {msgspec.inspect.type_info(event).tag for event in (AlignerConfig, ArrivalEvent, SetEvent, FinishEvent)}
    assert {start.decode()[2:-1] for start in old_names.EVENT_LINE_STARTS.values()} == tags
    assert current_event_line(b'["Told","camera",3]') == b'["arrival","camera",3]'
    assert current_event_line(b'["arrival","Told",3]') == b'["arrival","Told",3]'


def test_options_are_renamed_at_every_depth() -> None:
    assert current_options({"pick": {"imu": {"policy": "latest"}}, "stages": [{"keep": 2}]}) == {
        "sync": {"imu": {"policy": "latest"}},
        "stages": [{"queue": 2}],
    }


def test_reasons_are_renamed_in_the_counters_of_nodes_and_of_the_recorder() -> None:
    note = {"dropped": {"align": {"imu": {"time went back": 2, "late": 1}}, "camera": {"a newer one came": 3}}}
    assert current_note(note)["dropped"] == {
        "align": {"imu": {"timestamp before the last one": 2, "late": 1}},
        "camera": {"replaced by a newer frame": 3},
    }
    assert current_note("text") == "text"
