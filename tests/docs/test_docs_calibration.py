"""Commands of docs/calibration*.md are accepted by the verbs they call, and the rig file of the page can be read."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

import run_pipeline
from pipeline.rig.rig_file import load_rig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
SENSORS_PAGE = (ROOT / "docs" / "calibration-sensors.md").read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


COMMANDS = commands(PAGE)
CALIBRATING = COMMANDS + [command for command in commands(SENSORS_PAGE) if " calibrate " in command]


def test_the_page_has_commands_of_every_kind() -> None:
    assert {shlex.split(command)[3] for command in COMMANDS} >= {"board", "camera", "stereo", "convert"}


def test_the_sensors_page_has_commands_of_every_kind() -> None:
    kinds = {shlex.split(command)[3] for command in CALIBRATING}
    assert kinds >= {"extrinsics", "ground", "time", "check"}


@pytest.mark.parametrize("command", CALIBRATING)
def test_a_command_of_the_page_is_accepted(command: str) -> None:
    args = run_pipeline.parser().parse_args(shlex.split(command)[2:])
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"calibration.verbs.{run_pipeline.CALIBRATED[args.kind]}").arguments(parser)
    parser.parse_args(args.rest)


def test_the_rig_file_of_the_page_is_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "rig.yaml").write_text(text, encoding="utf-8")
    rig = load_rig(tmp_path / "rig.yaml")
    ahead = rig.transform("base", "camera") @ (0, 0, 1, 1)  # what is ahead of the camera is ahead of the base
    assert ahead == pytest.approx((1.1, 0, 1.2, 1), abs=1e-9)
    assert rig.offset_ms("camera", "microphone").offset_ms == 21.5
