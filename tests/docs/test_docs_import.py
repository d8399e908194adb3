"""docs/import.md: its commands are run as they stand; its tables list the faults and formats that exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sample_recording import sample_recording

from pipeline.recording import dataset, faults
from pipeline.recording.reader import Reader

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.system
@pytest.mark.timeout(400)
def test_the_commands_of_the_page_do_what_it_says(tmp_path):
    sample = sample_recording()
    outputs = []
    for line in COMMANDS:
        words = shlex.split(line)[2:]
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
        words += ["--no-dashboard", "--to", "6s", "--out", "worse.jsonl"] if words[0] == "replay" else []
        done = subprocess.run(
            [sys.executable, str(ROOT / "run_pipeline.py"), *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        outputs.append(done.stdout)
    assert [c.split()[2] for c in COMMANDS] == ["sample", "export", "import", "check", "export", "replay"]
    assert "14 s of the demo clip" in outputs[0] and (tmp_path / "sample.mcap").read_bytes() == sample.read_bytes()
    with Reader(tmp_path / "sample.mcap") as own, Reader(tmp_path / "film.mcap") as film:
        assert {"camera", "microphone", "emotion", "align.events", "label"} <= own.streams.keys() and own.counts[
            "label"
        ] == 2
        assert film.counts["camera"] == own.counts["camera"]
    rows = dataset.load(tmp_path / "rows")
    assert rows.modalities["face"].kind == "embedding" and 150 < (rows.label >= 0).sum() < len(rows)
    assert re.search(r"microphone: missing +\d", outputs[5]) and re.search(
        r"correct by the labels +.*% of \d+", outputs[5]
    )
    assert "unaccounted: none" in outputs[5] and re.search(
        r"microphone: of microphone: \d+ lost on purpose", outputs[5]
    )
    records = [r for r in map(json.loads, (tmp_path / "worse.jsonl").read_text().splitlines()) if "summary" not in r]
    whole = sum(r["receipts"][1]["state"] == "exact" for r in records)
    assert len(records) > 100 and whole < 0.2 * len(records)  # sound 120 ms late is never complete after 60 ms


def test_the_page_lists_every_fault():
    for name in faults.NAMES:
        assert re.search(rf"^\| `{name}=", PAGE, re.MULTILINE), name
    faults.parse("microphone: " + ", ".join(re.findall(r"^\| `(\w+=[^`]+)`", PAGE, re.MULTILINE)))
