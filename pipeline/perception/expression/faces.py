"""Where the faces are in a picture, and which is which from one picture to the next.

A whole picture is searched only when it must be: at the start, when a face was lost, and now and then for newcomers. In
between, each face is detected in a small window around its expected place: a sixth of the cost. Owns detection and
tracks; knows nothing of expressions, and identifies nobody: an id lives as long as its track and carries no looks.

Example:
    tracker = FaceTracker(FaceDetector(engine))
    for track in tracker.update(image_bgr, frame.capture_ns):     # those in this picture
        track.id, track.face.box_px, track.face.landmarks_px
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.inference.engine import Engine
from pipeline.perception.boxes import overlap

Image = npt.NDArray[np.uint8]  # (h, w, 3) BGR
Floats = npt.NDArray[np.float32]
MS = 1_000_000

# CenterFace's own names: RGB pictures in; heat map, sizes, offsets and landmarks of each cell out.
INPUT, OUTPUTS = "input.1", ("537", "538", "539", "540")
STRIDE_PX = 32  # CenterFace takes sides that are multiples of this
CELL_PX = 4  # one heat-map cell
SAME_FACE_OVERLAP = 0.4  # boxes that overlap more (intersection over union) are one face

# A window is twice the face, so that half a face's width of movement in one frame stays inside; at 96 px the face is
# 48 px, where CenterFace is as steady as on the whole picture.
WINDOW_PX = 96
WINDOW_PER_FACE = 2.0
# A window stays until the face has moved this share of it: boxes detected in a window that follows every frame jitter
# four times as much, because the network reacts to the window's own movement.
WINDOW_SLACK = 0.1
MAX_WINDOWS = 6  # above this, one search of the whole picture costs less

NEW_SCORE, KNOWN_SCORE = 0.5, 0.3  # a known place needs less evidence
SEARCH_NS = 100 * MS  # while nobody, or not everybody, is in sight
LOOK_AROUND_NS = 500 * MS  # for newcomers, while everybody is
MAX_HIDDEN_NS = 750 * MS  # a face hidden for longer comes back under a new id
VELOCITY_GAIN = 0.4


@dataclass(frozen=True)
class Face:
    """box_px: (4,) left, top, width, height in the picture, may reach over its edge. landmarks_px: (5, 2) x, y of left
    eye, right eye, nose, left and right mouth corner, as the picture shows them. score: in [0, 1]."""

    box_px: Floats
    landmarks_px: Floats
    score: float

    @property
    def centre_px(self) -> Floats:
        return self.box_px[:2] + self.box_px[2:] / np.float32(2)

    @property
    def side_px(self) -> float:
        return math.sqrt(float(self.box_px[2] * self.box_px[3]))


class Window(NamedTuple):
    """A square of the picture, in its pixels."""

    left: int
    top: int
    side: int


@dataclass
class Track:
    id: int
    face: Face  # as last detected
    last_seen_ns: int
    window: Window
    velocity_px_s: Floats = field(default_factory=lambda: np.zeros(2, np.float32))

    def expected_px(self, when_ns: int) -> Floats:
        """(2,) where the centre should be at `when_ns`."""
        return self.face.centre_px + self.velocity_px_s * np.float32((when_ns - self.last_seen_ns) / 1e9)


class Detector(Protocol):
    def whole(self, image: Image) -> list[Face]: ...

    def windows(self, image: Image, windows: Sequence[Window]) -> list[Face]: ...


class FaceDetector:
    """CenterFace (Xu et al. 2019).

    Args:
        engine: CenterFace, with free height and width.
        search_px: Longest side at which a whole picture is searched (pixels). Faces smaller than about a thirtieth of
            it are missed.
    """

    def __init__(self, engine: Engine, *, search_px: int = 320) -> None:
        self._engine = engine
        self._search_px = search_px

    def whole(self, image: Image) -> list[Face]:
        height, width = image.shape[:2]
        scale = self._search_px / max(height, width)
        # Bilinear sampling skips pixels when it shrinks, and what it skips flickers.
        sampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=sampling)
        below, right = -small.shape[0] % STRIDE_PX, -small.shape[1] % STRIDE_PX
        padded = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT)
        (faces,) = self._run([padded], NEW_SCORE)
        return distinct([_moved(face, 0, 0, 1 / scale) for face in faces])

    def windows(self, image: Image, windows: Sequence[Window]) -> list[Face]:
        """The faces that lie whole in one of the windows; all windows in one engine call."""
        if not windows:
            return []
        detected = []
        for window, faces in zip(windows, self._run([_cut(image, w) for w in windows], KNOWN_SCORE), strict=True):
            scale = window.side / WINDOW_PX
            detected += [_moved(face, window.left, window.top, scale) for face in faces if _inside(face)]
        return distinct(detected)

    def _run(self, images: Sequence[Image], min_score: float) -> list[list[Face]]:
        """images: all of one size. Boxes in their pixels."""
        batch = cv2.dnn.blobFromImages(images, swapRB=True)  # (n, 3, h, w) float32 RGB, 0 to 255
        maps = self._engine.run({INPUT: batch})
        heat, sizes, offsets, points = (maps[name] for name in OUTPUTS)
        return [_decode(*each, min_score) for each in zip(heat[:, 0], sizes, offsets, points, strict=True)]


def detector_shapes(search_px: int) -> list[dict[str, tuple[int, ...]]]:
    """What the detector will run: windows first, then whole pictures of the usual cameras, landscape and portrait."""

    def up(px: float) -> int:
        return math.ceil(px / STRIDE_PX) * STRIDE_PX

    whole = [(up(search_px * ratio), up(search_px)) for ratio in (9 / 16, 3 / 4, 1)]
    sizes = [(WINDOW_PX, WINDOW_PX), *whole, *((width, height) for height, width in whole[:2])]
    return [{INPUT: (1, 3, height, width)} for height, width in dict.fromkeys(sizes)]


def distinct(faces: Sequence[Face]) -> list[Face]:
    """Of several boxes on one face, the surest; surest first."""
    selected: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(overlap(face.box_px, other.box_px) < SAME_FACE_OVERLAP for other in selected):
            selected.append(face)
    return selected


class FaceTracker:
    """Stable ids. State advances by the pictures' capture_ns alone, so the same pictures give the same tracks.

    Args:
        detector: Detects the faces of a picture, or of windows of it.
        max_faces: How many are tracked, the largest first (≥ 1).
    """

    def __init__(self, detector: Detector, *, max_faces: int = 8) -> None:
        self._detector = detector
        self._max_faces = max_faces
        self._last_id = 0  # ids are never used again
        self._reset()

    def _reset(self) -> None:
        self._tracks: list[Track] = []
        self._now_ns = self._searched_ns = -(1 << 62)
        self._shape: tuple[int, ...] = ()

    def update(self, image: Image, capture_ns: int) -> list[Track]:
        """The tracks detected in this picture, oldest first. An earlier picture than the last, or another size: start
        over."""
        if capture_ns < self._now_ns or image.shape != self._shape:
            self._reset()
            self._shape = image.shape
        if capture_ns > self._now_ns:
            self._advance(image, capture_ns)
        return [track for track in self._tracks if track.last_seen_ns == capture_ns]

    def known_ids(self) -> set[int]:
        """Of the tracks in view and of those that may still come back."""
        return {track.id for track in self._tracks}

    def _advance(self, image: Image, now_ns: int) -> None:
        self._tracks = [track for track in self._tracks if now_ns - track.last_seen_ns <= MAX_HIDDEN_NS]
        in_sight = [track for track in self._tracks if track.last_seen_ns == self._now_ns]
        everybody = bool(in_sight) and len(in_sight) == len(self._tracks)
        crowd = len(in_sight) > MAX_WINDOWS
        self._now_ns = now_ns
        if not crowd:
            for track in in_sight:
                track.window = _steady_window(track.window, track.expected_px(now_ns), track.face.side_px)
            self._match(self._detector.windows(image, [track.window for track in in_sight]), now_ns)
        lost = any(track.last_seen_ns < now_ns for track in in_sight)
        pause_ns = LOOK_AROUND_NS if everybody else SEARCH_NS
        if crowd or lost or now_ns - self._searched_ns >= pause_ns:
            self._searched_ns = now_ns
            newcomers = self._match(self._detector.whole(image), now_ns)
            for face in sorted(newcomers, key=lambda face: -face.side_px):
                self._begin(face, now_ns)

    def _match(self, faces: Sequence[Face], now_ns: int) -> list[Face]:
        """Assign faces to the tracks not yet detected now, best fit first. Returns the faces without a track."""
        undetected = [track for track in self._tracks if track.last_seen_ns < now_ns]
        detected = [track for track in self._tracks if track.last_seen_ns == now_ns]
        free = [f for f in faces if all(overlap(f.box_px, t.face.box_px) < SAME_FACE_OVERLAP for t in detected)]
        fits = sorted((_misfit(t, f, now_ns), i, j) for i, t in enumerate(undetected) for j, f in enumerate(free))
        taken: set[int] = set()
        for misfit, i, j in fits:
            track = undetected[i]
            if math.isfinite(misfit) and track.last_seen_ns < now_ns and j not in taken:
                taken.add(j)
                _follow(track, free[j], now_ns)
        return [face for j, face in enumerate(free) if j not in taken]

    def _begin(self, face: Face, now_ns: int) -> None:
        if face.score >= NEW_SCORE and len(self._tracks) < self._max_faces:
            self._last_id += 1
            window = _window(face.centre_px, face.side_px)
            self._tracks.append(Track(self._last_id, face, now_ns, window))


def _misfit(track: Track, face: Face, now_ns: int) -> float:
    """How far a face is from where the track should be now, in face sides; infinite for another person."""
    side_px = (track.face.side_px + face.side_px) / 2
    ratio = abs(math.log(face.side_px / track.face.side_px))
    away = float(np.linalg.norm(face.centre_px - track.expected_px(now_ns))) / side_px
    reach = (
        0.6 + 0.8 * (now_ns - track.last_seen_ns) / MAX_HIDDEN_NS
    )  # the longer hidden, the farther it may have moved
    return away + ratio if away <= reach and ratio <= math.log(1.8) else math.inf


def _follow(track: Track, face: Face, now_ns: int) -> None:
    measured = (face.centre_px - track.face.centre_px) / np.float32((now_ns - track.last_seen_ns) / 1e9)
    track.velocity_px_s = track.velocity_px_s + np.float32(VELOCITY_GAIN) * (measured - track.velocity_px_s)
    track.face, track.last_seen_ns = face, now_ns


def _window(centre_px: Floats, face_px: float) -> Window:
    side = max(8, round(WINDOW_PER_FACE * face_px))
    return Window(round(float(centre_px[0]) - side / 2), round(float(centre_px[1]) - side / 2), side)


def _steady_window(window: Window, centre_px: Floats, face_px: float) -> Window:
    """The same window while the face is well inside it, else one around the face."""
    centred = _window(centre_px, face_px)
    moved = max(abs(w + centred.side / 2 - h - window.side / 2) for w, h in zip(centred[:2], window[:2], strict=True))
    grown = abs(centred.side / window.side - 1)
    return window if moved <= WINDOW_SLACK * window.side and grown <= 1.5 * WINDOW_SLACK else centred


def _cut(image: Image, window: Window) -> Image:
    """The window's part of the picture at WINDOW_PX; black where it reaches over the edge."""
    # One bilinear sample a pixel would skip too many; twice as fine, then averaged, is near enough to a true average
    # (0.7 grey levels) and costs a seventh of it.
    fine = 2 if window.side > 1.5 * WINDOW_PX else 1
    step = window.side / (WINDOW_PX * fine)
    picture_from_cut = np.array([[step, 0, window.left + step / 2 - 0.5], [0, step, window.top + step / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(image, picture_from_cut, (WINDOW_PX * fine, WINDOW_PX * fine), flags=flags)
    return np.asarray(cv2.resize(cut, (WINDOW_PX, WINDOW_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _inside(face: Face) -> bool:
    """In a window: at least the centre is well inside, so that this is no neighbour cut in half."""
    return bool(np.all(np.abs(face.centre_px / WINDOW_PX - 0.5) < 0.4))


def _moved(face: Face, left: float, top: float, scale: float) -> Face:
    corner = np.array([left, top], np.float32)
    box = np.concatenate([face.box_px[:2] * scale + corner, face.box_px[2:] * scale]).astype(np.float32)
    return Face(box, (face.landmarks_px * scale + corner).astype(np.float32), face.score)


def _decode(heat: Floats, sizes: Floats, offsets: Floats, points: Floats, min_score: float) -> list[Face]:
    """heat: (rows, columns), sizes and offsets (2, …) as y, x, points (10, …) as y, x per landmark, in face sizes."""
    peak = (heat >= min_score) & (heat == cv2.dilate(heat, np.ones((3, 3), np.uint8)))
    faces = []
    for row, column in zip(*np.nonzero(peak), strict=True):
        height, width = np.exp(sizes[:, row, column]) * CELL_PX
        top = (row + offsets[0, row, column] + 0.5) * CELL_PX - height / 2
        left = (column + offsets[1, row, column] + 0.5) * CELL_PX - width / 2
        spots = points[:, row, column].reshape(5, 2)[:, ::-1] * [width, height] + [left, top]
        box = np.array([left, top, width, height], np.float32)
        faces.append(Face(box, spots.astype(np.float32), float(heat[row, column])))
    return faces
