"""docs/recording.md: its commands are run as they stand, on a shorter piece; its options exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, finished

from pipeline import assets
from pipeline.errors import AssetError

PAGE = (ROOT / "docs" / "recording.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.system
@pytest.mark.paced  # two seconds of a recording: a busy machine drops most of them
@pytest.mark.timeout(400)
def test_the_commands_of_the_page_do_what_it_says(folder: Path) -> None:
    try:
        assets.pull(["demo-clip", "centerface", "silero-vad"])
    except AssetError as error:
        pytest.skip(f"the clip and the models cannot be fetched: {error}")
    outputs = []
    for line in COMMANDS:
        words = shlex.split(line)[2:]
        shorter = {"record": ["--for", "2s", "--no-dashboard"], "replay": ["--no-dashboard"]}.get(words[0], [])
        done = finished(folder, *words, *shorter, timeout_s=120)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert [c.split()[2] for c in COMMANDS] == ["record", "verify", "replay", "diff"]
    assert "every message is accounted for" in outputs[1]
    assert "identical to the recorded run: every prediction, in every field but timing_ms and age_ns" in outputs[2]
    assert "all alike" in outputs[3]
    program = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    (folder / "read.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "read.py"], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "(360, 640, 3)" in done.stdout, done.stderr


def test_every_option_of_the_page_exists() -> None:
    sys.path.insert(0, str(ROOT))
    import run_pipeline

    known = run_pipeline.parser().format_help()
    known += "".join(a.format_help() for a in run_pipeline.parser()._subparsers._group_actions[0].choices.values())  # type: ignore[union-attr]
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE.partition("## Figures")[0])):
        assert option in known, option
