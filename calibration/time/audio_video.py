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
from typing import NamedTuple

import numpy as np

from calibration.time.claps import Heard, Seen, match
from calibration.time.mouth_voice import Mouth, Voice, compare
from calibration.verdict import Check, Level
from pipeline.perception.expression.faces import FaceTracker

# ITU-R BT.1359-1: ms by which sound may lead (+) and lag (−) the picture before people notice, and before they mind.
NOTICED_MS = (-125.0, 45.0)
ACCEPTED_MS = (-185.0, 90.0)
LOOK_EVERY_NS = 30_000_000  # faces: 30 pictures a second are enough, 120 would cost four times as much
CLAP_TOO_FAR_MS = 50.0


class Answer(NamedTuple):
    offset_ms: float
    sigma_ms: float
    interval_ms: tuple[float, float]  # 95 %
    how: str  # "20 claps or flashes", "a mouth and its voice"
    unknown: str = ""  # the reason; the numbers are then not to be used

    def __str__(self) -> str:
        if self.unknown:
            return f"unknown: {self.unknown}"
        low, high = self.interval_ms
        return f"{self.offset_ms:+.1f} ms ({low:+.1f} to {high:+.1f}, 95 %) by {self.how}: {self.words}"

    @property
    def words(self) -> str:
        """What the number means for somebody who watches."""
        lead = f"the sound {'leads' if self.offset_ms > 0 else 'lags'} the picture by {abs(self.offset_ms):.0f} ms"
        low, high = NOTICED_MS
        if low <= self.offset_ms <= high:
            return f"{lead}; people do not notice that (ITU-R BT.1359: from {low:+.0f} to {high:+.0f} ms)"
        if ACCEPTED_MS[0] <= self.offset_ms <= ACCEPTED_MS[1]:
            return (
                f"{lead}; people notice that (ITU-R BT.1359: beyond {low:+.0f} and {high:+.0f} ms) but mostly accept it"
            )
        return f"{lead}; people mind that (ITU-R BT.1359: beyond {ACCEPTED_MS[0]:+.0f} and {ACCEPTED_MS[1]:+.0f} ms)"

    def check(self) -> Check:
        if self.unknown:
            return Check(Level.FAIL, f"the offset is unknown: {self.unknown}", HINT)
        return Check(Level.PASS, str(self))


HINT = "clap ten times in view of the camera, not in a regular beat; or let one person talk, facing it, for 20 s"


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
