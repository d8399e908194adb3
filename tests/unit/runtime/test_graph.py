"""Config → plan: who reads what, in which process, at which address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.node import Source
from pipeline.runtime.config import parse
from pipeline.runtime.graph import NodePlan, Plan, plan_graph, shared_stream

CAMERA = {"use": "synthetic"}
ALIGN = {"use": "align", "inputs": ["camera"], "anchor": "camera"}
CONSOLE = {"use": "console", "inputs": ["health"]}


def plan(folder: Path, portable: bool = False, **nodes: object) -> Plan:
    return plan_graph(parse({"nodes": nodes, "portable": portable}, "graph.yaml"), folder)


def node(plan: Plan, name: str) -> NodePlan:
    return next(n for n in plan.nodes if n.name == name)


def test_an_edge_has_the_address_of_its_source(tmp_path: Path) -> None:
    result = plan(tmp_path, camera=CAMERA, align=ALIGN)
    assert node(result, "align").inputs[0].address == node(result, "camera").address


def test_each_node_has_its_process() -> None:
    result = plan(Path("/run"), camera=CAMERA, align=ALIGN, console=CONSOLE)
    assert [[n.name for n in p.nodes] for p in result.processes] == [["camera"], ["align"], ["console"]]


def test_process_joins_nodes(tmp_path: Path) -> None:
    result = plan(tmp_path, camera=CAMERA, align=ALIGN, console={**CONSOLE, "process": "align"})
    assert [[n.name for n in p.nodes] for p in result.processes] == [["camera"], ["align", "console"]]


def test_streams_are_what_others_can_read(tmp_path: Path) -> None:
    assert set(plan(tmp_path, camera=CAMERA, align=ALIGN, console=CONSOLE).streams()) == {"camera", "align", "health"}


def test_health_can_be_read_though_it_is_no_node(tmp_path: Path) -> None:
    result = plan(tmp_path, camera=CAMERA, align=ALIGN, console=CONSOLE)
    assert node(result, "console").inputs[0].address == result.health


def test_addresses_differ_for_names_that_look_alike(tmp_path: Path) -> None:
    names = ["rig/left", "rig-left", "rig_left", "control", "launcher"]
    result = plan(tmp_path, **dict.fromkeys(names, CAMERA))
    addresses = [n.address for n in result.nodes] + [result.control, result.health]
    assert len(set(addresses)) == len(addresses)


def test_addresses_are_socket_files_of_this_run(tmp_path: Path) -> None:
    result = plan(tmp_path, camera=CAMERA, align=ALIGN)
    assert [n.address for n in result.nodes] == [f"ipc://{tmp_path}/camera.sock", f"ipc://{tmp_path}/align.sock"]


def test_portable_path_uses_the_loopback_alone(tmp_path: Path) -> None:
    result = plan(tmp_path, portable=True, camera=CAMERA, align=ALIGN)
    assert all(a.startswith("tcp://127.0.0.1:") for a in [*result.streams().values(), result.control])


def test_folder_too_deep_for_a_socket_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="too long for a socket's name. Set XDG_RUNTIME_DIR"):
        plan(Path("/tmp") / ("deep" * 30), camera=CAMERA, align=ALIGN)


def test_queue_depth_is_32_unless_another_is_set(tmp_path: Path) -> None:
    align = {**ALIGN, "inputs": ["camera", {"from": "sound", "queue": "latest"}, {"from": "imu", "queue": 8}]}
    result = plan(tmp_path, camera=CAMERA, sound=CAMERA, imu=CAMERA, align=align)
    assert [e.queue for e in node(result, "align").inputs] == [32, "latest", 8]


def test_behind_a_source_that_is_not_paced_nothing_is_dropped(tmp_path: Path) -> None:
    camera = {"use": "synthetic", "realtime": False}
    smoother = {"use": "third_party:Smoother", "inputs": ["camera"]}
    result = plan(tmp_path, camera=camera, smooth=smoother, align={**ALIGN, "inputs": ["smooth"], "anchor": "smooth"})
    assert [e.queue for e in node(result, "smooth").inputs + node(result, "align").inputs] == ["all", "all"]


def test_a_reader_that_wants_the_latest_gets_it_even_from_a_source_that_can_wait(tmp_path: Path) -> None:
    align = {**ALIGN, "inputs": [{"from": "camera", "queue": "latest"}]}
    result = plan(tmp_path, camera={"use": "synthetic", "realtime": False}, align=align)
    assert node(result, "align").inputs[0].queue == "latest"


def test_a_node_of_an_unread_stream_is_no_error(tmp_path: Path) -> None:
    assert "lonely" in plan(tmp_path, camera=CAMERA, lonely=CAMERA, align=ALIGN).streams()


def test_two_ways_to_one_node_are_no_cycle(tmp_path: Path) -> None:
    left = {"use": "third_party:Smoother", "inputs": ["camera"]}
    align = {"use": "align", "inputs": ["left", "right"], "anchor": "left"}
    assert len(plan(tmp_path, camera=CAMERA, left=left, right=left, align=align).nodes) == 4


def test_a_source_of_this_house_produces_frames() -> None:
    assert Source.produces is Frame


# --- hosts ------------------------------------------------------------------------------------------------------------

HOSTS = {"front": "10.0.0.1", "brain": "10.0.0.2:8000"}
TWO_HOSTS = {
    "camera": {**CAMERA, "host": "front"},
    "preview": {**CONSOLE, "host": "front"},
    "lidar": {**CAMERA, "host": "front"},
    "sound": {**CAMERA, "host": "brain"},
    "align": {**ALIGN, "inputs": ["camera", "sound"], "host": "brain"},
}


def plan_for(folder: Path, host: str, nodes: dict[str, object] = TWO_HOSTS) -> Plan:
    return plan_graph(parse({"hosts": HOSTS, "nodes": nodes}, "graph.yaml"), folder, host)


def test_a_host_runs_its_own_nodes_alone(tmp_path: Path) -> None:
    assert [n.name for n in plan_for(tmp_path, "front").nodes] == ["camera", "preview", "lidar"]
    assert [n.name for n in plan_for(tmp_path, "brain").nodes] == ["sound", "align"]


def test_both_hosts_agree_where_a_stream_is(tmp_path: Path) -> None:
    camera = node(plan_for(tmp_path, "front"), "camera")
    edge, local = node(plan_for(tmp_path, "brain"), "align").inputs
    assert camera.network == edge.address == "tcp://10.0.0.1:7701"
    assert (edge.host, local.host) == ("front", "")
    assert camera.address.startswith("ipc://") and local.address.startswith("ipc://")


def test_only_what_another_host_reads_is_on_the_network(tmp_path: Path) -> None:
    front, brain = plan_for(tmp_path, "front"), plan_for(tmp_path, "brain")
    assert [n.name for n in (*front.nodes, *brain.nodes) if n.network] == ["camera"]


def test_a_host_that_is_read_tells_the_time(tmp_path: Path) -> None:
    front, brain = plan_for(tmp_path, "front"), plan_for(tmp_path, "brain")
    assert (front.clock, brain.clock) == ("tcp://10.0.0.1:7700", "")
    assert {p.name: p.clocks for p in brain.processes} == {"sound": {}, "align": {"front": front.clock}}


def test_a_shared_node_is_on_the_network_though_no_node_reads_it_there(tmp_path: Path) -> None:
    nodes = {**TWO_HOSTS, "lidar": {**CAMERA, "host": "front", "shared": True}}
    front = plan_for(tmp_path, "front", nodes)
    there = shared_stream(parse({"hosts": HOSTS, "nodes": nodes}, "graph.yaml"), "lidar")
    assert there == ("front", node(front, "lidar").network, front.clock)


@pytest.mark.parametrize(
    ("name", "fix"), [("camera", "Set nodes.camera.shared: true"), ("lidra", "Shared: lidar. Did you mean 'lidar'?")]
)
def test_node_that_is_not_shared_cannot_be_read_by_a_program_elsewhere(name: str, fix: str) -> None:
    nodes = {**TWO_HOSTS, "lidar": {**CAMERA, "host": "front", "shared": True}}
    with pytest.raises(ConfigError, match=re.escape(fix)):
        shared_stream(parse({"hosts": HOSTS, "nodes": nodes}, "graph.yaml"), name)


def test_a_sink_that_comes_or_goes_moves_no_stream(tmp_path: Path) -> None:
    without = {name: result for name, result in TWO_HOSTS.items() if name != "preview"}
    assert node(plan_for(tmp_path, "front", without), "lidar").where
    for nodes in (TWO_HOSTS, without):
        reads_lidar = {**nodes, "align": {**ALIGN, "inputs": ["lidar"], "anchor": "lidar", "host": "brain"}}
        assert node(plan_for(tmp_path, "front", reads_lidar), "lidar").network == "tcp://10.0.0.1:7702"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("", "it has several hosts. Say which one this is: --host NAME. Hosts here: front, brain"),
        ("bran", "no host called 'bran'. Hosts here: front, brain. Did you mean 'brain'?"),
    ],
)
def test_a_config_with_hosts_must_know_which_one_this_is(tmp_path: Path, host: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_for(tmp_path, host)


def test_a_host_cannot_be_named_in_a_config_without_hosts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no host called 'front'. Hosts here: none"):
        plan_graph(parse({"nodes": {"camera": CAMERA}}, "graph.yaml"), tmp_path, "front")


def test_a_journal_has_an_address_of_its_own_when_somebody_reads_it(tmp_path: Path) -> None:
    record = {"use": "record", "path": "a.mcap", "inputs": ["camera", "align.events"]}
    assert node(plan(tmp_path, camera=CAMERA, align=ALIGN), "align").events == ""
    result = plan(tmp_path, camera=CAMERA, align=ALIGN, record=record)
    assert node(result, "record").inputs[1].address == node(result, "align").events != node(result, "align").address


def test_a_node_that_keeps_no_journal_has_no_events_to_read(tmp_path: Path) -> None:
    record = {"use": "record", "path": "a.mcap", "inputs": ["camera.events"]}
    with pytest.raises(ConfigError, match=r"inputs\[0\]: no node called 'camera.events'"):
        plan(tmp_path, camera=CAMERA, record=record)


def test_what_is_recorded_has_more_room_in_shared_memory(tmp_path: Path) -> None:
    record = {"use": "record", "path": "a.mcap", "inputs": [{"from": "camera", "queue": 4000}]}
    result = plan(tmp_path, camera=CAMERA, align=ALIGN, record=record)
    assert (node(result, "camera").recorded, node(result, "align").recorded) == (True, False)
