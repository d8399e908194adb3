"""For each edge, what was sent is received or dropped with a reason; the rest is unaccounted for, or explained."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.frame import NodeHealth
from pipeline.runtime.accounting import add, summarise
from pipeline.runtime.graph import EdgePlan, NodePlan, Plan, ProcessPlan
from pipeline.transport.drop_reasons import DIED, LOST, ON_ITS_WAY, TOO_SLOW


def node(name: str, *inputs: str, source: bool = False, aligner: bool = False, host: str = "") -> NodePlan:
    edges = [EdgePlan(each, 32, "", host) for each in inputs]
    return NodePlan(name, "", "", {}, False, 5, 10.0, source, False, False, False, aligner, "", edges)


def plan(*nodes: NodePlan, host: str = "") -> Plan:
    return Plan("graph.yaml", [ProcessPlan(n.name, [n]) for n in nodes], "", "", host)


TWO = plan(node("camera", source=True), node("align", "camera", aligner=True))


def summary(camera: dict[str, Any], align: dict[str, Any], *, of: Plan = TWO, cut: bool = False) -> dict[str, Any]:
    align.setdefault("used", align.get("received", {}))
    nodes = (
        NodeHealth("camera", **{"state": "finished", **camera}),
        NodeHealth("align", **{"state": "finished", **align}),
    )
    return summarise(of, nodes, 2_000_000_000, cut=cut)


def test_received_and_dropped_messages_reconcile_with_what_was_sent() -> None:
    result = summary({"produced": 10}, {"received": {"camera": 7}, "dropped": {"camera": {LOST: 1, TOO_SLOW: 2}}})
    assert result["unaccounted"] == {}
    assert result["dropped"] == {"align": {"camera": {LOST: 1, TOO_SLOW: 2}}}


def test_what_a_node_drops_after_it_received_it_is_not_counted_twice() -> None:
    align = {"received": {"camera": 10}, "dropped": {"camera": {"late": 3}}, "used": {"camera": 5}}
    result = summary({"produced": 10}, align | {"unused": {"camera": 2}})
    assert result["unaccounted"] == {}
    assert result["frames"] == {"align": {"camera": {"used": 5, "unused": 2, "dropped": 3}}}


def test_missing_messages_are_unaccounted_for() -> None:
    assert summary({"produced": 10}, {"received": {"camera": 7}})["unaccounted"] == {"camera → align": 3}


def test_more_than_was_sent_is_as_wrong_as_less() -> None:
    assert summary({"produced": 10}, {"received": {"camera": 11}})["unaccounted"] == {"camera → align": -1}


@pytest.mark.parametrize(("used", "unused"), [(6, 0), (7, 1), (0, 0)])
def test_frames_that_an_aligner_cannot_account_for_are_named(used: int, unused: int) -> None:
    align = {"received": {"camera": 7}, "used": {"camera": used}, "unused": {"camera": unused}}
    assert summary({"produced": 7}, align)["unaccounted"] == {"camera in align": 7 - used - unused}


def test_what_was_on_its_way_at_an_end_that_did_not_wait_is_what_the_queues_hold_and_no_more() -> None:
    result = summary({"produced": 10}, {"received": {"camera": 7}}, cut=True)
    assert (result["unaccounted"], result["dropped"]["align"]["camera"]) == ({}, {ON_ITS_WAY: 3})
    result = summary({"produced": 1000}, {"received": {"camera": 7}}, cut=True)
    assert result["unaccounted"] == {"camera → align": 993}
    killed = {"received": {"camera": 7}, "state": "running"}  # its last report is old
    assert summary({"produced": 1000}, killed, cut=True)["unaccounted"] == {}


def test_what_died_with_a_reader_is_counted_and_any_other_loss_is_not_hidden_by_it() -> None:
    before = NodeHealth("align", "restarting", received={"camera": 5}, dropped={"camera": {LOST: 1}}, restarts=0)
    connected = NodeHealth("align", "finished", received={"camera": 2}, before={"camera": 10}, restarts=1)
    both = msgspec.to_builtins(add(before, connected))
    assert both[8] == {"camera": {LOST: 1, DIED: 4}}
    align = {"received": {"camera": 7}, "dropped": {"camera": {LOST: 1, DIED: 4}}, "restarts": 1}
    assert summary({"produced": 12}, align)["unaccounted"] == {}
    assert summary({"produced": 15}, align)["unaccounted"] == {"camera → align": 3}  # a forged loss


def test_a_second_death_does_not_count_the_first_one_again() -> None:
    first = NodeHealth("align", "restarting", received={"camera": 5})
    second = add(first, NodeHealth("align", "restarting", received={"camera": 2}, before={"camera": 10}))
    third = add(second, NodeHealth("align", "running", received={"camera": 3}, before={"camera": 20}))
    assert third.dropped == {"camera": {DIED: 5 + 8}}


def test_what_was_sent_to_a_node_that_was_given_up_died_with_it() -> None:
    align = {"received": {"camera": 7}, "state": "given up", "restarts": 5}
    result = summary({"produced": 1000}, align)
    assert (result["unaccounted"], result["dropped"]["align"]["camera"]) == ({}, {DIED: 993})


def test_what_a_killed_source_had_sent_is_missing_up_to_what_its_queues_held() -> None:
    assert summary({"produced": 10, "restarts": 1}, {"received": {"camera": 7}})["unaccounted"] == {}
    assert summary({"produced": 1000, "restarts": 1}, {"received": {"camera": 7}})["unaccounted"] != {}


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
