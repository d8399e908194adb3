"""Acted speech for the voice network: log-mel columns of every clip, and when the live task would decide.

RAVDESS (speech/ravdess, with its manifest.csv or without) and EmoDB (speech/emodb), as their publishers name the files.
Reading 1,466 clips takes two minutes, so the result is cached under a hash of its sources and settings.

Example:
    speech = load_speech(data_folder(None), cache=Path("runs/voice"))
    speech.speakers[0], FACE_CLASSES[speech.labels[0]]          # "ravdess-01", "neutral"
    speech.decisions(0)                                         # [150, 175, …]: columns after which a decision is due
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.inference.choose_backend import load
from pipeline.perception.expression.voice import DecisionSchedule
from pipeline.perception.expression.voice_activity import VoiceActivity
from pipeline.preprocessing import VOICE_BANDS, VOICE_HOP, VOICE_RATE_HZ, log_mel
from pipeline.training.data.faces import FACE_CLASSES

# Third part of a RAVDESS name; calm counts as neutral, for it is not one of our labels.
RAVDESS = {
    "01": "neutral",
    "02": "neutral",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
# Sixth letter of an EmoDB name. Boredom (L) has no label here.
EMODB = {"W": "angry", "E": "disgust", "A": "fear", "F": "happy", "T": "sad", "N": "neutral"}

# Faster or slower playback changes pitch, formants and pace, as another speaker would. The first is the original.
SPEEDS = (1.0, 0.84, 0.92, 1.09, 1.19)
CHUNK = 320  # samples in a chunk of the live task: 20 ms
HOP_NS = VOICE_HOP * NS // VOICE_RATE_HZ
LOUD = 0.1  # share of the loudest amplitude that counts as speech where voice activity detection finds none

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Speech:
    """Clips as log-mel columns.

    mel: (columns, 64) float16, natural log of power, all clips at all speeds one after the other. first, count:
    (n, speeds), first column and number of columns of a clip in it. labels: (n,) index into the labels. speakers: (n,)
    such as "ravdess-01" or "emodb-03". due, due_clip: (decisions,) number of columns received when a decision is due,
    and the index of its clip.
    """

    mel: npt.NDArray[np.float16]
    first: Ints
    count: Ints
    labels: Ints
    speakers: npt.NDArray[np.str_]
    names: npt.NDArray[np.str_]
    due: Ints
    due_clip: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def decisions(self, clip: int) -> Ints:
        return self.due[self.due_clip == clip]

    def of(self, corpus: str) -> npt.NDArray[np.bool_]:
        """(n,) which clips belong to the corpus "ravdess" or "emodb"."""
        return np.asarray(np.char.startswith(self.speakers, corpus))

    def columns(self, clip: int, end: int, max_columns: int) -> npt.NDArray[np.float16]:
        """(64, ≤ max_columns): the last columns before column `end`."""
        first = self.first[clip, 0]
        return self.mel[first + max(0, end - max_columns) : first + min(end, int(self.count[clip, 0]))].T


def clips(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, label, speaker) of every clip with a label of ours. Raises ConfigError when there is none."""
    named = []
    for path in sorted((folder / "speech" / "ravdess").rglob("03-*.*")):
        parts = path.stem.split("-")
        if len(parts) == 7 and parts[1] == "01" and parts[2] in RAVDESS:  # 01: spoken, not sung
            named.append((path, RAVDESS[parts[2]], f"ravdess-{parts[6]}"))
    for path in sorted((folder / "speech" / "emodb").rglob("*.*")):
        if len(path.stem) == 7 and path.stem[:2].isdigit() and path.stem[5] in EMODB:
            named.append((path, EMODB[path.stem[5]], f"emodb-{path.stem[:2]}"))
    if not named:
        raise ConfigError(
            f"{folder / 'speech'}: no clips. Put RAVDESS (03-01-….wav or .flac) into ravdess/ and EmoDB (03a01Wa.…) "
            "into emodb/ there, or point --data or SENSORIUM_DATA at the folder that has speech/ in it."
        )
    return named


