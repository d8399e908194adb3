"""A figure of time that fails counts on an idle machine; on a busy one the test ends undecided and says why."""

from __future__ import annotations

import time
from typing import Self

import pytest
from idle_control import MAX_WAIT_MS, IdleControl, figure_of_time


class Waited(IdleControl):
    """A control that waited so long for a core."""

    def __init__(self, wait_ms: float) -> None:
        self.wait_ms = wait_ms

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_failure_on_an_idle_machine_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="too late"), figure_of_time(Waited(MAX_WAIT_MS)):
        raise AssertionError("too late")


def test_a_failure_on_a_busy_machine_is_undecided_and_says_what_failed() -> None:
    reason = "cannot decide: .* 34 ms for a core .*What failed: too late"
    with pytest.raises(pytest.skip.Exception, match=reason), figure_of_time(Waited(34.0)):
        pytest.fail("too late")


def test_a_success_counts_on_any_machine_and_other_errors_do_too() -> None:
    with figure_of_time(Waited(34.0)):
        pass
    with pytest.raises(KeyError), figure_of_time(Waited(34.0)):
        raise KeyError("no question of time")


def test_the_control_runs_beside_and_measures() -> None:
    with IdleControl() as control:
        time.sleep(0.3)
    assert 0.0 <= control.wait_ms < 300.0
