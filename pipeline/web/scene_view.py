"""Points for the page's scene view: where those of a sweep or a depth picture fall in the camera's picture, and from
above.

Owns the choice of a few thousand points and their packing; pipeline/rig/rig.py projects them. Knows no browsers. A rig
that
cannot place them is no error here: the message holds the reason, and the page shows it.

Example:
    view = SceneView(rigs.load("rig.yaml"))
    sample = view.sample(sweep, sensor="lidar")         # a small copy: the sweep's memory is borrowed
    data = view.message(sample, camera="camera", camera_sensor="camera")  # later, in another thread
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import msgspec
import numpy as np

from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.rig import Rig
from pipeline.rig.transforms import apply, rigid

MAX_SAMPLED = 30_000  # points of a sweep: about a fifth of a 360° lidar falls into a picture
MAX_SHOWN = 4_000  # points in the picture, and as many from above
TOP_CELL_M = 0.2  # from above, one point a cell is enough: otherwise the near ground would take all of them
TOP_REACH_M = 120.0
NO_RIG = "no rig: points are not drawn on the picture"
# From a camera's axes (x right, y down, z forward) to those of a base frame.
FORWARD_FROM_OPTICAL = rigid(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], np.float64), (0, 0, 0))


class PointsHead(msgspec.Struct, frozen=True):
    """Precedes the points. The body is little-endian: `top` × (x, y, z) int16 in centimetres of `frame`, then
    `on_picture` × (u, v, range) uint16: u and v in 65535ths of the picture's width and height, the range in centimetres
    from the camera to the point.
    """

    stream: str
    seq: int
    capture_ns: int  # the sweep's start
    duration_ns: int
    frame: str  # "base", or the sensor's own name where the rig does not hold its pose
    top: int
    camera: str = ""  # the picture stream they fall into; "": none
    on_picture: int = 0
    reason: str = ""  # why they are not drawn on the picture, or not at all
    kind: str = "points"


@dataclass(frozen=True, eq=False)
class PointSample:
    """Some points of one frame, in the sensor's own axes: (n, 3) float32 metres.

    Empty, with a reason, where that failed.
    """

    stream: str
    seq: int
    capture_ns: int
    duration_ns: int
    sensor: str
    optical: bool  # the axes are a camera's
    points_m: np.ndarray
    reason: str = ""


class SceneView:
    """Places points by a rig.

    Without one, they are shown from above, in their sensor's frame, and not on the picture.
    """

    def __init__(self, rig: Rig | None = None) -> None:
        self.rig = rig
        self._frames: dict[tuple[str, bool], tuple[str, np.ndarray]] = {}
        self._onto: dict[tuple[str, str], np.ndarray | str] = {}

    def sample(self, frame: Frame, *, sensor: str) -> PointSample:
        """frame: of POINTS. sensor: its name in the rig."""
        optical, reason = frame.encoding == "depth_u16_mm", ""
        if not optical:
            points_m = frame.data.take(spread(len(frame.data), MAX_SAMPLED), axis=0)[:, :3]
            x, y, z = points_m.T  # by column: a reduction over three values a row takes as long as all the rest
            points_m = points_m[np.isfinite(x + y + z) & ((x != 0) | (y != 0) | (z != 0))]  # 0, 0, 0: often no echo
        elif isinstance(lens := self._lens_of(sensor, frame.data.shape), str):
            points_m, reason = np.empty((0, 3), np.float32), lens
        else:
            points_m = points_of_depth(frame.data, lens, MAX_SAMPLED // 2)
        return PointSample(
            frame.stream, frame.seq, frame.capture_ns, frame.duration_ns, sensor, optical, points_m, reason
        )

    def message(
        self, sample: PointSample, *, camera: str = "", camera_sensor: str = "", picture_px: tuple[int, int] = (0, 0)
    ) -> bytes:
        """The binary message. camera: the picture stream, "" for none; camera_sensor: its name in the rig; picture_px:
        its pictures' width and height, (0, 0) where not known.
        """
        name, frame_from_sensor = self._frame_of(sample.sensor, sample.optical)
        some_m = sample.points_m[spread(len(sample.points_m), 4 * MAX_SHOWN)]
        top_cm = from_above(apply(frame_from_sensor, some_m), MAX_SHOWN)
        on_picture, reason = np.empty((0, 3), np.uint16), sample.reason
        if camera and not reason:
            camera_from_sensor = self._camera_from(sample.sensor, camera_sensor, picture_px)
            if isinstance(camera_from_sensor, str):
                reason = camera_from_sensor
            else:
                on_picture = self._in_picture(sample.points_m, camera_from_sensor, camera_sensor)
        head = PointsHead(
            sample.stream,
            sample.seq,
            sample.capture_ns,
            sample.duration_ns,
            name,
            len(top_cm),
            camera,
            len(on_picture),
            reason,
        )
        header = msgspec.json.encode(head)
        body = top_cm.astype("<i2").tobytes() + on_picture.astype("<u2").tobytes()
        return len(header).to_bytes(2, "big") + header + body

    def _in_picture(self, points_m: np.ndarray, camera_from_sensor: np.ndarray, camera: str) -> np.ndarray:
        """(n, 3) uint16: u, v and range, as PointsHead has them."""
        assert self.rig is not None
        lens = self.rig.camera(camera)
        pixels, _, visible = lens.project_from(camera_from_sensor, points_m)
        shown = np.flatnonzero(visible)
        shown = shown[spread(len(shown), MAX_SHOWN)]
        range_m = np.linalg.norm(apply(camera_from_sensor, points_m[shown]), axis=1)
        parts = (pixels[shown] + 0.5) / lens.size * 65535
        range_cm = np.minimum(np.rint(range_m * 100), 65535)
        return np.column_stack([np.rint(parts), range_cm]).astype(np.uint16)

    def _lens_of(self, sensor: str, shape: tuple[int, ...]) -> Intrinsics | str:
        """Of a depth camera; or why there is none."""
        if self.rig is None:
            return f"no rig: the depth of {sensor} cannot be drawn as points"
        try:
            lens = self.rig.camera(sensor)
        except ConfigError as error:
            return str(error)
        if lens.size != shape[::-1]:
            return (
                f"{sensor}: depth of {shape[1]}×{shape[0]}, but the rig's lens is of {lens.width_px}×{lens.height_px}"
            )
        return lens

    def _frame_of(self, sensor: str, optical: bool) -> tuple[str, np.ndarray]:
        """The frame that points are shown in from above, and frame_from_sensor."""
        key = (sensor, optical)
        if key not in self._frames:
            own = FORWARD_FROM_OPTICAL if optical else np.eye(4)
            try:
                known = (self.rig.base, self.rig.transform(self.rig.base, sensor)) if self.rig else (sensor, own)
            except ConfigError:
                known = (sensor, own)
            self._frames[key] = known
        return self._frames[key]

    def _camera_from(self, sensor: str, camera: str, picture_px: tuple[int, int]) -> np.ndarray | str:
        """camera_from_sensor; or why points cannot be drawn on its pictures."""
        if self.rig is None:
            return NO_RIG
        key = (sensor, camera)
        if key not in self._onto:
            try:
                self.rig.camera(camera)
                self._onto[key] = self.rig.transform(camera, sensor)
            except ConfigError as error:
                self._onto[key] = str(error)
        lens, (width_px, height_px) = self.rig.intrinsics.get(camera), picture_px
        # A scaled picture fits the lens; a cropped one does not.
        if (
            lens
            and height_px
            and abs(width_px * lens.height_px - height_px * lens.width_px) > 0.01 * width_px * lens.height_px
        ):
            return f"{camera}: pictures are {width_px}×{height_px}, the rig's {lens.width_px}×{lens.height_px}"
        return self._onto[key]


def points_of_depth(depth_mm: np.ndarray, lens: Intrinsics, max_count: int) -> np.ndarray:
    """(h, w) uint16, 0 = no reading → up to `max_count` points, (n, 3) float32 metres, in the camera's axes."""
    known = np.flatnonzero(depth_mm)
    known = known[spread(len(known), max_count)]
    v, u = np.divmod(known, depth_mm.shape[1])
    points_m = lens.unproject(np.column_stack([u, v]), depth_mm.ravel()[known] / 1000.0)
    near: np.ndarray = points_m[np.isfinite(points_m).all(1)].astype(np.float32)
    return near


