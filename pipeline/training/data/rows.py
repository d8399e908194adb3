"""Labelled rows for fusion: from the user's own recordings, or from a public data set.

Example:
    rows = load_rows(Path("~/data/mosei"), "cmu-csd")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.errors import ConfigError, nearest
from pipeline.recording.dataset import Rows, load
from pipeline.training.data import clip_sets, feature_files

OWN_FORMAT = "aligned"  # pipeline/recording/dataset.py: what export --dataset writes


def load_rows(path: Path, format: str = OWN_FORMAT) -> Rows:
    """Load labelled rows.

    Args:
        path: The folder or file, as its publisher distributes it.
        format: "aligned" (what export --dataset writes), a format of feature_files, "votes", or a set of clip_sets.

    Raises ConfigError that says what to do.
    """
    known: dict[str, Callable[[Path], Rows]] = {
        OWN_FORMAT: load,
        **feature_files.FORMATS,
        "votes": clip_sets.votes,
        **{name: partial(clip_sets.read, name=name) for name in clip_sets.NAMED},
    }
    if format not in known:
        raise ConfigError(f"--format: nothing called '{format}'.{nearest(format, known)} There are: {', '.join(known)}")
    if not path.exists():
        raise ConfigError(
            f"{path}: does not exist. Set --data to the folder or file of the data set; none of these sets comes with "
            "Sensorium, and the licence of each is its publisher's."
        )
    return known[format](path)
