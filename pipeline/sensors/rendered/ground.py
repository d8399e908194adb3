"""The rendered street's ground: a gently uneven road between kerbs, pavements and lawns; what it looks like, and where
a ray meets it.

Example:
    z_m = height(x_m)                                    # of the road; pavements lie KERB_M above it
    t = meet(origin, direction, slopes, farthest_m=80)   # how far along each ray
    ground = Paint(seed, shadows); ground.reflectance(x_m, y_m)
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.sensors.rendered.solids import Colour
from pipeline.sensors.rendered.traffic import CROSSING_LENGTH_M, CROSSINGS_X_M, STREET_M

ROAD_M = 6.0  # from the middle of the street to either kerb
KERB_M = 0.12  # high
PAVEMENT_M = 9.0  # from the middle of the street to where the gardens begin
WAVE_M, WAVES = 0.03, 4  # the road's unevenness: amplitude, and waves in one street

CELL_M = 0.05
SIDE_M = 20.0  # extent of the ground's picture to either side; beyond, its edge continues
LAYERS = ((1, 1), (4, 1), (16, 2), (64, 4))  # the same picture made coarser (along, across), for what is far away
SHADE = 0.62  # share of the light that remains in shadow

ASPHALT: Colour = (92, 90, 88)
STRIPE: Colour = (226, 230, 232)
KERB: Colour = (170, 174, 176)
SLABS: Colour = (146, 152, 156)
LAWN: Colour = (64, 128, 96)


def height(x_m: np.ndarray) -> np.ndarray:
    """z of the road; the same all over its width."""
    z: np.ndarray = np.asarray(WAVE_M * np.sin(x_m * np.float32(2 * np.pi * WAVES / STREET_M)))
    return z


def stand(x_m: np.ndarray, y_m: np.ndarray) -> np.ndarray:
    """z of what stands at a place; it rises smoothly across a kerb."""
    z: np.ndarray = height(x_m) + KERB_M * np.clip((np.abs(y_m) - ROAD_M + 0.15) / 0.3, 0, 1)
    return z


def meet(origin: np.ndarray, direction: np.ndarray, slopes: np.ndarray, *, farthest_m: float) -> np.ndarray:
    """Rays over columns and rows against the road, the kerbs and what lies behind them.

    origin: (3, columns), over the road. direction: (2, columns), its horizontal part. slopes: (rows,): a ray goes
    origin + t·(direction, slope). Returns t, (columns, rows) float32; inf where it meets nothing before t = farthest_m.
    """
    down = slopes < -1e-4
    s = slopes[down].astype(np.float32)[None, :]
    ox, oy, oz = (row.astype(np.float32)[:, None] for row in origin)
    dx, dy = (row.astype(np.float32)[:, None] for row in direction)
    with np.errstate(divide="ignore"):
        kerb_t = (np.where(dy > 0, ROAD_M, -ROAD_M) - oy) / dy  # (columns, 1)
    kerb_t = np.where(np.abs(kerb_t) < 1e6, kerb_t, np.float32(1e6))

    def fall(level: np.ndarray | float, t: np.ndarray) -> np.ndarray:
        # The road rises far less than the ray falls, so each round leaves a small part of the error.
        for _ in range(4):
            t = np.clip((height(ox + dx * t) + level - oz) / s, 0, 2 * farthest_m)
        return t

    t = fall(0.0, np.minimum(-oz / s, 2 * farthest_m))
    beyond = t > kerb_t
    t = fall(np.where(beyond, np.float32(KERB_M), np.float32(0)), t)
    t = np.where(beyond, np.maximum(t, kerb_t), t)  # over the kerb's edge, or against its face
    t_of_ray = np.full((len(ox), len(slopes)), np.inf, np.float32)
    t_of_ray[:, down] = np.where(t < farthest_m, t, np.inf)
    return t_of_ray


class Paint:
    """What the ground looks like from above, one street long. shadows: outlines on the ground, each (n, 2) in
    metres."""

    def __init__(self, seed: int, shadows: list[np.ndarray]) -> None:
        random = np.random.default_rng([seed, 3])
        columns, rows = round(STREET_M / CELL_M), round(2 * SIDE_M / CELL_M)
        colour = np.empty((rows, columns, 3), np.float32)
        reflectance = np.empty((rows, columns), np.float32)

        def band(
            from_y_m: float, to_y_m: float, bgr: Colour, value: float, x_m: tuple[float, float] = (0, STREET_M)
        ) -> None:
            i, j = (round((y + SIDE_M) / CELL_M) for y in (from_y_m, to_y_m))
            k, m = (round(x / CELL_M) for x in x_m)
            colour[i:j, k:m], reflectance[i:j, k:m] = bgr, value

        band(-SIDE_M, SIDE_M, LAWN, 0.35)
        band(-PAVEMENT_M, PAVEMENT_M, SLABS, 0.3)
        for y_m in np.arange(ROAD_M + 1.0, PAVEMENT_M, 1.0):
            for side in (-y_m, y_m):
                band(side - 0.03, side + 0.02, (128, 134, 138), 0.28)
        for x_m in np.arange(0.0, STREET_M, 1.5):
            band(-PAVEMENT_M, -ROAD_M, (128, 134, 138), 0.28, (x_m, x_m + CELL_M))
            band(ROAD_M, PAVEMENT_M, (128, 134, 138), 0.28, (x_m, x_m + CELL_M))
        band(-ROAD_M - 0.2, ROAD_M + 0.2, KERB, 0.35)
        band(-ROAD_M, ROAD_M, ASPHALT, 0.12)
        for side in (-1, 1):  # the line along the parked cars, and where wheels have polished the lanes
            band(3.7 * side - 0.05, 3.7 * side + 0.05, STRIPE, 0.7)
            for wheel in (0.85, 2.35):
                band(wheel * side - 0.15, wheel * side + 0.15, (84, 82, 80), 0.11)
        for x_m in np.arange(0.0, STREET_M, 8.0):
            band(-0.075, 0.075, STRIPE, 0.7, (x_m, x_m + 4.0))
        for middle_m in CROSSINGS_X_M:
            ends = middle_m - CROSSING_LENGTH_M / 2, middle_m + CROSSING_LENGTH_M / 2
            band(-ROAD_M, ROAD_M, ASPHALT, 0.12, (ends[0] - 1.0, ends[1] + 1.0))
            for y_m in np.arange(-ROAD_M + 0.25, ROAD_M - 0.5, 1.0):
                band(y_m, y_m + 0.5, STRIPE, 0.7, ends)
            band(-ROAD_M + 2.3, -0.1, STRIPE, 0.7, (ends[0] - 1.8, ends[0] - 1.4))  # the stop line

        grain = random.standard_normal((rows, columns), np.float32)
        coarse = np.pad(grain[::8, ::8], ((0, 0), (48, 48)), mode="wrap")  # the street's ends must fit together
        blotches = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 8)[:, 48:-48], (columns, rows))
        colour += (4.0 * cv2.blur(grain, (2, 2)) * 2 + 4.0 * blotches / blotches.std())[..., None]
        colour *= (SHADE + (1 - SHADE) * lit(shadows, rows, columns))[..., None]
        self._reflectance = reflectance
        whole = np.clip(colour, 0, 255).astype(np.uint8)
        self.layers = [
            whole
            if layer == (1, 1)
            else cv2.resize(whole, (columns // layer[0], rows // layer[1]), interpolation=cv2.INTER_AREA)
            for layer in LAYERS
        ]

    def reflectance(self, x_m: np.ndarray, y_m: np.ndarray) -> np.ndarray:
        """In [0, 1] at points of the street, (n,) float32."""
        rows, columns = self._reflectance.shape
        i = np.clip(((y_m + SIDE_M) / CELL_M).astype(np.int32), 0, rows - 1)
        j = (np.mod(x_m, STREET_M) / CELL_M).astype(np.int32) % columns
        values: np.ndarray = self._reflectance[i, j]
        return values


def lit(shadows: list[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32: 1 where the sun reaches, 0 in shadow, between at its soft edge."""
    mask = np.full((rows, columns), 255, np.uint8)
    for outline in shadows:
        for lap in (-1, 0, 1):
            at = (outline + np.array([lap * STREET_M, SIDE_M])) / CELL_M - 0.5
            cv2.fillConvexPoly(mask, np.round(at * 16).astype(np.int32), 0, cv2.LINE_AA, 4)
    soft: np.ndarray = cv2.GaussianBlur(mask, (0, 0), 1.5).astype(np.float32) / 255
    return soft


