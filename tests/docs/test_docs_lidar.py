"""docs/lidar.md: its commands are run here as they stand, its configs and its class are read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from lidars import sent, vlp16, write_pcap
from running import finished

from nodes.lidar import Lidar
from pipeline.clock import NS
from pipeline.plugins import all_named
from pipeline.runtime import yaml_text
from pipeline.runtime.config import parse
from pipeline.runtime.graph import check_graph
from pipeline.sensors.lidar.packet_decoder import LATE, LOST, MALFORMED, TWICE, PacketDecoder, Sweep
from pipeline.sensors.lidar.udp import NOT_READ, OVERLOAD

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "lidar.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_commands_of_the_page_do_what_it_says(folder):
    pytest.importorskip("velodyne_decoder", reason="needs the extra lidar: scripts/setup lidar")
    write_pcap(folder / "drive.pcap", sent(vlp16(160)[0], start_ns=1_700_000_000 * NS), 2368)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    text = []
    for line in commands:
        words = shlex.split(line)[2:]
        done = finished(folder, *words, *(["--no-dashboard"] if words[0] == "replay" else []), timeout_s=120)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        text.append(done.stdout)
    assert [c.split()[2] for c in commands] == ["nodes", "import", "check", "replay"]
    assert "sensor: str" in text[0] and "points" in text[2]
    assert "aligned sets: 3" in text[3] and "unaccounted: none" in text[3]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_configs_of_the_page_are_right(block):
    check_graph(parse(yaml_text.parse(block), "docs/lidar.md"))


def test_the_page_tells_every_sensor_and_every_loss():
    for sensor in all_named(PacketDecoder, "pipeline.sensors.lidar.decoders"):
        assert re.search(rf"^\| `{sensor}` \|", PAGE, re.MULTILINE), sensor
    for reason in (LOST, LATE, TWICE, MALFORMED, NOT_READ, OVERLOAD):
        assert f"| {reason} |" in PAGE, reason


def test_the_class_of_the_page_is_a_sensor():
    [code] = blocks("python")
    scope: dict[str, type[PacketDecoder]] = {}
    exec(code, scope)
    points = np.ones((3, 5), np.float32)
    [sweep] = scope["Mine"]().take(points.tobytes(), 7)
    assert isinstance(sweep, Sweep) and np.array_equal(sweep.data, points) and sweep.capture_ns == 7
    decoder = scope["Mine"]()
    assert decoder.take(b"123", 7) == [] and decoder.take_lost()[MALFORMED] == 1


def test_doctor_tells_the_extras_and_the_receive_buffer():
    findings = {finding.what.split(":")[0]: finding for finding in Lidar.doctor()}
    for package, extra in (("velodyne-decoder", "lidar"), ("ouster-sdk", "ouster")):
        assert findings[package].works or findings[package].fix == f"scripts/setup {extra}"
