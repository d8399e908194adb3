"""Evaluates the shipped sound-event model in the live detector, with clips as its microphone. Needs no torch.

Example:
    python run_pipeline.py evaluate sound                       # ESC-10, RAVDESS's speech, the packaged clip
    python run_pipeline.py evaluate sound --data DIR            # your own clips, in the same layout

Recordings from the training data are scored separately, because only the others show the accuracy. For speech and for
the packaged clip, which are not in the training data, false reports are counted.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline import assets
from pipeline.clock import NS
from pipeline.errors import AssetError
from pipeline.frame import Frame
from pipeline.inference.choose_backend import load
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.perception.sound_events import MODEL, OTHER, SILENCE, SoundEventDetector
from pipeline.preprocessing import VOICE_RATE_HZ
from pipeline.training.data.folder import data_folder
from pipeline.training.data.speech import sound
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, markdown, score
from pipeline.training.sound.clips import FOLDS, clips_of, fold_of

CHUNK = 1600  # 0.1 s
ONE_IN = 7  # of RAVDESS's clips, ordered by name: includes every actor, sentence and expression
CHUNK_NS = CHUNK * NS // VOICE_RATE_HZ


def evaluate_sound(
    *, model: Path = MODEL, data: Path | None = None, out: Path = Path("runs/sound/evaluated.json"), seed: int = 1
) -> dict[str, dict[str, Scores]]:
    """Print scores by clip and by window, and the reported events; write them to `out` and a chart beside it."""
    manifest, folder = Manifest.read(model), data_folder(data)
    engine = load(model, backend="onnxruntime")
    table: dict[str, dict[str, Scores]] = {}
    began_s, windows = time.thread_time(), 0
    clips = [(path, label, recording) for path, label, recording in clips_of(folder) if label != OTHER]
    for trained, what in ((False, "ESC-10, unseen recordings"), (True, "ESC-10, RECORDINGS IT WAS TRAINED ON")):
        selected = [clip for clip in clips if (fold_of(clip[2]) <= FOLDS) == trained]
        played_clips = [
            (play(SoundEventDetector(engine, manifest), path), manifest.labels.index(label), recording)
            for path, label, recording in selected
        ]
        with_sound = [(log_probs, label, recording) for (log_probs, _), label, recording in played_clips if log_probs]
        if not with_sound:
            continue
        windows += (here := sum(len(log_probs) for log_probs, _, _ in with_sound))
        reported = [(name, manifest.labels[label]) for (_, names), label, _ in played_clips for name in names]
        right = sum(name == label for name, label in reported) / max(1, len(reported))
        print(
            f"{what}: an event was reported in {len(reported) / here:.1%} of the windows, "
            f"rightly in {right:.1%} of these"
        )
        each = [(one, label, recording) for log_probs, label, recording in with_sound for one in log_probs]
        whole = [(np.mean(log_probs, axis=0), label, recording) for log_probs, label, recording in with_sound]
        table[what] = {
            per: score(
                np.stack([a for a, _, _ in rows]),
                np.array([b for _, b, _ in rows]),
                np.array([c for _, _, c in rows]),
                seed=seed,
            )
            for per, rows in (("clip", whole), ("window", each))
        }
    print(f"{manifest.id}\n{markdown(table)}")
    speech = sorted((folder / "speech" / "ravdess").glob("03-01-*.*"))
    _false_reports(engine, manifest, f"RAVDESS's speech, one clip in {ONE_IN}", speech[::ONE_IN])
    try:
        _false_reports(engine, manifest, "the packaged clip's sound", [assets.path("demo-clip")])
    except AssetError as error:
        print(error)
    if windows:
        print(
            f"{(time.thread_time() - began_s) * 1000 / windows:.1f} ms of CPU for each window, "
            "including reading of the files"
        )
    write(table, out, title=manifest.id)
    return table


def _false_reports(engine: Engine, manifest: Manifest, what: str, files: list[Path]) -> None:
    reported: Counter[str] = Counter()
    windows = 0
    for path in files:
        log_probs, reports = play(SoundEventDetector(engine, manifest), path)
        windows += len(log_probs)
        reported.update(reports)
    if files:
        named = ", ".join(f"{label} {count}" for label, count in reported.most_common()) or "none"
        print(
            f"{what}: {len(files)} clips, {windows} windows that are not silent, "
            f"{reported.total()} false reports: {named}"
        )


def play(detector: SoundEventDetector, path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Log-probabilities of every window that is not silent, and the labels of the reported events."""
    samples = sound(path)
    log_probs, reports, last_decided_ns = [], [], -1
    for seq in range(len(samples) // CHUNK):
        frame = Frame("microphone", seq, seq * CHUNK_NS, "pcm_f32", samples[seq * CHUNK : (seq + 1) * CHUNK], CHUNK_NS)
        events = detector.update((frame,), frame.end_ns)
        if detector.decided_ns == last_decided_ns:
            continue
        last_decided_ns = detector.decided_ns
        if detector.probs is not None:
            log_probs.append(np.log(np.maximum(detector.probs, 1e-7)))
            reports += [event.label for event in events if event.label not in (OTHER, SILENCE)]
    return log_probs, reports
