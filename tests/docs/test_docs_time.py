"""docs/time.md: every command that stands there is run here, as it stands, on one machine and for a shorter time."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.installation import MODELS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "time.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def command(*words: str) -> list[str]:
    """The one command of the page that holds all these words."""
    matching = [line for line in COMMANDS if all(word in line for word in words)]
    assert len(matching) == 1, matching
    return [sys.executable, *shlex.split(matching[0])[1:]]


def start(*arguments: str, keys: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"SENSORIUM_KEYS": str(keys), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_no_command_of_the_page_is_left_out() -> None:
    tested = {
        ("keys", "front"),
        ("keys", "brain"),
        ("--host front",),
        ("--host brain",),
        ("check",),
        ("benchmarks.clocks",),
    }
    assert sorted(map(shlex.join, (command(*words)[1:] for words in tested))) == sorted(
        shlex.join(shlex.split(line)[1:]) for line in COMMANDS
    )


@pytest.mark.parametrize("name", ["front", "brain"])
def test_keys_are_created_and_the_next_step_is_printed(name: str, tmp_path: Path) -> None:
    created = start(*command("keys", name), keys=tmp_path / "keys")
    output = created.communicate(timeout=60)[0]
    assert created.returncode == 0, output
    assert (tmp_path / "keys" / f"{name}.secret").exists()
    assert f"run CONFIG --host {name}" in output


def test_config_of_the_page_is_right(tmp_path: Path) -> None:
    checked = start(*command("check"), keys=tmp_path)
    output = checked.communicate(timeout=60)[0]
    assert checked.returncode == 0, output
    assert "no errors" in output


def test_both_hosts_run_and_the_pictures_of_one_meet_the_sound_of_the_other(tmp_path: Path, free_port: int) -> None:
    if not (MODELS / "face-expression.onnx").exists():
        pytest.skip("models/face-expression.onnx is not here: python run_pipeline.py train face")
    try:
        assets.pull(["demo-clip", "centerface", "silero-vad"])
    except AssetError as error:
        pytest.skip(f"the demo's clip and models are not here: {error}")
    here = [f"hosts.{name}='127.0.0.1:{min(free_port, 60000) + way}'" for name, way in (("front", 0), ("brain", 100))]
    clips = [f"nodes.{node}.device='asset:demo-clip'" for node in ("camera", "microphone")]
    sets = [word for setting in (*here, *clips) for word in ("--set", setting)]
    out = tmp_path / "predictions.jsonl"
    sets += ["--set", "nodes.camera.loop=true", "--set", "nodes.microphone.loop=true", "--no-dashboard"]
    brain = start(*command("--host brain"), *sets, "--out", str(out), keys=tmp_path)
    front = start(*command("--host front"), *sets, keys=tmp_path)
    try:
        give_up_s = time.monotonic() + 90
        while not (out.exists() and '"missing":[]' in out.read_text()):
            assert (front.poll(), brain.poll()) == (None, None), "a host has ended by itself"
            assert time.monotonic() < give_up_s, "no picture has met its sound"
            time.sleep(0.2)
        for host in (front, brain):
            host.send_signal(signal.SIGINT)
            output = host.communicate(timeout=30)[0]
            assert host.returncode == 0, output
    finally:
        front.kill()
        brain.kill()
    *predictions, summary = map(json.loads, out.read_text().splitlines())
    together = [p for p in predictions if not p["missing"]]
    assert together
    assert all(p["receipts"][0]["clock_error_ns"] > 0 for p in together)
    assert summary["unaccounted"] == {}


@pytest.mark.paced
def test_figures_are_printed_and_written(tmp_path: Path) -> None:
    measured = start(*command("benchmarks.clocks"), "--seconds", "6", "--json", str(tmp_path / "c.json"), keys=tmp_path)
    output = measured.communicate(timeout=150)[0]
    assert measured.returncode == 0, output
    figures = json.loads((tmp_path / "c.json").read_text())
    assert figures["sound_card"]["std_us"] <= 60
    assert min(figures["loopback"]["inside_percent"], figures["relay"]["inside_percent"]) >= 99


def test_the_picture_is_whole() -> None:
    assert "](time.svg)" in PAGE
    assert ElementTree.parse(ROOT / "docs" / "time.svg").getroot().tag.endswith("svg")
