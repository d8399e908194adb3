"""The shipped sound-event model through the live task: clips played into a microphone, and what is reported of them.

    python run_pipeline.py evaluate sound                       # ESC-10, RAVDESS's speech, the packaged clip
    python run_pipeline.py evaluate sound --data DIR            # clips of your own, laid out alike

Needs no torch. Recordings that the model was trained on are told apart from the others, for only these say how right it is; of
speech and of the packaged clip only what is reported in error counts, and neither trained it.
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
ONE_IN = 7  # of RAVDESS's clips, in the order of their names: every actor, sentence and mood is among them
CHUNK_NS = CHUNK * NS // VOICE_RATE_HZ


def evaluate_sound(
    *, model: Path = MODEL, data: Path | None = None, out: Path = Path("runs/sound/evaluated.json"), seed: int = 1
) -> dict[str, dict[str, Scores]]:
    """Prints a table of clips and windows and what was reported; `out`: a JSON file, and a picture beside it."""
    told, folder = Manifest.read(model), data_folder(data)
    engine = load(model, backend="onnxruntime")
    table: dict[str, dict[str, Scores]] = {}
    began_s, windows = time.thread_time(), 0
    clips = [(path, label, recording) for path, label, recording in clips_of(folder) if label != OTHER]
    for trained, what in ((False, "ESC-10, recordings never heard"), (True, "ESC-10, RECORDINGS IT WAS TRAINED ON")):
        asked = [clip for clip in clips if (fold_of(clip[2]) <= FOLDS) == trained]
        played_clips = [
            (played(SoundEventDetector(engine, told), path), told.labels.index(label), recording)
            for path, label, recording in asked
        ]
        answered = [(heard, label, recording) for (heard, _), label, recording in played_clips if heard]
        if not answered:
            continue
        windows += (here := sum(len(heard) for heard, _, _ in answered))
        reported = [(name, told.labels[label]) for (_, names), label, _ in played_clips for name in names]
        right = sum(name == label for name, label in reported) / max(1, len(reported))
        print(
            f"{what}: an event was reported in {len(reported) / here:.1%} of the windows, rightly in {right:.1%} of these"
        )
        each = [(answer, label, recording) for heard, label, recording in answered for answer in heard]
        whole = [(np.mean(heard, axis=0), label, recording) for heard, label, recording in answered]
        table[what] = {
            per: score(
                np.stack([a for a, _, _ in rows]),
                np.array([b for _, b, _ in rows]),
                np.array([c for _, _, c in rows]),
                seed=seed,
            )
            for per, rows in (("clip", whole), ("window", each))
        }
    print(f"{told.id}\n{markdown(table)}")
    speech = sorted((folder / "speech" / "ravdess").glob("03-01-*.*"))
    _in_error(engine, told, f"RAVDESS's speech, one clip in {ONE_IN}", speech[::ONE_IN])
    try:
        _in_error(engine, told, "the packaged clip's sound", [assets.path("demo-clip")])
    except AssetError as error:
        print(error)
    if windows:
        print(
            f"{(time.thread_time() - began_s) * 1000 / windows:.1f} ms of CPU a window, reading of the files included"
        )
    write(table, out, title=told.id)
    return table


def _in_error(engine: Engine, told: Manifest, what: str, files: list[Path]) -> None:
    reported: Counter[str] = Counter()
    windows = 0
    for path in files:
        heard, reports = played(SoundEventDetector(engine, told), path)
        windows += len(heard)
        reported.update(reports)
    if files:
        named = ", ".join(f"{label} {count}" for label, count in reported.most_common()) or "none"
        print(
            f"{what}: {len(files)} clips, {windows} windows that were not silent, {reported.total()} reported in error: {named}"
        )


def played(detector: SoundEventDetector, path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Log-probabilities of every window that was not silent, and the events that were reported."""
    samples = sound(path)
    heard, reports, before = [], [], -1
    for seq in range(len(samples) // CHUNK):
        frame = Frame("microphone", seq, seq * CHUNK_NS, "pcm_f32", samples[seq * CHUNK : (seq + 1) * CHUNK], CHUNK_NS)
        said = detector.update((frame,), frame.end_ns)
        if detector.decided_ns == before:
            continue
        before = detector.decided_ns
        if detector.probs is not None:
            heard.append(np.log(np.maximum(detector.probs, 1e-7)))
            reports += [event.label for event in said if event.label not in (OTHER, SILENCE)]
    return heard, reports
