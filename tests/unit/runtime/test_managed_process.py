"""A managed process goes from state to state by what it reports and how it ends; no process is started here."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import ConfigError, DeviceError, SensoriumError
from pipeline.frame import NodeHealth
from pipeline.runtime.graph import NodePlan, ProcessPlan
from pipeline.runtime.managed_process import MAX_BACKOFF_S, PER_S, ManagedProcess, ProcessState
from pipeline.transport.wire_format import Fault, Request


class Double:
    """Stands for the operating system: a clock, the process that was started last, and the requests that were sent."""

    def __init__(self) -> None:
        self.now_s, self.exit_code, self.starts, self.pid = 100.0, None, 0, 1
        self.killed = self.terminated = self.no_room = False
        self.requests: list[Request] = []

    def start(self, plan: ProcessPlan, *, warm: bool) -> Any:
        if self.no_room:
            raise OSError(24, "Too many open files")
        self.exit_code, self.starts = None, self.starts + 1
        return self

    def terminate(self) -> None:
        self.terminated = True

    def kill(self) -> None:
        self.killed = True


def node(name: str, *, restarts: int = 5, optional: bool = False) -> NodePlan:
    return NodePlan(name, "infer", "", {}, optional, restarts, 10.0, False, False, False, True, False, "", [])


def a_process(*, restarts: int = 5, optional: bool = False) -> tuple[ManagedProcess, Double]:
    double = Double()
    nodes = [node(name, restarts=restarts, optional=optional) for name in ("align", "mood")]
    plan = ProcessPlan("align", nodes)
    process = ManagedProcess(
        plan,
        send=lambda name, request: double.requests.append(request),
        start_process=double.start,
        monotonic_s=lambda: double.now_s,
    )
    process.start(0)
    return process, double


def report(process: ManagedProcess, align: Any, mood: Any, **counted: int) -> None:
    process.handle_report([NodeHealth("align", align, **counted), NodeHealth("mood", mood)])


def a_running_process(*, restarts: int = 5) -> tuple[ManagedProcess, Double]:
    process, double = a_process(restarts=restarts)
    report(process, "ready", "ready")
    process.begin(5, muted=())
    return process, double


def ends(process: ManagedProcess, double: Double, exit_code: int, *, restart: bool = True) -> ProcessState:
    double.exit_code = exit_code  # type: ignore[assignment]
    assert process.has_exited
    process.handle_exit(restart=restart)
    return process.state


def test_it_is_ready_once_all_its_nodes_are() -> None:
    process, _ = a_process()
    process.handle_report([NodeHealth("align", "ready")])
    assert process.state is ProcessState.LOADING
    report(process, "ready", "starting")
    assert process.state is ProcessState.LOADING
    report(process, "ready", "ready")
    assert process.state is ProcessState.READY


def test_begin_sends_the_start_signal_and_mutes_its_own_nodes() -> None:
    process, double = a_process()
    report(process, "ready", "ready")
    process.begin(5, muted=["mood", "camera"])
    assert double.requests == [Request("begin", "5"), Request("mute", "mood")]
    assert process.state is ProcessState.RUNNING


def test_death_at_the_first_start_fails_and_death_while_running_backs_off() -> None:
    process, double = a_process()
    assert ends(process, double, 1) is ProcessState.FAILED
    process, double = a_running_process()
    assert ends(process, double, -9) is ProcessState.BACKOFF


def test_end_in_order_is_no_failure_and_while_the_run_ends_no_end_is() -> None:
    process, double = a_running_process()
    report(process, "finished", "stopped")
    assert ends(process, double, 0) is ProcessState.ENDED
    process, double = a_running_process()
    assert ends(process, double, -9, restart=False) is ProcessState.ENDED
    assert process.error is None


@pytest.mark.parametrize(("exit_code", "kind"), [(2, ConfigError), (3, DeviceError)])
def test_wrong_config_or_device_fails_with_the_message_of_the_node(exit_code: int, kind: type[SensoriumError]) -> None:
    process, double = a_running_process()
    process.handle_fault(Fault("mood", "nodes.mood: no such model", exit_code))
    assert ends(process, double, 1) is ProcessState.FAILED
    assert (type(process.error), str(process.error)) == (kind, "nodes.mood: no such model")


def test_node_that_must_not_restart_is_given_up_at_once() -> None:
    process, double = a_running_process(restarts=0)
    process.handle_fault(Fault("mood", "ValueError: too much", 1))
    assert ends(process, double, 1) is ProcessState.ABANDONED
    assert process.health()[0].note == "ValueError: too much. It failed 1 times within a minute, 0 restarts are allowed"


def test_three_failures_are_followed_by_a_restart_at_once_then_by_back_offs_then_it_is_abandoned() -> None:
    process, double = a_running_process(restarts=5)
    waits = []
    while ends(process, double, -9) is ProcessState.BACKOFF:
        died_s = double.now_s
        while not process.restart_is_due:
            double.now_s += 0.25
        waits.append(double.now_s - died_s)
        process.start(5)
    assert waits == [0, 0, 0, 1, 2]
    assert process.state is ProcessState.ABANDONED and process.error is None
    states = {(node.state, node.restarts) for node in process.health()}
    assert states == {("given up", 5)}
    assert "6 times within a minute, 5 restarts are allowed" in process.health()[0].note
    assert process.finished_nodes() == {"align", "mood"}  # nothing more comes from them


def test_back_off_has_a_limit_and_failures_of_an_earlier_minute_do_not_count() -> None:
    process, double = a_running_process(restarts=100)
    for _ in range(9):
        ends(process, double, -9)
        died_s = double.now_s
        while not process.restart_is_due:
            double.now_s += 0.25
        process.start(5)
    assert double.now_s - died_s == MAX_BACKOFF_S
    double.now_s += PER_S
    ends(process, double, -9)
    assert process.restart_is_due


@pytest.mark.parametrize("began", [False, True])
def test_process_that_always_hangs_is_given_up_however_long_each_silence_is(began: bool) -> None:
    process, double = a_process(restarts=5)
    for _ in range(6):
        if began:
            report(process, "ready", "ready")
            process.begin(5, muted=())
        double.now_s += 61
        process.end_if_silent()
        assert double.killed and ends(process, double, -9) is not ProcessState.FAILED
        double.now_s += MAX_BACKOFF_S
        if process.restart_is_due:
            process.start(5)
    assert process.state is ProcessState.ABANDONED
    assert "not answering, no report for 61 s" in process.health()[0].note


def test_optional_node_is_given_up_where_another_would_end_the_run() -> None:
    process, double = a_process(restarts=1, optional=True)
    process.handle_fault(Fault("mood", "nothing is plugged in", 3))
    assert ends(process, double, 1) is ProcessState.BACKOFF
    process.start(0)
    assert ends(process, double, 1) is ProcessState.ABANDONED and process.is_optional


def test_process_that_ends_without_having_finished_has_failed() -> None:
    process, double = a_running_process()
    report(process, "running", "running")
    double.exit_code = 0  # type: ignore[assignment]
    assert process.ended_without_a_word
    assert ends(process, double, 0) is ProcessState.BACKOFF


def test_process_without_reports_is_not_answering_and_is_killed_in_the_end() -> None:
    process, double = a_running_process()
    report(process, "running", "running")
    double.now_s += 3
    process.end_if_silent()
    assert {n.state for n in process.health()} == {"not answering"} and not double.killed
    process.postpone_watchdog(3)  # the launcher itself did not run
    assert {n.state for n in process.health()} == {"running"}
    double.now_s += 11
    process.end_if_silent()
    assert double.killed
    assert ends(process, double, -9) is ProcessState.BACKOFF
    assert "not answering, no report for 11 s" in process.health()[0].note


def test_process_that_loads_may_be_silent_for_longer() -> None:
    process, double = a_process()
    double.now_s += 59
    process.end_if_silent()
    assert not double.killed
    double.now_s += 2
    process.end_if_silent()
    assert double.killed


def test_counters_go_on_over_a_restart_and_late_reports_are_not_counted_twice() -> None:
    process, double = a_running_process()
    report(process, "running", "running", produced=7)
    ends(process, double, -9)
    report(process, "running", "running", produced=7)  # sent before it died
    assert [(n.state, n.produced) for n in process.health()] == [("restarting", 7), ("restarting", 0)]
    process.start(5)
    report(process, "running", "running", produced=3)
    assert process.health()[0].produced == 10 and process.plan.restarts == 1


def test_ended_inputs_are_reported_once_in_each_start_and_not_before_it_listens() -> None:
    process, double = a_process()
    process.report_ended_inputs({"camera"})
    assert double.requests == []
    report(process, "starting", "starting")
    process.report_ended_inputs({"camera"})
    process.report_ended_inputs({"camera"})
    assert double.requests == [Request("ended", "camera")]


def test_terminate_and_kill_reach_the_process_and_nothing_that_has_ended() -> None:
    process, double = a_running_process()
    process.terminate()
    assert (double.terminated, process.state) == (True, ProcessState.STOPPING)
    process.kill()
    assert (double.killed, process.state) == (True, ProcessState.ENDED)
    process, double = a_running_process()
    report(process, "finished", "finished")
    ends(process, double, 0)
    process.terminate()
    process.kill()
    assert (double.terminated, double.killed, process.state) == (False, False, ProcessState.ENDED)


def test_restart_for_which_the_system_has_no_room_is_repeated_and_not_counted() -> None:
    process, double = a_running_process(restarts=1)
    double.exit_code, double.no_room = -9, True
    process.handle_exit(restart=True)
    for _ in range(10):
        assert process.restart_is_due
        process.start(5)
        assert (process.state, process.restart_is_due) == (ProcessState.BACKOFF, False)
        assert process.health()[0].note == "its process cannot be started: Too many open files"
        double.now_s += 1
    double.no_room = False
    process.start(5)
    assert (process.state, process.plan.restarts, double.starts) == (ProcessState.LOADING, 1, 2)


def test_first_start_for_which_the_system_has_no_room_ends_the_run() -> None:
    double = Double()
    double.no_room = True
    plan = ProcessPlan("align", [node("align")])
    process = ManagedProcess(plan, send=lambda name, request: None, start_process=double.start)
    with pytest.raises(SensoriumError, match="node 'align': its process cannot be started: Too many open files"):
        process.start(0)
