"""From a recording to a live run, by commands: record → label → export → train fusion → run with the trained model.

The recording is the sample session, recorded from the packaged clip; the training is far too short to be good.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from sample_recording import sample_recording

from pipeline.recording import dataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import run_pipeline  # noqa: E402

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def command(*arguments: object) -> None:
    """A command in this process, so that torch is imported once and not for each command."""
    args = run_pipeline.parser().parse_args([str(argument) for argument in arguments])
    args.function(args)


@pytest.fixture(scope="module")
def sample():
    return sample_recording()


def test_a_fusion_trained_on_a_labelled_recording_runs_live(sample, tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: scripts/setup train")
    halves = {"first": "0.0,2.0,sad\n11.0,12.0,happy\n", "second": "4.0,6.0,sad\n13.0,,happy\n"}
    for name, text in halves.items():  # two sessions, of which no moment is in both
        (tmp_path / f"{name}.csv").write_text("start_s,end_s,label\n" + text)
        command("label", sample, tmp_path / f"{name}.csv", tmp_path / f"{name}.mcap", "--stream", "mine")
    command(
        "export", tmp_path / "first.mcap", tmp_path / "second.mcap", tmp_path / "set", "--dataset", "--labels", "mine"
    )
    rows = dataset.load(tmp_path / "set")
    assert (
        set(rows.group) == {"first", "second"}
        and rows.modalities["face"].kind == "embedding"
        and (rows.label >= 0).sum() > 100
    )
    command(
        "train",
        "fusion",
        "--data",
        tmp_path / "set",
        "--family",
        "concat",
        "--epochs",
        2,
        "--out",
        tmp_path / "mine.onnx",
    )
    command(
        "run",
        ROOT / "configs/emotion-demo.yaml",
        "--no-dashboard",
        "--for",
        "3s",
        "--out",
        tmp_path / "live.jsonl",
        "--set",
        f"nodes.emotion.options={{voice: none, fusion: {tmp_path / 'mine.onnx'}}}",
    )
    lines = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    predicted = [line for line in lines if line.get("label")]
    assert predicted and all(
        "mine@" in line["model"] for line in predicted
    )  # how many depends on the load of the machine
