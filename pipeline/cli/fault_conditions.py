"""`evaluate faults`: the emotion task on one recording, replayed with late, lost, noisy, drifting and unplugged
sensors.

Models, aligner and moments are the same in every replay; only the streams differ (pipeline/recording/faults.py). For
each fault the table shows how much of each stream was missing or partial, how many predictions equal those of the clean
replay, and how many are right by the labels of the recording. Needs no torch.

Example:
    python run_pipeline.py sample sample.mcap
    python run_pipeline.py evaluate faults --data sample.mcap
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.out_option import with_out
from pipeline.cli.replay import replay_config
from pipeline.errors import ConfigError
from pipeline.installation import CONFIGS
from pipeline.recording import fault_report
from pipeline.recording.diff import read_predictions
from pipeline.recording.labels import Labels
from pipeline.recording.reader import Reader
from pipeline.recording.replay_session import ReplaySession
from pipeline.runtime.config import load, without_displays
from pipeline.runtime.launcher import launch

CONFIG = CONFIGS / "emotion-demo.yaml"
PICTURES, SOUND = "camera", "microphone"
# Name in the table → faults, from those of a good set-up to those that make one unusable.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "sound 40 ms late": (f"{SOUND}: delay=40ms",),
    "sound 200 ms late": (f"{SOUND}: delay=200ms",),
    "sound's clock 200 ppm fast": (f"{SOUND}: drift=200ppm",),
    "5 % of the sound lost": (f"{SOUND}: drop=5%",),
    "sound at 10 dB": (f"{SOUND}: noise=10dB",),
    "sound unplugged for 3 s": (f"{SOUND}: cut=3s@2s",),
    "10 % of the pictures lost": (f"{PICTURES}: drop=10%",),
    "half of the pictures lost": (f"{PICTURES}: drop=50%",),
    "pictures at 10 dB": (f"{PICTURES}: noise=10dB",),
    "pictures at 0 dB": (f"{PICTURES}: noise=0dB",),
    "camera unplugged for 2 s": (f"{PICTURES}: cut=2s@2s",),
}


def evaluate_faults(*, data: Path, out: Path = Path("runs/faults.json")) -> dict[str, dict[str, Any]]:
    """Replay with every condition; print the table and write it.

    Args:
        data: A recording with the streams of configs/emotion-demo.yaml and labels.
        out: The JSON file.

    Returns condition → figures. Raises ConfigError where the recording has no labels, or other streams.
    """
    with Reader(data) as reader:
        labels = Labels.read(reader)
        for stream in (PICTURES, SOUND):
            if stream not in reader.streams:
                raise ConfigError(f"{data}: it has no stream '{stream}'. Streams there: {', '.join(reader.streams)}")
    clean: Sequence[dict[str, Any]] = ()
    table: dict[str, dict[str, Any]] = {}
    print(f"{'':<28}{'right':>8}{'of':>6}{'same':>8}{'no answer':>11}{'camera':>9}{'sound':>8}{'in pieces':>11}")
    for name, faults in CONDITIONS.items():
        records = replayed(data, faults)
        clean = clean or records
        table[name] = row = _figures(records, clean, labels)
        missing = row["missing"]
        print(
            f"{name:<28}{row['right']:>8.1%}{row['labelled']:>6}{row['same']:>8.1%}{row['no_answer']:>11.1%}"
            f"{missing.get(PICTURES, 0):>9.1%}{missing.get(SOUND, 0):>8.1%}{row['sound_in_pieces']:>11.1%}",
            flush=True,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps({"data": data.name, "command": f"evaluate faults --data {data.name}", "conditions": table}, indent=2)
        + "\n"
    )
    return table


def replayed(recording: Path, faults: Sequence[str]) -> list[dict[str, Any]]:
    """Predictions of the demo graph on the recording, aligned again, as `--out` writes them."""
    session = ReplaySession(recording, realign=True, fault=faults)
    with tempfile.TemporaryDirectory(prefix="sensorium-") as folder:
        path = Path(folder) / "predictions.jsonl"
        config = with_out(without_displays(load(CONFIG)), str(path), host="")
        launch(replay_config(session, config, speed=0))
        return read_predictions(path)


def _figures(records: Sequence[dict[str, Any]], clean: Sequence[dict[str, Any]], labels: Labels) -> dict[str, Any]:
    states = fault_report.states(records)
    shares = {
        s: sum(counts[state] for state in fault_report.ABSENT) / max(1, counts.total()) for s, counts in states.items()
    }
    sound: Mapping[str, int] = states.get(SOUND, {})
    right, labelled = fault_report.accuracy(records, labels)
    same, shared = fault_report.agreement(clean, records)
    return {
        "predictions": len(records),
        "right": round(right, 4),
        "labelled": labelled,
        "same": round(same, 4),
        "same_of": shared,
        "no_answer": round(sum(r["label"] is None for r in records) / max(1, len(records)), 4),
        "missing": {stream: round(share, 4) for stream, share in shares.items()},
        "sound_in_pieces": round(sound.get("partial", 0) / max(1, sum(sound.values())), 4),
    }