def draw(
    paint: Paint, image: np.ndarray, lens: tuple[float, float, float, float], place: tuple[float, float, float, float]
) -> int:
    """The ground into a picture taken level. lens: fx, fy, cx, cy in px. place: x, y, z and yaw of the camera.

    Returns the first row that shows ground.
    """
    (fx, fy, cx, cy), (x, y, z, yaw) = lens, place
    rows = np.arange(image.shape[0])
    slopes = -(rows - cy) / fy
    ahead = np.array([[np.cos(yaw)], [np.sin(yaw)]])
    first = int(np.searchsorted(-slopes, 1.2 / 200))  # nothing is visible beyond 200 m
    slopes = slopes[first:]
    # The depth of the ground straight ahead holds for the whole row: the road's rise beside it is far below a pixel.
    depth = -(z - height(x - z / slopes * np.cos(yaw))) / slopes
    depth = (height(x + depth * np.cos(yaw)) - z) / slopes
    raised = (height(x + depth * np.cos(yaw)) + KERB_M - z) / slopes
    aside = (-(np.arange(image.shape[1]) - cx) / fx).astype(np.float32)[None, :]

    def at(depth_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = depth_m.astype(np.float32)[:, None]
        (c,), (s,) = ahead.astype(np.float32)
        return d * (c - s * aside) + np.float32(x), d * (s + c * aside) + np.float32(y)

    (x_m, y_m), (x_up, y_up) = at(depth), at(raised)
    off_road = np.abs(y_m) > ROAD_M
    y_up = np.copysign(np.maximum(np.abs(y_up), ROAD_M + 0.1), y_m)  # nearer than the kerb is its face
    np.copyto(x_m, x_up, where=off_road)
    np.copyto(y_m, y_up, where=off_road)
    x_m -= np.float32(x // STREET_M * STREET_M)

    footprint = depth**2 / (z * fy) / CELL_M  # cells that one row of pixels covers, along the street
    limits = [int(np.searchsorted(-footprint, -0.8 * along)) for along, _ in LAYERS[1:]]
    bounds = [len(depth), *limits, 0]  # rows go from far to near: the coarsest picture serves the first ones
    for layer, (along, across) in enumerate(LAYERS):
        begin, stop = bounds[layer + 1], bounds[layer]
        if stop <= begin:
            continue
        part = slice(begin, stop)
        to_x = x_m[part] * np.float32(1 / CELL_M / along) - np.float32(0.5)
        to_y = np.clip((y_m[part] + SIDE_M) / (CELL_M * across) - 0.5, 0, paint.layers[layer].shape[0] - 1)
        cv2.remap(
            paint.layers[layer],
            to_x,
            to_y.astype(np.float32, copy=False),
            cv2.INTER_LINEAR,
            dst=image[first + begin : first + stop],
            borderMode=cv2.BORDER_WRAP,
        )
    return first
