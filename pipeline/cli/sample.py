"""The sample session: a small real recording, made on demand by our own tools from the packaged clip, and labelled.

    python run_pipeline.py sample sample.mcap        # then: verify, replay, export, label … with nobody's camera

`record` runs the demo's graph for 14 s and keeps all that flows: pictures as captured (320 px wide), sound, what the aligner
decided, predictions with embeddings, health. The labels are what one sees: sad until 6 s, happy from 11 s on, nothing between.
It is made once for each version of models and code, and kept in the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline import assets
from pipeline.errors import ConfigError
from pipeline.recording import part as recording_format
from pipeline.recording.labels import add_labels
from pipeline.recording.part import refuse_existing
from pipeline.recording.reader import Reader
from pipeline.runtime.config import load

VERSION, SECONDS = 1, 14.0
MIN_PREDICTED = round(0.8 * SECONDS * 24)  # of the clip's 24 pictures a second
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "emotion-demo.yaml"
CHANGES = ("nodes.camera.width_px=320", "nodes.emotion.options={embeddings: true}")
INTERVALS = "start_s,end_s,label\n0.0,6.0,sad\n11.0,,happy\n"


def make_sample(out: Path, *, say: Callable[[str], None] = print) -> None:
    """Write `out`, from the cache where it is there. Raises ConfigError when it cannot be made, or `out` is there already."""
    refuse_existing(out)
    made = cached_sample(say=say)
    try:
        shutil.copyfile(made, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
    say(f"  {out}: {SECONDS:g} s of the demo clip with its predictions and labels, {out.stat().st_size / 1e6:.0f} MB")
    say(f"  next: python run_pipeline.py replay configs/emotion-demo.yaml {out}")


def cached_sample(*, say: Callable[[str], None] = lambda line: None) -> Path:
    """The sample in the cache; made first where it is not there, or was made with other models."""
    assets.pull(["demo-clip", "centerface", "silero-vad"])
    folder = assets.cache_folder().parent / "sample"
    made = folder / f"sample-{_fingerprint()}.mcap"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    say(f"  recording {SECONDS:g} s of the demo clip, in real time …")
    part, labelled = folder / f"{os.getpid()}.mcap", folder / f"{os.getpid()}-labelled.mcap"
    intervals = folder / f"{os.getpid()}.csv"
    try:
        _record(part)
        intervals.write_text(INTERVALS)
        add_labels(part, intervals, labelled)
        labelled.rename(made)  # whole, or not there
    finally:
        for left in (part, labelled, intervals):
            left.unlink(missing_ok=True)
    return made


def _record(path: Path) -> None:
    from pipeline.recording.recorder import Wanted, with_recorder
    from pipeline.runtime.launcher import launch

    """ConfigError when the machine had no time for it: what is kept is kept for long."""
    config = load(CONFIG, CHANGES)
    kept = {name: node for name, node in config.nodes.items() if node.use not in ("console", "dashboard")}
    launch(with_recorder(dataclasses.replace(config, nodes=kept), path, Wanted(compression="zstd")), for_s=SECONDS)
    with Reader(path) as reader:
        predicted = reader.counts["emotion"]
    if predicted < MIN_PREDICTED:
        told = f"{predicted} predictions, where at least {MIN_PREDICTED} are due"
        raise ConfigError(f"sample: this machine is too busy now: {told}. Try again when it is not")


def _fingerprint() -> str:
    """Of all that the recording's content hangs on."""
    told = hashlib.sha256(f"{VERSION} {SECONDS} {CHANGES} {INTERVALS} {recording_format.VERSION}".encode())
    for path in (CONFIG, *sorted(assets.MODELS.glob("*-expression.onnx"))):
        told.update(path.read_bytes())
    return told.hexdigest()[:12]
