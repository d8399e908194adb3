"""Config → plan: who reads what, in which process, at which address."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import parse
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.graph import NodePlan, Plan, plan_graph
from pipeline.node import Source

CAMERA = {"use": "synthetic"}
ALIGN = {"use": "align", "inputs": ["camera"], "anchor": "camera"}
CONSOLE = {"use": "console", "inputs": ["health"]}


def plan(folder: Path, portable: bool = False, **nodes: object) -> Plan:
    return plan_graph(parse({"nodes": nodes, "portable": portable}, "graph.yaml"), folder)


def node(plan: Plan, name: str) -> NodePlan:
    return next(n for n in plan.nodes if n.name == name)


def test_a_reader_is_given_the_address_of_what_it_reads(tmp_path: Path) -> None:
    made = plan(tmp_path, camera=CAMERA, align=ALIGN)
    assert node(made, "align").inputs[0].address == node(made, "camera").address


def test_each_node_has_its_process() -> None:
    made = plan(Path("/run"), camera=CAMERA, align=ALIGN, console=CONSOLE)
    assert [[n.name for n in p.nodes] for p in made.processes] == [["camera"], ["align"], ["console"]]


def test_process_joins_nodes(tmp_path: Path) -> None:
    made = plan(tmp_path, camera=CAMERA, align=ALIGN, console={**CONSOLE, "process": "align"})
    assert [[n.name for n in p.nodes] for p in made.processes] == [["camera"], ["align", "console"]]


def test_streams_are_what_others_can_read(tmp_path: Path) -> None:
    assert set(plan(tmp_path, camera=CAMERA, align=ALIGN, console=CONSOLE).streams()) == {"camera", "align", "health"}


def test_health_can_be_read_though_it_is_no_node(tmp_path: Path) -> None:
    made = plan(tmp_path, camera=CAMERA, align=ALIGN, console=CONSOLE)
    assert node(made, "console").inputs[0].address == made.health


def test_addresses_differ_for_names_that_look_alike(tmp_path: Path) -> None:
    names = ["rig/left", "rig-left", "rig_left", "control", "launcher"]
    made = plan(tmp_path, **dict.fromkeys(names, CAMERA))
    addresses = [n.address for n in made.nodes] + [made.control, made.health]
    assert len(set(addresses)) == len(addresses)


def test_addresses_are_socket_files_of_this_run(tmp_path: Path) -> None:
    made = plan(tmp_path, camera=CAMERA, align=ALIGN)
    assert [n.address for n in made.nodes] == [f"ipc://{tmp_path}/camera.sock", f"ipc://{tmp_path}/align.sock"]


def test_portable_path_uses_the_loopback_alone(tmp_path: Path) -> None:
    made = plan(tmp_path, portable=True, camera=CAMERA, align=ALIGN)
    assert all(a.startswith("tcp://127.0.0.1:") for a in [*made.streams().values(), made.control])


def test_folder_too_deep_for_a_socket_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="too long for a socket's name. Set XDG_RUNTIME_DIR"):
        plan(Path("/tmp") / ("deep" * 30), camera=CAMERA, align=ALIGN)


def test_keep_is_32_unless_it_is_given(tmp_path: Path) -> None:
    align = {**ALIGN, "inputs": ["camera", {"from": "sound", "keep": "latest"}, {"from": "imu", "keep": 8}]}
    made = plan(tmp_path, camera=CAMERA, sound=CAMERA, imu=CAMERA, align=align)
    assert [e.keep for e in node(made, "align").inputs] == [32, "latest", 8]


def test_behind_a_source_that_is_not_paced_nothing_is_dropped(tmp_path: Path) -> None:
    camera = {"use": "synthetic", "realtime": False}
    smoother = {"use": "third_party:Smoother", "inputs": ["camera"]}
    made = plan(tmp_path, camera=camera, smooth=smoother, align={**ALIGN, "inputs": ["smooth"], "anchor": "smooth"})
    assert [e.keep for e in node(made, "smooth").inputs + node(made, "align").inputs] == ["all", "all"]


def test_a_reader_that_wants_the_latest_gets_it_even_from_a_source_that_can_wait(tmp_path: Path) -> None:
    align = {**ALIGN, "inputs": [{"from": "camera", "keep": "latest"}]}
    made = plan(tmp_path, camera={"use": "synthetic", "realtime": False}, align=align)
    assert node(made, "align").inputs[0].keep == "latest"


def test_a_node_of_an_unread_stream_is_no_error(tmp_path: Path) -> None:
    assert "lonely" in plan(tmp_path, camera=CAMERA, lonely=CAMERA, align=ALIGN).streams()


def test_two_ways_to_one_node_are_no_cycle(tmp_path: Path) -> None:
    left = {"use": "third_party:Smoother", "inputs": ["camera"]}
    align = {"use": "align", "inputs": ["left", "right"], "anchor": "left"}
    assert len(plan(tmp_path, camera=CAMERA, left=left, right=left, align=align).nodes) == 4


def test_a_source_of_this_house_produces_frames() -> None:
    assert Source.produces is Frame
