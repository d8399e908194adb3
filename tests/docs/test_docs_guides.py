"""The guides: every command is understood, and the example of a sensor, a task and a policy of one's own runs as it
stands.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from running import finished

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
COMMANDS = sorted(
    {
        match.strip()
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for match in re.findall(r"^(?:python run_pipeline\.py|sensorium) (.*?)(?:\s+#.*)?$", block, re.MULTILINE)
    }
)
EXTEND = (ROOT / "docs" / "guides" / "extend.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    import run_pipeline

    assert run_pipeline.parser().parse_args(shlex.split(command)).function


def write_examples(folder: Path) -> None:
    """Blocks that begin with their file's name, as `# comfort.py`."""
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", EXTEND, re.DOTALL):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", block):
            (folder / named[1]).write_text(block, encoding="utf-8")


@pytest.mark.system
@pytest.mark.paced  # on a busy machine a reading comes too late for its set
def test_the_example_of_ones_own_sensor_and_task_runs(folder: Path) -> None:
    write_examples(folder)
    checked = finished(folder, "check", "comfort.yaml")
    assert checked.returncode == 0, checked.stderr
    done = finished(folder, "run", "comfort.yaml", "--for", "2s", "--out", "comfort.jsonl")
    assert done.returncode == 0, done.stderr
    *predictions, summary = map(json.loads, (folder / "comfort.jsonl").read_text().splitlines())
    assert predictions and all(p["label"] == "warm" for p in predictions)
    assert summary["unaccounted"] == {}


def test_the_example_of_ones_own_sync_policy_is_taken(tmp_path: Path) -> None:
    write_examples(tmp_path)
    text = (tmp_path / "comfort.yaml").read_text(encoding="utf-8")
    second = '  second: {use: "thermometer:Thermometer"}\n'
    policy = 'inputs: [thermometer, second], sync: {second: {policy: "first_after:FirstAfter", within_ms: 50}}, '
    text = text.replace("nodes:\n", "nodes:\n" + second).replace("inputs: [thermometer], anchor", policy + "anchor")
    (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
    checked = finished(tmp_path, "check", "policy.yaml")
    assert checked.returncode == 0, checked.stderr


def test_the_example_of_a_test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from thermometer import Thermometer  # type: ignore[import-not-found]

    (block,) = [b for b in re.findall(r"```python\n(.*?)```", EXTEND, re.DOTALL) if "pipeline.testing" in b]
    names = {"Thermometer": Thermometer}
    exec(block, names)
    assert len(names["readings"]) == 3


@pytest.mark.parametrize("page", [p.relative_to(ROOT).as_posix() for p in PAGES])
def test_every_configuration_file_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [name for name in re.findall(r"configs/[\w/.-]+\.yaml", text) if not (ROOT / name).exists()] in (
        [],
        ["configs/robot.yaml"],  # the reader's own
    )
