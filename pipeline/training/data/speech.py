"""Acted speech as the voice network hears it: log-mel columns of every clip, and where in it the live task would decide.

RAVDESS (speech/ravdess, with its manifest.csv or without) and EmoDB (speech/emodb), as their publishers name the files.
Reading and judging 1,466 clips takes two minutes, so the result is kept in a cache that knows what it was made from.

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

# Third part of a RAVDESS name; calm is a neutral that the actors were asked to show kindly, and no label of ours.
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

# Played faster or slower, a clip has another speaker's pitch, formants and pace. The first is the clip as it is.
SPEEDS = (1.0, 0.84, 0.92, 1.09, 1.19)
CHUNK = 320  # samples the live task hears at a time: 20 ms
HOP_NS = VOICE_HOP * NS // VOICE_RATE_HZ
LOUD = 0.1  # of the loudest chunk's amplitude: speech, where the voice activity network heard none

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Speech:
    """mel: (columns, 64) float16, natural log of power, all clips at all speeds one after the other. first, count: (n, speeds),
    where in it a clip lies. labels: (n,) index into FACE_CLASSES. speakers: (n,) such as "ravdess-01" or "emodb-03".
    due, due_clip: (decisions,) number of columns heard when a decision is due, and of which clip."""

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
        """(n,) which clips are of "ravdess" or "emodb"."""
        return np.asarray(np.char.startswith(self.speakers, corpus))

    def columns(self, clip: int, end: int, most: int) -> npt.NDArray[np.float16]:
        """(64, ≤ most): the last `most` columns that were heard when column `end` was."""
        first = self.first[clip, 0]
        return self.mel[first + max(0, end - most) : first + min(end, int(self.count[clip, 0]))].T


def clips(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, label, speaker) of every clip with a label of ours. Raises ConfigError when there is none."""
    found = []
    for path in sorted((folder / "speech" / "ravdess").rglob("03-*.*")):
        parts = path.stem.split("-")
        if len(parts) == 7 and parts[1] == "01" and parts[2] in RAVDESS:  # 01: spoken, not sung
            found.append((path, RAVDESS[parts[2]], f"ravdess-{parts[6]}"))
    for path in sorted((folder / "speech" / "emodb").rglob("*.*")):
        if len(path.stem) == 7 and path.stem[:2].isdigit() and path.stem[5] in EMODB:
            found.append((path, EMODB[path.stem[5]], f"emodb-{path.stem[:2]}"))
    if not found:
        raise ConfigError(
            f"{folder / 'speech'}: no clips. Put RAVDESS (03-01-….wav or .flac) into ravdess/ and EmoDB (03a01Wa.…) into "
            "emodb/ there, or point --data or SENSORIUM_DATA at the folder that has speech/ in it."
        )
    return found


def load_speech(folder: Path, *, cache: Path | None = None, speeds: tuple[float, ...] = SPEEDS) -> Speech:
    """Every clip of `folder`; from `cache` where it was made of the same files with the same settings."""
    named = clips(folder)
    settings = f"{VOICE_BANDS} {VOICE_HOP} {speeds} {CHUNK} 2"
    return cached("speech", named, settings, cache, lambda: _read(named, speeds))


def cached(
    kind: str, named: list[tuple[Path, str, str]], settings: str, cache: Path | None, read: Callable[[], Speech]
) -> Speech:
    """What `read` gives of the files `named`, kept in `cache` under their names, sizes and labels and the settings."""
    made_of = [f"{path.name} {path.stat().st_size} {label}" for path, label, _ in named]
    digest = hashlib.sha256("\n".join([settings, *made_of]).encode()).hexdigest()[:12]
    stored = cache / f"{kind}-{digest}.npz" if cache else None
    if stored is not None and stored.is_file():
        with np.load(stored, allow_pickle=False) as arrays:
            return Speech(**arrays)
    print(f"{kind}: reading {len(named)} clips", flush=True)
    speech = read()
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        whole = stored.with_suffix(".new.npz")
        np.savez(whole, **vars(speech))
        whole.replace(stored)
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
    """(n,) mono at 16 kHz, played `speed` times as fast. Raises ConfigError for what is no sound file."""
    import av

    resampler = av.AudioResampler("flt", "mono", round(VOICE_RATE_HZ / speed))
    try:
        with av.open(str(path)) as container:
            chunks = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            chunks += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ConfigError(f"{path}: cannot be read as sound ({error}). Fetch the file anew.") from error
    return np.concatenate(chunks).astype(np.float32, copy=False)


def due_columns(samples: Floats, activity: VoiceActivity) -> Ints:
    """How many columns were heard whenever the live task would have decided, had the clip come from a microphone; in a clip
    without speech for it, where the sound is loud, so that every clip has an answer."""
    whole = len(samples) // CHUNK
    chunk_ns = CHUNK * NS // VOICE_RATE_HZ
    frames = [
        Frame("clip", i, i * chunk_ns, "pcm_f32", samples[i * CHUNK : (i + 1) * CHUNK], chunk_ns) for i in range(whole)
    ]
    speaking = [bool(activity.update([frame])) for frame in frames]
    due = _due(speaking, chunk_ns)
    if not due:
        level = np.sqrt((samples[: whole * CHUNK].reshape(-1, CHUNK) ** 2).mean(axis=1))
        due = _due([bool(loud) for loud in level > LOUD * level.max()], chunk_ns) or [whole * CHUNK // VOICE_HOP]
    return np.array(due, np.int64)


def _due(speaking: list[bool], chunk_ns: int) -> list[int]:
    schedule = DecisionSchedule()
    answers = [schedule.update((i + 1) * chunk_ns, speaks) for i, speaks in enumerate(speaking)]
    return [due_ns // HOP_NS for due_ns in answers if due_ns is not None]
