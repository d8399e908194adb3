"""Scenes with known truth for calibration's benchmarks and tests: a room, a board in it, a lidar and a camera.

The lidar has 16 beams (VLP-16: 2° between beams, 0.2° between points); every range has 2 cm of noise, every corner
0.15 px. The board, 7×5 inner corners of 100 mm with a margin of 50 mm around the pattern, is 1.4 to 4 m away.

Example:
    scene = LidarScene(seed=0)
    scene.views, scene.intrinsics, scene.camera_from_lidar, scene.outline_m
    cloud = scene.cloud(camera_from_board)             # (n, 4) as from a lidar: walls, floor, a person, the board
"""

from __future__ import annotations

import numpy as np

from calibration.lidar_camera.board_fit import BoardView
from calibration.pose import Floats, inverse, moved
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, rigid, rotation_from_vector

BEAMS_RAD = np.radians(np.arange(-15, 16, 2.0))
STEP_RAD = np.radians(0.2)
SQUARE_M, COLUMNS, ROWS, MARGIN_M = 0.1, 7, 5, 0.05
RANGE_NOISE_M, CORNER_NOISE_PX = 0.02, 0.15
# A lidar faces along its x, a camera along its z; the lidar is 8 cm above and 15 cm behind the camera.
LIDAR_AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
CAMERA = Intrinsics("radtan", 1280, 800, 900.0, 901.0, 642.0, 398.0, (-0.1, 0.03, 0.0005, -0.0003, 0.0))