def from_above(points_m: np.ndarray, max_count: int) -> np.ndarray:
    """Up to `max_count` of points (n, 3), int16 in centimetres: one for each cell of TOP_CELL_M, within TOP_REACH_M."""
    x, y, z = np.abs(points_m.T)
    points_m = points_m[(x < TOP_REACH_M) & (y < TOP_REACH_M) & (z < TOP_REACH_M)]
    across = round(2 * TOP_REACH_M / TOP_CELL_M)
    cells = ((points_m[:, :2] + TOP_REACH_M) / TOP_CELL_M).astype(np.int32)
    _, chosen = np.unique(cells[:, 0] * across + cells[:, 1], return_index=True)
    short: np.ndarray = np.rint(points_m[chosen[spread(len(chosen), max_count)]] * 100).astype(np.int16)
    return short


def spread(count: int, max_count: int) -> np.ndarray:
    """Up to `max_count` rising indices into `count`, evenly spread with a jitter.

    An even step would alias with a lidar's rows. The result depends on the two numbers alone, so that a still scene
    does not flicker.
    """
    if count <= max_count:
        return np.arange(count)
    indices: np.ndarray = ((np.arange(max_count) + _jitter(max_count)) * (count / max_count)).astype(np.int64)
    return indices


@functools.lru_cache(maxsize=8)
def _jitter(max_count: int) -> np.ndarray:
    jitter = np.random.default_rng(0).random(max_count)
    jitter.setflags(write=False)
    return jitter
