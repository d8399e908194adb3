"""Votes of people on the same clips: by voice alone, by face alone, and with both (CREMA-D's tabulated votes).

They hold two opinions about one moment, with their dependence, and no picture or sound: decision fusion is trained and
evaluated on them. The label is the emotion that the actor was instructed to show; clips are split by actor.

Example:
    votes = load_votes(data_folder(None))
    votes.opinions("face")                       # (n, 6) float32 log-probabilities, in the order of VOTE_CLASSES
    for train, test in folds(votes.actors, count=10, seed=1): ...
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

# In the order of FACE_CLASSES, without surprise, which was not among the choices.
VOTE_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "neutral")
LETTERS = {"A": "angry", "D": "disgust", "F": "fear", "H": "happy", "S": "sad", "N": "neutral"}
INTENDED = {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "SAD": "sad", "NEU": "neutral"}
SENSES = {"1": "voice", "2": "face", "3": "both"}  # first digit of the row's number

# With ten voters, no vote does not mean probability 0. Half a vote for each label is Jeffreys' prior.
PRIOR_VOTES = 0.5


@dataclass(frozen=True)
class Votes:
    """counts: "voice", "face", "both" → (n, 6) votes. labels: (n,) index into VOTE_CLASSES. actors: (n,)."""

    counts: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]
    actors: npt.NDArray[np.int64]

    def opinions(self, sense: str) -> npt.NDArray[np.float32]:
        counted = self.counts[sense] + PRIOR_VOTES
        return np.asarray(np.log(counted / counted.sum(1, keepdims=True)), np.float32)


def load_votes(folder: Path) -> Votes:
    """Every clip that has votes by voice, by face and by both.

    Raises ConfigError when the table is missing or has another layout.
    """
    paths = sorted((folder / "votes").glob("crema_d_tabulated_votes*.csv"))
    if not paths:
        raise ConfigError(
            f"{folder / 'votes'}: no crema_d_tabulated_votes*.csv. It is processedResults/tabulatedVotes.csv of the "
            "public repository CheyneyComputerScience/CREMA-D; "
            "point --data or SENSORIUM_DATA at the folder that has votes/ in it."
        )
    counted: dict[str, dict[str, list[float]]] = {}
    with paths[0].open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                sense, votes = SENSES[row[""][0]], [float(row[letter]) for letter in _columns()]
            except (KeyError, ValueError, IndexError) as error:
                raise ConfigError(
                    f"{paths[0]}: a row is not as CREMA-D's are ({error!r}). Fetch the file again."
                ) from error
            clip = counted.setdefault(row["fileName"], {})
            clip[sense] = [a + b for a, b in zip(votes, clip.get(sense, [0.0] * 6), strict=True)]
    whole = {name: by for name, by in counted.items() if len(by) == len(SENSES)}
    names = sorted(whole)
    return Votes(
        {sense: np.array([whole[name][sense] for name in names], np.float32) for sense in SENSES.values()},
        np.array([VOTE_CLASSES.index(INTENDED[name.split("_")[2]]) for name in names], np.int64),
        np.array([int(name.split("_")[0]) for name in names], np.int64),
    )


def _columns() -> list[str]:
    letters = {label: letter for letter, label in LETTERS.items()}
    return [letters[label] for label in VOTE_CLASSES]


def folds(
    groups: npt.NDArray[np.int64], *, count: int, seed: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(training rows, test rows), `count` times; no group is on both sides, and each is tested once."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    for fold in range(count):
        inside = np.isin(groups, names[fold::count])
        yield np.flatnonzero(~inside), np.flatnonzero(inside)