class LidarScene:
    """`views` are board views as find_views() returns them, each cut out of its cloud by the known truth."""

    def __init__(
        self,
        seed: int = 0,
        *,
        views: int = 12,
        tilt_deg: float = 35.0,
        spread_m: float = 1.0,
        lens: Intrinsics = CAMERA,
    ) -> None:
        self.draw = np.random.default_rng(seed)
        self.intrinsics = lens
        self.camera_from_lidar = moved(rigid(LIDAR_AXES, (0.05, -0.08, -0.15)), self._wobble(3.0, 0.03))
        self.corners_m = np.array([[x, y, 0.0] for y in range(ROWS) for x in range(COLUMNS)]) * SQUARE_M
        edge = SQUARE_M + MARGIN_M
        self.outline_m = (-edge, -edge, (COLUMNS - 1) * SQUARE_M + edge, (ROWS - 1) * SQUARE_M + edge)
        self.boards = [self._pose(tilt_deg, spread_m) for _ in range(views)]
        self.views = [self.view(board, f"view {i + 1}") for i, board in enumerate(self.boards)]

    def start(self, deg: float = 3.0, m: float = 0.05) -> Floats:
        """The truth with a random error."""
        return moved(self.camera_from_lidar, self._wobble(deg, m))

    def view(self, camera_from_board: Floats, name: str) -> BoardView:
        """By truth: points on the board, and rays halfway between its first or last point and the next one off it."""
        rays, ranges, on_board = self._cast(camera_from_board)
        points = (rays * ranges[..., None])[on_board]
        edges = []
        for ring in range(len(rays)):
            (there,) = np.nonzero(on_board[ring])
            for last, off in ((there[0], there[0] - 1), (there[-1], there[-1] + 1)) if len(there) else ():
                if 0 <= off < rays.shape[1]:
                    middle = rays[ring, last] + rays[ring, off]
                    edges.append(middle / np.linalg.norm(middle))
        return BoardView(
            name,
            self.corners_px(camera_from_board),
            self.corners_m,
            points,
            np.array(edges).reshape(-1, 3),
            STEP_RAD / 12**0.5,
        )

    def corners_px(self, camera_from_board: Floats) -> Floats:
        px, _ = self.intrinsics.project(apply(camera_from_board, self.corners_m))
        return px + self.draw.normal(0, CORNER_NOISE_PX, px.shape)

    def picture(self, camera_from_board: Floats) -> np.ndarray:
        """(h, w, 3) uint8: the board before a grey wall, four samples a pixel, with a little noise."""
        width, height = self.intrinsics.size
        v, u = np.mgrid[0 : 2 * height, 0 : 2 * width]
        rays = self.intrinsics.rays(np.column_stack([(u.ravel() - 0.5) / 2, (v.ravel() - 0.5) / 2]))
        normal = camera_from_board[:3, 2]
        on = apply(inverse(camera_from_board), rays * ((camera_from_board[:3, 3] @ normal) / (rays @ normal))[:, None])
        left, top, right, bottom = self.outline_m
        x, y = on[:, 0], on[:, 1]
        grey = np.where((x > left) & (x < right) & (y > top) & (y < bottom), 230.0, 110.0)
        squares = (x > -SQUARE_M) & (x < COLUMNS * SQUARE_M) & (y > -SQUARE_M) & (y < ROWS * SQUARE_M)
        dark = (np.floor(x / SQUARE_M) + np.floor(y / SQUARE_M)) % 2 == 0
        grey = np.where(squares & dark, 25.0, grey).reshape(height, 2, width, 2).mean((1, 3))
        noisy = np.clip(grey + self.draw.normal(0, 2, grey.shape), 0, 255).astype(np.uint8)
        return np.repeat(noisy[:, :, None], 3, axis=2)

    def cloud(self, camera_from_board: Floats) -> Floats:
        """(n, 4) the whole turn: x, y, z, reflectance."""
        rays, ranges, _ = self._cast(camera_from_board)
        points = (rays * ranges[..., None]).reshape(-1, 3)
        return np.column_stack([points, np.full(len(points), 0.5)])

    def _cast(self, camera_from_board: Floats) -> tuple[Floats, Floats, Floats]:
        """(rings, steps, 3) rays, (rings, steps) ranges with noise, and which of them meet the board."""
        azimuth = np.arange(-np.pi, np.pi, STEP_RAD) + self.draw.uniform(0, STEP_RAD)
        up, around = np.meshgrid(BEAMS_RAD, azimuth, indexing="ij")
        rays = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            walls = np.minimum(6.0 / np.abs(rays[..., 0]), 4.5 / np.abs(rays[..., 1]))
            floor = np.where(rays[..., 2] < 0, -1.2 / rays[..., 2], np.inf)
        ranges = np.minimum(walls, floor)
        lidar_from_board = inverse(self.camera_from_lidar) @ camera_from_board
        left, top, right, bottom = self.outline_m
        centre = apply(lidar_from_board, np.array([[(left + right) / 2, (top + bottom) / 2, 0.0]]))[0]
        person = centre * (1 + 0.35 / np.linalg.norm(centre[:2]))  # the person who holds it is 35 cm behind
        ranges = np.minimum(ranges, _cylinder(rays, person[:2], 0.2))
        normal = lidar_from_board[:3, 2]
        along = (lidar_from_board[:3, 3] @ normal) / (rays @ normal)
        on = apply(inverse(lidar_from_board), (rays * along[..., None]).reshape(-1, 3)).reshape(rays.shape)
        on_board = (along > 0) & (on[..., 0] > left) & (on[..., 0] < right) & (on[..., 1] > top) & (on[..., 1] < bottom)
        ranges = np.where(on_board, along, ranges)
        return rays, ranges + self.draw.normal(0, RANGE_NOISE_M, ranges.shape), on_board

    def _pose(self, tilt_deg: float, spread_m: float) -> Floats:
        """A random pose with all corners in the picture."""
        while True:
            turn = np.radians(self.draw.uniform(-tilt_deg, tilt_deg, 3)) * (1, 1, 0.5)
            z = 2.4 + spread_m * self.draw.uniform(-1, 1.6)
            at = np.array([self.draw.uniform(-0.45, 0.45) * z, self.draw.uniform(-0.2, 0.2) * z, z])
            centre = self.corners_m.mean(0)
            pose = rigid(rotation_from_vector(turn), at - rotation_from_vector(turn) @ centre)
            px, visible = self.intrinsics.project(apply(pose, self.corners_m))
            if visible.all() and px.min() > 20:
                return pose

    def _wobble(self, deg: float, m: float) -> Floats:
        return np.concatenate([self.draw.normal(0, np.radians(deg), 3), self.draw.normal(0, m, 3)])


def _cylinder(rays: Floats, at_m: Floats, radius_m: float) -> Floats:
    """Ranges to an upright cylinder; infinite where a ray misses it."""
    flat = np.linalg.norm(rays[..., :2], axis=2)
    unit = rays[..., :2] / flat[..., None]
    along = unit @ at_m
    aside = at_m @ at_m - along**2
    with np.errstate(invalid="ignore"):
        hit = along - np.sqrt(radius_m**2 - aside)
    return np.where((aside < radius_m**2) & (along > 0), hit / flat, np.inf)
