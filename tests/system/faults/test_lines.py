"""Two hosts whose line loses a fifth of all packets, and breaks: the rest of the run goes on meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import REPEATS, FaultRun, fault_run
from network_hosts import ROOT, Cable, connected_hosts, why_not

pytestmark = [pytest.mark.system, pytest.mark.paced, pytest.mark.parametrize("repeat", range(REPEATS))]

GRAPH = """
    camera: {use: synthetic, host: front, shared: true, encoding: bgr8, rate_hz: 20, width_px: 96, height_px: 32}
    sound: {use: "faulty_nodes:Steady", host: brain, rate_hz: 50}
    align: {use: align, host: brain, inputs: [camera, sound], anchor_rate_hz: 20, max_wait_ms: 200}
    task: {use: infer, host: brain, task: "faulty_nodes:Count", inputs: [align]}
"""


@pytest.fixture(scope="module")
def cable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cable]:
    if missing := why_not():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "faulty_nodes.py").symlink_to(ROOT / "tests" / "support" / "faulty_nodes.py")  # on the path of both
    with connected_hosts(folder) as cable:
        yield cable


@pytest.fixture
def run(cable: Cable, folder: Path, free_port: int) -> Iterator[FaultRun]:
    """The run on `brain`, which reads the camera of `front`."""
    hosts = f"hosts: {{front: {cable.front.address}, brain: {cable.brain.address}}}\n"
    (folder / "two-hosts.yaml").write_text(hosts + "nodes:" + GRAPH)
    front = cable.front.start("run", str(folder / "two-hosts.yaml"), "--host", "front")
    try:
        with fault_run(
            folder,
            free_port,
            graph=GRAPH,
            head=hosts,
            verb="run",
            inside=cable.brain.command(),
            more=["--host", "brain"],
            has_page=False,
            SENSORIUM_KEYS=str(cable.brain.keys),
        ) as run:
            yield run
    finally:
        cable.front.power_off()
        print(front.communicate()[0])  # shown where a test fails


def test_fifth_of_all_packets_lost(cable: Cable, run: FaultRun, repeat: int) -> None:
    fault = run.fault("a fifth of all packets lost for 3 s", lambda: cable.lose(20), cable.heal, for_s=3.0)
    run.recovered(fault)
    run.finish(fault)


def test_line_broken(cable: Cable, run: FaultRun, repeat: int) -> None:
    fault = run.fault("line between two hosts broken for 4 s", cable.pull, cable.plug_in, for_s=4.0)
    during = [p for _, p in run.predictions.since(fault.began_ns)]
    assert sum(p.missing == ("camera",) for p in during) > 2 * 20  # the other senses carry on
    run.recovered(fault)
    run.finish(fault)


def test_other_host_restarted_with_another_clock(cable: Cable, run: FaultRun, folder: Path, repeat: int) -> None:
    shift_s, started = cable.front.shift_s, []

    def restart() -> None:
        cable.front.power_off()
        cable.front.shift_s = shift_s * 2
        started.append(cable.front.start("run", str(folder / "two-hosts.yaml"), "--host", "front"))

    try:
        fault = run.fault("the other host restarts, its clock 5000 s on", restart, lambda: None, for_s=1.0)
        run.ended_when(fault, "align", lambda node: "jumped" in str(node.facts))
        run.recovered(fault)
        run.finish(fault)
    finally:
        cable.front.shift_s = shift_s
        for front in started:
            front.kill()
