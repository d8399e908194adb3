"""The offset between sound and picture from whatever a session offers: claps, flashes, or a person who talks.

Sign: positive means that sounds are timestamped before the pictures they belong to, so the sound leads, as in ITU-R
BT.1359. The measured time is when the sound reaches the microphone: 3 ms later per metre from its source.

Example:
    meter = AudioVideo(faces)                       # faces: FaceTracker, or None for claps alone
    meter.picture(image_bgr, capture_ns); meter.sound(samples, capture_ns, duration_ns)
    answer = meter.answer()
    answer.offset_ms, answer.sigma_ms, answer.how   # offset_ms is ADDED to the microphone's times
    print(answer)                                   # with what people notice (ITU-R BT.1359)
"""

from __future__ import annotations

import math

import numpy as np

from calibration.time.answer import Answer
from calibration.time.claps import ClapDetector, FlashDetector, match
from calibration.time.mouth_voice import Mouth, Voice, compare
from pipeline import assets
from pipeline.inference.choose_backend import load
from pipeline.perception.expression.faces import FaceDetector, FaceTracker

FACES_EVERY_NS = 30_000_000  # 30 pictures a second are enough, 120 would cost four times as much
CONTRADICTION_MS = 50.0  # between claps and mouth, beyond the mouth's interval


def face_tracker() -> FaceTracker:
    """A tracker of up to four faces, with CenterFace on one thread."""
    return FaceTracker(FaceDetector(load(assets.path("centerface"), backend="auto", threads=1)), max_faces=4)


class AudioVideo:
    def __init__(self, faces: FaceTracker | None) -> None:
        self._faces = faces
        self._flashes, self._claps, self._voice = FlashDetector(), ClapDetector(), Voice()
        self._mouths: dict[int, Mouth] = {}
        self._faces_ns = -(1 << 62)

    def picture(self, image: np.ndarray, capture_ns: int) -> None:
        """image: (h, w, 3) uint8 BGR."""
        self._flashes.add(image, capture_ns)
        if self._faces is None or capture_ns - self._faces_ns < FACES_EVERY_NS:
            return
        self._faces_ns = capture_ns
        for track in self._faces.update(image, capture_ns):
            self._mouths.setdefault(track.id, Mouth()).add(image, track.face.landmarks_px, capture_ns)

    def sound(self, samples: np.ndarray, capture_ns: int, duration_ns: int) -> None:
        self._claps.add(samples, capture_ns, duration_ns)
        self._voice.add(samples, capture_ns, duration_ns)

    def answer(self) -> Answer:
        """By claps or flashes if there are any: they are ten times as accurate as mouth and voice."""
        claps, mouth = self._by_claps(), self._by_mouth()
        if (
            not claps.unknown
            and not mouth.unknown
            and abs(claps.offset_ms - mouth.offset_ms) > 3 * mouth.sigma_ms + CONTRADICTION_MS
        ):
            reason = (
                f"claps give {claps.offset_ms:+.0f} ms and mouth and voice {mouth.offset_ms:+.0f} ms: "
                "one of the two is a false match"
            )
            return Answer(math.nan, math.nan, (math.nan, math.nan), "", reason)
        if not claps.unknown:
            return claps
        if not mouth.unknown:
            return mouth
        return mouth._replace(unknown=f"{claps.unknown}; {mouth.unknown}")

    def _by_claps(self) -> Answer:
        offset = match(self._flashes.events(), self._claps.events())
        return Answer(
            offset.offset_ms, offset.sigma_ms, offset.interval_ms, f"{offset.events} claps or flashes", offset.unknown
        )

    def _by_mouth(self) -> Answer:
        # The face that is longest in view; the comparison shows whether it is also the one that talks.
        mouth = max(self._mouths.values(), key=lambda m: len(m.times_s), default=Mouth())
        lag = compare(mouth, self._voice)
        return Answer(lag.offset_ms, lag.sigma_ms, lag.interval_ms, "a mouth and its voice", lag.unknown)
