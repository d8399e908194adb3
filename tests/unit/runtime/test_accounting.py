"""For each edge, what was sent is received or dropped with a reason; the rest is unaccounted for, or explained."""

from __future__ import annotations

from typing import Any

from pipeline.frame import NodeHealth
from pipeline.runtime.accounting import add, summarise
from pipeline.runtime.graph import EdgePlan, NodePlan, Plan, ProcessPlan
from pipeline.transport.drop_reasons import LOST, TOO_SLOW


def node(name: str, *inputs: str, source: bool = False, aligner: bool = False, host: str = "") -> NodePlan:
    edges = [EdgePlan(each, 32, "", host) for each in inputs]
    return NodePlan(name, "", "", {}, False, 5, 10.0, source, False, False, False, aligner, "", edges)


def plan(*nodes: NodePlan, host: str = "") -> Plan:
    return Plan("graph.yaml", [ProcessPlan(n.name, [n]) for n in nodes], "", "", host)


TWO = plan(node("camera", source=True), node("align", "camera", aligner=True))


def summary(camera: dict[str, Any], align: dict[str, Any], *, of: Plan = TWO, cut: bool = False) -> dict[str, Any]:
    nodes = (NodeHealth("camera", "finished", **camera), NodeHealth("align", "finished", **align))
    return summarise(of, nodes, 2_000_000_000, cut=cut)


def test_received_and_dropped_messages_reconcile_with_what_was_sent() -> None:
    result = summary({"produced": 10}, {"received": {"camera": 7}, "dropped": {"camera": {LOST: 1, TOO_SLOW: 2}}})
    assert result["unaccounted"] == {}
    assert result["dropped"] == {"align": {"camera": {LOST: 1, TOO_SLOW: 2}}}


def test_what_a_node_drops_after_it_received_it_is_not_counted_twice() -> None:
    result = summary({"produced": 10}, {"received": {"camera": 10}, "dropped": {"camera": {"late": 3}}})
    assert result["unaccounted"] == {}


def test_missing_messages_are_unaccounted_for() -> None:
    assert summary({"produced": 10}, {"received": {"camera": 7}})["unaccounted"] == {"camera → align": 3}


def test_missing_messages_are_explained_by_a_restart_or_by_an_end_that_did_not_wait() -> None:
    for more, cut, reason in ((1, False, "lost with a process that died"), (0, True, "on its way at the end")):
        result = summary({"produced": 10}, {"received": {"camera": 7}, "restarts": more}, cut=cut)
        assert (result["unaccounted"], result["dropped"]["align"]["camera"]) == ({}, {reason: 3})


def test_a_source_that_was_killed_sent_at_least_what_its_reader_received() -> None:
    result = summary({"produced": 5, "restarts": 1}, {"received": {"camera": 7}})
    assert (result["frames_in"], result["unaccounted"]) == ({"camera": 7}, {})


def test_what_another_host_sent_is_known_from_the_reader() -> None:
    two_hosts = plan(node("camera", source=True), node("align", "lidar", host="front"), host="brain")
    result = summary({}, {"received": {"lidar": 6}, "promised": {"lidar": 8}}, of=two_hosts)
    assert result["unaccounted"] == {"lidar → align": 2}
    assert result["from_other_hosts"] == {"lidar → align": {"host": "front", "sent": 8, "clock": ""}}


def test_sets_are_what_aligners_sent() -> None:
    result = summary({"produced": 10}, {"produced": 4, "received": {"camera": 10}})
    assert (result["frames_in"], result["sets"], result["seconds"]) == ({"camera": 10}, 4, 2.0)


def test_counters_add_up_over_restarts() -> None:
    before = NodeHealth("align", "restarting", produced=3, received={"camera": 5}, dropped={"camera": {LOST: 1}})
    now = NodeHealth("align", "running", produced=2, received={"camera": 2}, dropped={"camera": {LOST: 1, "late": 1}})
    both = add(before, now)
    assert (both.state, both.produced, both.received) == ("running", 5, {"camera": 7})
    assert both.dropped == {"camera": {LOST: 2, "late": 1}}
