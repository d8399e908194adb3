"""Drift monitor: detects when a lidar has moved relative to its camera, from their ordinary data.

Example:
    drift: {use: drift, inputs: [camera, lidar], rig: rig.yaml, camera: camera, lidar: lidar}

Compares a picture with its sweep every few seconds; the result ("aligned", "drifted" or "unknown", with the angles) is
a fact of the node, on the page and in the summary, and a warning in the log when it changes to "drifted".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from calibration.lidar_camera.drift import Drift as Monitor
from calibration.moments import TOGETHER_MS, picture_of, points_of
from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.node import Arrival, Sink
from pipeline.rig.rig_file import load_rig

PAIRS_PER_ESTIMATE = 5  # an estimate costs as much as some twenty pairs


class Drift(Sink):
    """Needs a lens of the camera and the pose of the lidar, both in the rig file.

    Args:
        rig: The rig file.
        camera: The picture stream; also the sensor's name in the rig file.
        lidar: The sweep stream; also the sensor's name in the rig file.
        every_s: Time between two comparisons (s, ≥ 0). Default 2: a mount does not move faster, and each one costs CPU.
    """

    consumes: ClassVar[tuple[type, ...]] = (Frame,)

    def __init__(self, *, rig: str, camera: str = "camera", lidar: str = "lidar", every_s: float = 2.0) -> None:
        if every_s < 0:
            raise ConfigError(f"every_s must be 0 or more, not {every_s}.")
        self.rig_path, self.camera, self.lidar, self.every_ns = rig, camera, lidar, round(every_s * NS)
        self.state = "unknown"

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        return ("camera", self.camera), ("lidar", self.lidar)

    def open(self) -> None:
        self._rig = load_rig(self.rig_path)
        self._lens = self._rig.camera(self.camera)
        self._monitor = Monitor(self._lens, self._rig.transform(self.camera, self.lidar))
        self._pictures: deque[Frame] = deque(maxlen=12)
        self._next_ns, self._pairs = -(1 << 62), 0
        self._report("unknown", "no picture and sweep yet")

    def consume(self, arrival: Arrival) -> None:
        frame = arrival.message
        if not isinstance(frame, Frame) or frame.encoding == "none":
            return
        if frame.stream == self.camera:
            self._pictures.append(frame)
        elif frame.stream == self.lidar and frame.capture_ns >= self._next_ns:
            self._compare(frame)

    def finish(self) -> None:
        self._estimate()

    def _compare(self, sweep: Frame) -> None:
        middle_ns = sweep.capture_ns + sweep.duration_ns // 2
        picture = min(self._pictures, key=lambda p: abs(p.capture_ns - middle_ns), default=None)
        if picture is None or abs(picture.capture_ns - middle_ns) > TOGETHER_MS * 1e6:
            return
        self._next_ns = sweep.capture_ns + self.every_ns
        image, points = picture_of(picture), points_of(sweep, self._rig, self.lidar)
        if image is None or points is None:
            return
        if image.shape[1::-1] != self._lens.size:
            size, expected = "×".join(map(str, image.shape[1::-1])), "×".join(map(str, self._lens.size))
            self._report("unknown", f"pictures are {size}, the rig's are {expected}")
            return
        self._monitor.add(image, points)
        self._pairs += 1
        if self._pairs % PAIRS_PER_ESTIMATE == 0:
            self._estimate()

    def _estimate(self) -> None:
        answer = self._monitor.answer()
        self._report(answer.state, answer.reason)

    def _report(self, state: str, reason: str) -> None:
        if state == "drifted" and self.state != "drifted":
            self.context.log.warning("%s", reason)
        self.state = state
        self.context.metrics.facts["drift"] = f"{state}: {reason}"
