"""Auto-time: measures the time offset between sound and picture while a graph runs; `run CONFIG --auto-time` adds it.

Example:
    auto-time: {use: auto_time, inputs: [{from: camera, queue: 8}, microphone]}

Clap a few times in view, or let one person talk: at the end it prints the correction. It stores no picture and no
sound, only brightness, motion, mouth opening and loudness over time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from calibration.moments import picture_of
from calibration.time.answer import HINT, Answer
from calibration.time.audio_video import AudioVideo, face_tracker
from pipeline.clock import NS
from pipeline.errors import AssetError
from pipeline.frame import Frame
from pipeline.node import Arrival, Sink

ANSWER_EVERY_NS = 15 * NS
MAX_NS = 600 * NS  # of a session: more data does not improve the estimate


class AutoTime(Sink):
    """Prints the offset, and the option that corrects it, when the run ends.

    Args:
        camera: The picture stream.
        microphone: The sound stream.
        in_use_ms: The offset that the microphone's timestamps already contain (ms). Default 0: none.
        faces: false: only claps and flashes are used, at a tenth of the cost. Default true: talking mouths too.
    """

    consumes: ClassVar[tuple[type, ...]] = (Frame,)

    def __init__(
        self, *, camera: str = "camera", microphone: str = "microphone", in_use_ms: float = 0.0, faces: bool = True
    ) -> None:
        self.camera, self.microphone, self.in_use_ms, self.faces = camera, microphone, float(in_use_ms), faces
        self.answer: Answer | None = None

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        return ("camera", self.camera), ("microphone", self.microphone)

    def open(self) -> None:
        tracker = None
        if self.faces:
            try:
                tracker = face_tracker()
            except AssetError as error:
                self.context.log.warning("claps only, no mouths: %s", error)
        self._meter = AudioVideo(tracker)
        self._first_ns, self._next_ns = -1, 0
        self._changed = False

    def consume(self, arrival: Arrival) -> None:
        frame = arrival.message
        if not isinstance(frame, Frame) or frame.encoding == "none":
            return
        if self._first_ns < 0:
            self._first_ns, self._next_ns = frame.capture_ns, frame.capture_ns + ANSWER_EVERY_NS
        if frame.capture_ns - self._first_ns > MAX_NS:
            return
        self._changed = True
        if frame.stream == self.microphone:
            self._meter.sound(frame.data, frame.capture_ns, frame.duration_ns)
        elif frame.stream == self.camera and (image := picture_of(frame)) is not None:
            self._meter.picture(image, frame.capture_ns)
        if frame.capture_ns >= self._next_ns:
            self._next_ns = frame.capture_ns + ANSWER_EVERY_NS
            self._measure()

    def finish(self) -> None:
        if self._changed or self.answer is None:
            self._measure()
        assert self.answer is not None
        print(f"  {self.microphone} against {self.camera}: {self.answer}", flush=True)
        if self.answer.unknown:
            print(f"  To measure it: {HINT}.", flush=True)
            return
        apply_ms = self.in_use_ms + self.answer.offset_ms
        print(f"  To correct it: --set nodes.{self.microphone}.offset_ms={apply_ms:.1f}", flush=True)

    def _measure(self) -> None:
        self._changed = False
        self.answer = self._meter.answer()
        self.context.metrics.facts["offset"] = str(self.answer)
