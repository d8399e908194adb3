"""Whose voice is it? The face whose mouth moves when the voice is loud.

The mouth's movement is what changes in the lower half of a face beyond what changes in the upper half, so that a
nodding head is not taken for a speaker. It is compared with the sound's level over the last two seconds. No face is
recognised: a track's id is all there is, and one that leaves is forgotten.

Example:
    speaker = Speaker()
    speaker.update({1: crop_1, 2: crop_2}, level_db=-31.0, capture_ns=frame.capture_ns)
    speaker.owner()                     # 2, or None where it is not clear
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.frame import Frame
from pipeline.preprocessing import face_tensor

REMEMBER_NS = 2 * NS
MIN_SAMPLES = 12  # half a second at 24 Hz
MOVES_WITH_IT, CLEARLY = 0.25, 0.15  # correlation that is enough, and by how much it must beat the next face's
MOUTH, EYES = (slice(30, 46), slice(10, 38)), (slice(8, 24), slice(6, 42))  # rows, columns of the 48-pixel crop


class Speaker:
    def __init__(self) -> None:
        self._crops: dict[int, npt.NDArray[np.float32]] = {}
        self._moves: dict[int, deque[tuple[int, float, float]]] = {}  # track → (capture_ns, movement, level)
        self._now_ns = -1

    def update(self, crops: Mapping[int, npt.NDArray[np.uint8]], *, level_db: float, capture_ns: int) -> None:
        """crops: track → (48, 48) grey. The same or an earlier picture changes nothing."""
        if capture_ns <= self._now_ns:
            if self._now_ns - capture_ns > REMEMBER_NS:
                self.__init__()  # type: ignore[misc]  # the stream has started again
            return
        self._now_ns = capture_ns
        standard = {id: face_tensor(crop)[0] for id, crop in crops.items()}
        for id, now in standard.items():
            if id in self._crops:
                change = np.abs(now - self._crops[id])
                movement = float(change[MOUTH].mean() - change[EYES].mean())
                self._moves.setdefault(id, deque()).append((capture_ns, movement, level_db))
        self._crops = standard
        for id, moves in list(self._moves.items()):
            while moves and capture_ns - moves[0][0] > REMEMBER_NS:
                moves.popleft()
            if not moves:
                del self._moves[id]

    def owner(self) -> int | None:
        """The track whose mouth moves with the voice; None where no mouth does, or two do."""
        fits = sorted(((_correlation(self._moves[id]), id) for id in self._crops if id in self._moves), reverse=True)
        if not fits or fits[0][0] < MOVES_WITH_IT:
            return None
        return fits[0][1] if len(fits) == 1 or fits[0][0] - fits[1][0] >= CLEARLY else None


def _correlation(moves: deque[tuple[int, float, float]]) -> float:
    if len(moves) < MIN_SAMPLES:
        return 0.0
    _, movement, level = np.array(moves).T
    if movement.std() < 1e-3 or level.std() < 1.0:
        return 0.0
    return float(np.corrcoef(movement, level)[0, 1])


def level_db(frames: tuple[Frame, ...]) -> float:
    """Of the newest 40 ms or so of sound, dB below full scale."""
    newest = np.concatenate([frame.data for frame in frames[-2:]])
    return float(10 * np.log10(np.mean(newest.astype(np.float64) ** 2) + 1e-10)) if newest.size else -100.0
