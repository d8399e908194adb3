"""How far sound and picture are apart, from whatever a session offers: claps, flashes, or somebody who talks.

    meter = AudioVideo(faces)                       # faces: FaceTracker, or None for claps alone
    meter.picture(image_bgr, capture_ns); meter.sound(samples, capture_ns, duration_ns)
    answer = meter.answer()
    answer.offset_ms, answer.sigma_ms, answer.how   # what is ADDED to the microphone's times
    print(answer)                                   # in words, beside what people notice (ITU-R BT.1359)

Sign: positive means that sounds are stamped before the pictures they belong to, so the sound leads, which is also the
sign of BT.1359. What is measured is where the sound reaches the microphone: 3 ms a metre from who makes it.
"""

from __future__ import annotations

import math

import numpy as np

from calibration.time.answer import Answer
from calibration.time.claps import Heard, Seen, match
from calibration.time.mouth_voice import Mouth, Voice, compare
from pipeline import assets
from pipeline.inference.choose_backend import load
from pipeline.perception.expression.faces import FaceDetector, FaceTracker

LOOK_EVERY_NS = 30_000_000  # faces: 30 pictures a second are enough, 120 would cost four times as much
CLAP_TOO_FAR_MS = 50.0


def face_tracker() -> FaceTracker:
    """CenterFace on one thread, one face at a time."""
    return FaceTracker(FaceDetector(load(assets.path("centerface"), backend="auto", threads=1)), max_faces=4)


class AudioVideo:
    def __init__(self, faces: FaceTracker | None) -> None:
        self._faces = faces
        self._seen, self._heard, self._voice = Seen(), Heard(), Voice()
        self._mouths: dict[int, Mouth] = {}
        self._looked_ns = -(1 << 62)

    def picture(self, image: np.ndarray, capture_ns: int) -> None:
        """image: (h, w, 3) uint8 BGR."""
        self._seen.add(image, capture_ns)
        if self._faces is None or capture_ns - self._looked_ns < LOOK_EVERY_NS:
            return
        self._looked_ns = capture_ns
        for track in self._faces.update(image, capture_ns):
            self._mouths.setdefault(track.id, Mouth()).add(image, track.face.landmarks_px, capture_ns)

    def sound(self, samples: np.ndarray, capture_ns: int, duration_ns: int) -> None:
        self._heard.add(samples, capture_ns, duration_ns)
        self._voice.add(samples, capture_ns, duration_ns)

    def answer(self) -> Answer:
        """By claps or flashes where there are any: they are ten times as exact."""
        claps, mouth = self._by_claps(), self._by_mouth()
        if (
            not claps.unknown
            and not mouth.unknown
            and abs(claps.offset_ms - mouth.offset_ms) > 3 * mouth.sigma_ms + CLAP_TOO_FAR_MS
        ):
            told = f"claps say {claps.offset_ms:+.0f} ms and the mouth {mouth.offset_ms:+.0f} ms: one of the two is something else"
            return Answer(math.nan, math.nan, (math.nan, math.nan), "", told)
        if not claps.unknown:
            return claps
        if not mouth.unknown:
            return mouth
        return mouth._replace(unknown=f"{claps.unknown}; {mouth.unknown}")

    def _by_claps(self) -> Answer:
        found = match(self._seen.events(), self._heard.events())
        return Answer(
            found.offset_ms, found.sigma_ms, found.interval_ms, f"{found.events} claps or flashes", found.unknown
        )

    def _by_mouth(self) -> Answer:
        # Who is longest in view; that it is also who talks, the comparison itself has to show.
        mouth = max(self._mouths.values(), key=lambda m: len(m.times_s), default=Mouth())
        lag = compare(mouth, self._voice)
        return Answer(lag.offset_ms, lag.sigma_ms, lag.interval_ms, "a mouth and its voice", lag.unknown)
