"""The sample session: a small real recording of the packaged clip, made on demand with our own tools, and labelled.

    python run_pipeline.py sample sample.mcap        # then: verify, replay, export, label …; no camera needed

The demo's graph is recorded for 14 s with all its streams: pictures as captured (320 px wide), sound, the aligner's
event log, predictions with embeddings, health. A person labelled it: sad until 6 s, happy from 11 s on, nothing
between. It is recorded once for each version of models and code, and stored in the cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline import assets
from pipeline.cli.record import RecordOptions, with_recorder
from pipeline.errors import ConfigError
from pipeline.installation import COMMAND, CONFIGS, MODELS
from pipeline.recording.labels import add_labels
from pipeline.recording.part import VERSION as FORMAT_VERSION
from pipeline.recording.part import refuse_existing
from pipeline.recording.reader import Reader
from pipeline.runtime.config import load, without_displays

VERSION, SECONDS = 1, 14.0
MIN_PREDICTED = round(0.8 * SECONDS * 24)  # of the clip's 24 pictures a second
CONFIG = CONFIGS / "emotion-demo.yaml"
CHANGES = ("nodes.camera.width_px=320", "nodes.emotion.options={embeddings: true}")
INTERVALS = "start_s,end_s,label\n0.0,6.0,sad\n11.0,,happy\n"


def make_sample(out: Path, *, say: Callable[[str], None] = print) -> None:
    """Write `out`, copied from the cache. Raises ConfigError when it cannot be recorded, or `out` exists already."""
    refuse_existing(out)
    sample = cached_sample(say=say)
    try:
        shutil.copyfile(sample, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
    say(f"  {out}: {SECONDS:g} s of the demo clip with its predictions and labels, {out.stat().st_size / 1e6:.0f} MB")
    say(f"  next: {COMMAND} replay configs/emotion-demo.yaml {out}")


def cached_sample(*, say: Callable[[str], None] = lambda line: None) -> Path:
    """The sample in the cache; recorded first when it is missing, or was recorded with other models."""
    assets.pull(["demo-clip", "centerface", "silero-vad"])
    folder = assets.cache_folder().parent / "sample"
    sample = folder / f"sample-{_fingerprint()}.mcap"
    if sample.exists():
        return sample
    folder.mkdir(parents=True, exist_ok=True)
    say(f"  recording {SECONDS:g} s of the demo clip, in real time …")
    unlabelled, labelled = folder / f"{os.getpid()}.mcap", folder / f"{os.getpid()}-labelled.mcap"
    intervals = folder / f"{os.getpid()}.csv"
    try:
        _record(unlabelled)
        intervals.write_text(INTERVALS)
        add_labels(unlabelled, intervals, labelled)
        labelled.rename(sample)  # at once, so that another process never reads a part of it
    finally:
        for path in (unlabelled, labelled, intervals):
            path.unlink(missing_ok=True)
    return sample


def _record(path: Path) -> None:
    """Raises ConfigError when the machine was too busy to predict: the sample stays in the cache for long."""
    from pipeline.runtime.launcher import launch

    config = without_displays(load(CONFIG, CHANGES))
    launch(with_recorder(config, path, RecordOptions(compression="zstd")), for_s=SECONDS)
    with Reader(path) as reader:
        predicted = reader.counts["emotion"]
    if predicted < MIN_PREDICTED:
        counts = f"{predicted} predictions, expected at least {MIN_PREDICTED}"
        raise ConfigError(f"sample: this machine is too busy now: {counts}. Try again when it is idle")


def _fingerprint() -> str:
    """Of everything that the recording's content depends on."""
    fingerprint = hashlib.sha256(f"{VERSION} {SECONDS} {CHANGES} {INTERVALS} {FORMAT_VERSION}".encode())
    for path in (CONFIG, *sorted(MODELS.glob("*-expression.onnx"))):
        fingerprint.update(path.read_bytes())
    return fingerprint.hexdigest()[:12]
