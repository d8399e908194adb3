"""Boxes in a picture → tracked objects with ranges, from a detector or another program's boxes, and points.

Without points, or without a view, the boxes come without ranges. Places are in the base frame: x forward, y left, z up.

Example:
    finder = ObjectFinder(detector)
    finder.find(image_bgr, points_base, capture_ns, CameraView.of(rig, "camera"))[0].range_m
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Subject
from pipeline.perception.objects.detections import Detection
from pipeline.perception.objects.detector import Detector
from pipeline.perception.objects.object_tracks import ObjectTracker
from pipeline.perception.objects.ranging import Ranged, range_boxes
from pipeline.perception.obstacles.clouds import Clouds
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CameraView:
    """A camera's lens and pose. camera_from_base: (4, 4) float64, metres."""

    intrinsics: Intrinsics
    camera_from_base: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rig: Rig, camera: str) -> CameraView:
        """Raises ConfigError where the rig has no such camera, or no pose leads from it to the base frame."""
        return cls(rig.camera(camera), rig.transform(camera, rig.base))

    @cached_property
    def camera_m(self) -> tuple[float, float, float]:
        """x, y, z of the camera in the base frame."""
        x, y, z = -self.camera_from_base[:3, :3].T @ self.camera_from_base[:3, 3]
        return float(x), float(y), float(z)


class ObjectFinder:
    """Tracks objects from picture to picture. ranged: of the latest boxes, in their order, with the reason where there
    is no range."""

    def __init__(self, detector: Detector | None = None) -> None:
        self._detector, self._tracker = detector, ObjectTracker()
        self.ranged: list[Ranged] = []
        # The first call initialises OpenCV and numpy, which takes 0.1 s: no picture has to wait for it.
        warm_up = np.random.default_rng(0).uniform(1, 9, (100, 3))
        range_boxes(np.array([[0, 0, 9, 9]]), warm_up[:, :2], warm_up)

    def find(
        self,
        image: Image | None,
        points_base: npt.NDArray[Any] | None,
        capture_ns: int,
        view: CameraView | None,
        *,
        boxes: Sequence[Detection] | None = None,
        points_ns: int | None = None,
        ground: npt.NDArray[np.bool_] | None = None,
    ) -> list[Subject]:
        """image: (h, w, 3) BGR; unused where `boxes` come from elsewhere, in the pixels of `view`. points_base: (n, 3)
        metres in the base frame; None, or no view: no ranges. capture_ns: of the picture; points_ns: of the points,
        None: the same. ground: (n,) which points are ground; None: determined by a plane. Returns one subject per box,
        in the order of the boxes or surest first; without boxes and detector none.
        """
        if boxes is None:
            boxes = self._detector.find(image) if self._detector is not None and image is not None else []
        self.ranged = self._range(boxes, points_base, view, ground)
        tracks = self._tracker.update(boxes, self.ranged, capture_ns, capture_ns if points_ns is None else points_ns)
        return [
            Subject(
                t.id,
                box.box_px,
                (),
                box.score,
                label=box.label,
                range_m=t.ranged.range_m,
                position_m=t.ranged.position_m or (),
                closing_mps=t.closing_mps,
            )
            for t, box in zip(tracks, boxes, strict=True)
        ]

    def _range(
        self,
        boxes: Sequence[Detection],
        points_base: npt.NDArray[Any] | None,
        view: CameraView | None,
        ground: npt.NDArray[np.bool_] | None,
    ) -> list[Ranged]:
        if points_base is None or view is None:
            return [Ranged(reason="no points" if points_base is None else "no rig")] * len(boxes)
        if not boxes:
            return []
        pixels, _, visible = view.intrinsics.project_from(view.camera_from_base, points_base)
        at = np.flatnonzero(visible)
        return range_boxes(
            np.array([box.box_px for box in boxes]),
            pixels[at],
            points_base[at],
            camera_m=view.camera_m,
            ground=None if ground is None else ground[at],
        )


class CameraViews:
    """Streams of pictures → the views of their cameras, from the rig."""

    def __init__(self, clouds: Clouds, log: logging.Logger) -> None:
        self._clouds, self._log = clouds, log
        self._known: dict[str, CameraView] = {}
        self._logged: set[str] = set()

    def of(self, frame: Frame, image: Image | None) -> CameraView | None:
        """frame: the picture, or boxes in its pixels. None: the rig lacks the camera, or has it at another size, which
        is logged once."""
        name, rig = self._clouds.sensor(frame.stream), self._clouds.rig
        try:
            view = self._known[name] = self._known.get(name) or CameraView.of(rig, name)
        except ConfigError as error:
            self._warn(f"boxes have no ranges: {error}")
            return None
        if image is not None and image.shape[1::-1] != view.intrinsics.size:
            actual, known = ("×".join(map(str, size)) for size in (image.shape[1::-1], view.intrinsics.size))
            self._warn(
                f"{rig.where}: intrinsics.{name} are of pictures of {known}, found {actual}: no ranges. "
                "Calibrate at that size"
            )
            return None
        return view

    def _warn(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            self._log.warning("%s", text)