def load_speech(folder: Path, *, cache: Path | None = None, speeds: tuple[float, ...] = SPEEDS) -> Speech:
    """Every clip of `folder`; from `cache` if it was built from the same files with the same settings."""
    named = clips(folder)
    settings = f"{VOICE_BANDS} {VOICE_HOP} {speeds} {CHUNK} 2"
    return cached("speech", named, settings, cache, lambda: _read(named, speeds))


def cached(
    kind: str, named: list[tuple[Path, str, str]], settings: str, cache: Path | None, read: Callable[[], Speech]
) -> Speech:
    """The result of `read`, cached under the names, sizes and labels of the files `named` and the settings."""
    sources = [f"{path.name} {path.stat().st_size} {label}" for path, label, _ in named]
    digest = hashlib.sha256("\n".join([settings, *sources]).encode()).hexdigest()[:12]
    stored = cache / f"{kind}-{digest}.npz" if cache else None
    if stored is not None and stored.is_file():
        with np.load(stored, allow_pickle=False) as arrays:
            return Speech(**arrays)
    print(f"{kind}: reading {len(named)} clips", flush=True)
    speech = read()
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        temporary = stored.with_suffix(".new.npz")
        np.savez(temporary, **vars(speech))
        temporary.replace(stored)
    return speech


def _read(named: list[tuple[Path, str, str]], speeds: tuple[float, ...]) -> Speech:
    silero = load(assets.path("silero-vad"), backend="onnxruntime")
    mels, counts, due = [], [], []
    for path, _, _ in named:
        for speed in speeds:
            samples = sound(path, speed)
            mels.append(log_mel(samples).T.astype(np.float16))
            counts.append(len(mels[-1]))
            if speed == 1:
                due.append(due_columns(samples, VoiceActivity(silero)))
    count = np.array(counts, np.int64).reshape(len(named), len(speeds))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]).reshape(count.shape)
    return Speech(
        np.concatenate(mels),
        first,
        count,
        np.array([FACE_CLASSES.index(label) for _, label, _ in named], np.int64),
        np.array([speaker for _, _, speaker in named]),
        np.array([path.stem for path, _, _ in named]),
        np.concatenate(due),
        np.repeat(np.arange(len(named)), [len(d) for d in due]),
    )


def sound(path: Path, speed: float = 1.0) -> Floats:
    """(n,) mono at 16 kHz, played `speed` times as fast. Raises ConfigError for a file that is not sound."""
    import av

    resampler = av.AudioResampler("flt", "mono", round(VOICE_RATE_HZ / speed))
    try:
        with av.open(str(path)) as container:
            chunks = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            chunks += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ConfigError(f"{path}: cannot be read as sound ({error}). Fetch the file again.") from error
    return np.concatenate(chunks).astype(np.float32, copy=False)


def due_columns(samples: Floats, activity: VoiceActivity) -> Ints:
    """Number of columns received at each decision of the live task, with the clip as its microphone.

    In a clip without detected speech the loud parts count as speech, so that every clip has a decision.
    """
    chunks = len(samples) // CHUNK
    chunk_ns = CHUNK * NS // VOICE_RATE_HZ
    frames = [
        Frame("clip", i, i * chunk_ns, "pcm_f32", samples[i * CHUNK : (i + 1) * CHUNK], chunk_ns) for i in range(chunks)
    ]
    speaking = [bool(activity.update([frame])) for frame in frames]
    due = _due(speaking, chunk_ns)
    if not due:
        level = np.sqrt((samples[: chunks * CHUNK].reshape(-1, CHUNK) ** 2).mean(axis=1))
        due = _due([bool(loud) for loud in level > LOUD * level.max()], chunk_ns) or [chunks * CHUNK // VOICE_HOP]
    return np.array(due, np.int64)


def _due(speaking: list[bool], chunk_ns: int) -> list[int]:
    schedule = DecisionSchedule()
    answers = [schedule.update((i + 1) * chunk_ns, speaks) for i, speaks in enumerate(speaking)]
    return [due_ns // HOP_NS for due_ns in answers if due_ns is not None]
