"""Clips of sound events: log-mel columns of every clip, and when the live task would decide.

ESC-10 (sounds/esc10/<class>/<fold>-<recording>-<take>.ogg), and EmoDB's spoken sentences (speech/emodb, CC0) as
examples of none of its ten classes. Both become the same `Speech` as the clips of the voice network, so that both share
the augmentation (data/sound_augmentation.py). Reading takes two minutes and is cached under a hash of its sources.

Example:
    clips = load_sounds(data_folder(None), cache=Path("runs/sound"))
    LABELS[clips.labels[0]], clips.speakers[0]        # "baby_cry", "1-187207": the recording that the clip was cut from
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.perception.sound_events import DECIDE_COLUMNS, MIN_COLUMNS, OTHER, loudness_db, silent
from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES, VOICE_HOP, log_mel
from pipeline.training.data.speech import EMODB, SPEEDS, Speech, cached, sound

LABELS = (
    "baby_cry",
    "chainsaw",
    "clock_tick",
    "dog_bark",
    "fire_crackling",
    "helicopter",
    "person_sneeze",
    "rain",
    "rooster",
    "sea_waves",
    OTHER,
)
FOLDS = 4


def clips_of(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, label, recording) of every clip. Raises ConfigError when there is none."""
    clips = []
    for path in sorted((folder / "sounds" / "esc10").glob("*/*.ogg")):
        if path.parent.name in LABELS:
            clips.append((path, path.parent.name, path.stem.rpartition("-")[0]))
    if not clips:
        raise ConfigError(
            f"{folder / 'sounds/esc10'}: no clips. Put ESC-10 there, a folder a class with names such as "
            f"{', '.join(LABELS[:3])}, or point --data or SENSORIUM_DATA at the folder that has sounds/ in it."
        )
    for path in sorted((folder / "speech" / "emodb").rglob("*.*")):
        if len(path.stem) == 7 and path.stem[:2].isdigit() and path.stem[5] in EMODB:
            clips.append((path, OTHER, f"emodb-{path.stem[:2]}"))
    return clips


def fold_of(recording: str) -> int:
    """1 to 4: as published; for EmoDB by speaker."""
    return int(recording[-2:]) % FOLDS + 1 if recording.startswith("emodb") else int(recording[0])


def load_sounds(folder: Path, *, cache: Path | None = None, speeds: tuple[float, ...] = SPEEDS) -> Speech:
    """Every clip of `folder`; from `cache` if it was built from the same files with the same settings."""
    named = clips_of(folder)
    settings = f"{VOICE_BANDS} {VOICE_HOP} {speeds} {DECIDE_COLUMNS} {MIN_COLUMNS} {LABELS}"
    return cached("sounds", named, settings, cache, lambda: of_files(named, speeds))


def of_files(named: list[tuple[Path, str, str]], speeds: tuple[float, ...] = (1.0,)) -> Speech:
    """named: (file, label, recording)."""
    mels, counts, due = [], [], []
    for path, _, _ in named:
        for speed in speeds:
            mel = log_mel(sound(path, speed))
            mels.append(mel.T.astype(np.float16))
            counts.append(mel.shape[1])
            if speed == 1:
                due.append(decisions(mel))
    count = np.array(counts, np.int64).reshape(len(named), len(speeds))
    return Speech(
        np.concatenate(mels),
        np.concatenate([[0], np.cumsum(counts)[:-1]]).reshape(count.shape),
        count,
        np.array([LABELS.index(label) for _, label, _ in named], np.int64),
        np.array([recording for _, _, recording in named]),
        np.array([path.stem for path, _, _ in named]),
        np.concatenate(due),
        np.repeat(np.arange(len(named)), [len(d) for d in due]),
    )


def decisions(mel: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Number of columns of (64, t) received at each decision of the live task, with the clip as its microphone.

    For a silent clip its end, so that every clip has a decision.
    """
    ends = np.arange(MIN_COLUMNS, mel.shape[1] + 1, DECIDE_COLUMNS)
    level_db = loudness_db(mel)
    due = [end for end in ends if not silent(level_db[max(0, end - VOICE_FRAMES) : end])]
    return np.array(due or [mel.shape[1]], np.int64)
