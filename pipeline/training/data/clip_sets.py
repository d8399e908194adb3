"""Labelled clips of public data sets: the opinions of our encoders on each clip become a row
(pipeline/recording/dataset.py).

    ravdess   03-01-05-01-02-01-12.wav, .flac or .mp4: the third number is the emotion, the last the actor
    emodb     03a01Wa.wav: two digits of the speaker, the sixth letter is the emotion; boredom has no label here
    crema-d   1001_DFA_ANG_XX.wav, .flv or .mp4: actor, sentence, emotion, level
    votes     CREMA-D's tabulated votes: the opinions of people instead of those of the encoders

Example:
    rows = read(Path("~/data/CREMA-D/VideoFlash"), "crema-d")     # then: evaluate fusion --data … --format crema-d

A clip goes through the live emotion task as from a camera and a microphone, and a row holds the mean log-probabilities
of its opinions; a modality that a clip lacks (no picture in a .wav) is absent. The shipped voice model was trained on
RAVDESS and EmoDB, so its figures on those two are on training data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import AlignedSet, Frame, Prediction
from pipeline.installation import COMMAND, MODELS
from pipeline.preprocessing import VOICE_RATE_HZ
from pipeline.recording.dataset import Modality, Rows
from pipeline.sensors import media
from pipeline.tasks.emotion import VOICE_MODEL, Emotion
from pipeline.training.data.faces import FACE_CLASSES
from pipeline.training.data.speech import EMODB, RAVDESS
from pipeline.training.data.votes import INTENDED, VOTE_CLASSES, load_votes

KNOWN_VOICES = ("ravdess", "emodb")
SUFFIXES = (".wav", ".flac", ".mp4", ".flv", ".mov", ".avi", ".mkv")
CHUNK = 320  # samples: 20 ms
TICK_NS = NS // 20  # between the sets of a clip without pictures
PICTURES_HZ = 12.0  # picture rate after subsampling
SOUND_WINDOW_NS = NS  # sound in each set, as in the live config


@dataclass(frozen=True)
class Clip:
    path: Path
    label: str
    speaker: str


def ravdess(path: Path) -> Clip | None:
    parts = path.stem.split("-")
    if len(parts) == 7 and parts[1] == "01" and parts[2] in RAVDESS:  # 01: spoken, not sung
        return Clip(path, RAVDESS[parts[2]], f"actor {parts[6]}")
    return None


def emodb(path: Path) -> Clip | None:
    if len(path.stem) == 7 and path.stem[:2].isdigit() and path.stem[5] in EMODB:
        return Clip(path, EMODB[path.stem[5]], f"speaker {path.stem[:2]}")
    return None


def crema_d(path: Path) -> Clip | None:
    parts = path.stem.split("_")
    if len(parts) == 4 and parts[0].isdigit() and parts[2] in INTENDED:
        return Clip(path, INTENDED[parts[2]], f"actor {parts[0]}")
    return None


NAMED: dict[str, tuple[Callable[[Path], Clip | None], str]] = {
    "ravdess": (ravdess, "files such as 03-01-05-01-02-01-12.wav; it is on Zenodo, record 1188976, CC BY-NC-SA 4.0"),
    "emodb": (emodb, "files such as 03a01Wa.wav, from the Berlin database's page"),
    "crema-d": (
        crema_d,
        "files such as 1001_DFA_ANG_XX.wav or .flv, from the repository CheyneyComputerScience/CREMA-D",
    ),
}


def clips(folder: Path, name: str) -> list[Clip]:
    """Every clip under `folder` whose name follows the convention of the set. Raises ConfigError when there is none."""
    read, expected = NAMED[name]
    named = [
        clip for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES for clip in [read(path)] if clip
    ]
    if not named:
        raise ConfigError(f"{folder}: no clips of {name}. Give the folder that holds {expected}.")
    return named


@dataclass
class ClipOpinion:
    """The log-probabilities of one modality over a clip."""

    log_probs: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def mean(self) -> npt.NDArray[np.float32]:
        """(labels,) normalised geometric mean of the probabilities; zeros without any."""
        if not self.log_probs:
            return np.zeros(len(FACE_CLASSES), np.float32)
        mean = np.mean(self.log_probs, axis=0)
        return np.asarray(np.exp(mean) / np.exp(mean).sum(), np.float32)


def rows_of(clips: Sequence[Clip], *, made_by: str, options: Mapping[str, Any] | None = None) -> Rows:
    """One row for each clip: the opinions of face and voice in the live task.

    Args:
        clips: The labelled clips.
        made_by: How the rows came about, stored with them.
        options: Options of the emotion task.

    Raises ConfigError for a clip that cannot be read, and where no clip gave an opinion.
    """
    voice = VOICE_MODEL if (MODELS / f"{VOICE_MODEL}.onnx").is_file() else "none"
    # With a voice model the task always returns opinions; without one only if embeddings are requested.
    task = Emotion(
        **{"voice": voice, "fusion": "average", "embeddings": voice == "none", "smoothing_ms": 0.0, **(options or {})}
    )
    task.open("onnxruntime")
    values: dict[str, list[npt.NDArray[np.float32]]] = {"face": [], "voice": []}
    begin_ns = 0  # clips lie a minute apart, so that the state of one does not reach the next
    for number, clip in enumerate(clips):
        opinions = {"face": ClipOpinion(), "voice": ClipOpinion()}
        for aligned in sets(clip.path, begin_ns):
            prediction: Prediction = task.predict(aligned)
            for opinion in prediction.opinions:
                if opinion.weight > 0 and opinion.probs:
                    opinions[opinion.modality].log_probs.append(np.log(np.maximum(opinion.probs, 1e-6)))
            begin_ns = aligned.anchor_ns
        begin_ns += 60 * NS
        for name, clip_opinion in opinions.items():
            values[name].append(clip_opinion.mean())
        if number % 50 == 49:
            print(f"{number + 1} of {len(clips)} clips", flush=True)
    modalities = {}
    for name, each in values.items():
        stacked = np.stack(each)
        present = np.asarray(stacked.any(axis=1))
        if present.any():
            modalities[name] = Modality("probs", stacked, present, np.zeros(len(clips), np.int64))
    if not modalities:
        raise ConfigError(
            f"{clips[0].path} and {len(clips) - 1} more: no face and no voice was detected in any. A voice needs "
            f"models/voice-expression.onnx: {COMMAND} train voice"
        )
    return Rows(
        FACE_CLASSES,
        np.array([FACE_CLASSES.index(clip.label) for clip in clips], np.int64),
        np.array([clip.speaker for clip in clips]),
        np.arange(len(clips), dtype=np.int64) * NS,
        modalities,
        made_by,
    )


def sets(path: Path, begin_ns: int) -> Iterator[AlignedSet]:
    """The aligned sets of a clip: one for each picture with the last second of sound, or one every 50 ms without
    pictures.
    """
    chunks = list(_sound(path, begin_ns))
    ends_ns = np.array([chunk.end_ns for chunk in chunks])
    pictured = False
    for frame in _pictures(path, begin_ns):
        pictured = True
        yield _set(frame.capture_ns, frame, chunks, ends_ns)
    if not pictured and chunks:
        for now_ns in range(begin_ns + TICK_NS, chunks[-1].end_ns + TICK_NS, TICK_NS):
            yield _set(now_ns, None, chunks, ends_ns)


def _set(now_ns: int, picture: Frame | None, chunks: Sequence[Frame], ends_ns: npt.NDArray[np.int64]) -> AlignedSet:
    first, last = np.searchsorted(ends_ns, [now_ns - SOUND_WINDOW_NS, now_ns], side="right")
    frames = {"camera": (picture,)} if picture is not None else {}
    recent = tuple(chunks[first:last])
    return AlignedSet(
        "camera", now_ns, frames | ({"microphone": recent} if recent else {}), (), (), arrival_ns=now_ns, sent_ns=now_ns
    )


def _pictures(path: Path, begin_ns: int) -> Iterator[Frame]:
    try:
        opened = media.open_file(str(path), "video", where="clips")
    except ConfigError:
        return  # a sound file
    with opened:
        next_ns = 0
        for seq, decoded in enumerate(opened.frames()):
            if decoded is None:
                continue
            at_ns = opened.time_ns(decoded)
            if at_ns is not None and at_ns >= next_ns:
                next_ns = at_ns + int(NS / PICTURES_HZ) - 1_000_000
                yield Frame("camera", seq, begin_ns + at_ns, "bgr8", decoded.to_ndarray(format="bgr24"))


def _sound(path: Path, begin_ns: int) -> Iterator[Frame]:
    samples, chunk_ns = sound(path), CHUNK * NS // VOICE_RATE_HZ
    for seq in range(len(samples) // CHUNK):
        yield Frame(
            "microphone", seq, begin_ns + seq * chunk_ns, "pcm_f32", samples[seq * CHUNK : (seq + 1) * CHUNK], chunk_ns
        )


def sound(path: Path) -> npt.NDArray[np.float32]:
    """(n,) mono at 16 kHz; empty for pictures without sound."""
    import av

    try:
        opened = media.open_file(str(path), "audio", where="clips")
    except ConfigError:
        return np.zeros(0, np.float32)
    with opened:
        resampler = av.AudioResampler("flt", "mono", VOICE_RATE_HZ)
        pieces = [
            out.to_ndarray()[0]
            for decoded in opened.frames()
            if decoded is not None
            for out in resampler.resample(decoded)
        ]
        pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(pieces).astype(np.float32, copy=False) if pieces else np.zeros(0, np.float32)


def votes(folder: Path) -> Rows:
    """The votes of people by voice and by face as two opinions. folder: the one that contains votes/."""
    votes = load_votes(folder)
    n = len(votes.labels)
    modalities = {
        sense: Modality("probs", np.exp(votes.opinions(sense)), np.ones(n, bool), np.zeros(n, np.int64))
        for sense in ("face", "voice")
    }
    return Rows(
        VOTE_CLASSES,
        votes.labels,
        np.array([f"actor {actor}" for actor in votes.actors]),
        np.arange(n, dtype=np.int64) * NS,
        modalities,
        f"{folder.name}, as votes",
    )


def read(folder: Path, name: str) -> Rows:
    named = clips(folder, name)
    if name in KNOWN_VOICES:
        print(f"{name}: the shipped voice model was trained on these voices; figures on other voices are in its card")
    return rows_of(named, made_by=f"{folder.name}, as {name}")
