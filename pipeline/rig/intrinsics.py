"""A camera's intrinsics: points in front of it ↔ pixels, by its distortion model.

Owns the three models and their limits. Knows neither the camera's pose (pipeline/rig/rig.py) nor how the numbers were
estimated (calibration/). Pixels count from the centre of the first one: a picture spans −0.5 to width − 0.5.

Example:
    intrinsics = Intrinsics("radtan", 640, 480, 535.4, 535.7, 342.6, 234.6, (-0.28, 0.07, 0.001, 0.0, 0.1))
    pixels, visible = intrinsics.project(points_m)          # (n, 3) in the camera's frame: x right, y down, z forward
    points_m = intrinsics.unproject(pixels, depth_m)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

# Coefficients of each model, in OpenCV's order.
MODELS = {
    "radtan": ("k1", "k2", "p1", "p2", "k3"),  # Brown–Conrady; ROS calls it plumb_bob
    "rational": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),  # ROS: rational_polynomial
    "fisheye": ("k1", "k2", "k3", "k4"),  # Kannala–Brandt; ROS and Kalibr: equidistant
}
LENS = ("fx_px", "fy_px", "cx_px", "cy_px")
CHUNK = 8192  # points at a time: their intermediate results stay in the cache, which halves the time
NEWTON_STEPS = 20
NEWTON_TOLERANCE = 1e-10  # in normalised coordinates: far below a thousandth of a pixel


@dataclass(frozen=True)
class Intrinsics:
    """distortion: as MODELS[model] names them; () is none.

    covariance: of (fx, fy, cx, cy, *distortion), (n, n) float64, or None where it is not known. rms_px: of the
    reprojection it was estimated with. Raises ValueError for numbers that are no camera.
    """

    model: str
    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion: tuple[float, ...] = ()
    covariance: np.ndarray | None = field(default=None, compare=False)
    rms_px: float | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"there is no distortion model '{self.model}'. Known: {', '.join(MODELS)}")
        names = MODELS[self.model]
        if self.distortion and len(self.distortion) != len(names):
            raise ValueError(
                f"{len(self.distortion)} coefficients, but {self.model} has {len(names)}: {', '.join(names)}"
            )
        object.__setattr__(self, "distortion", tuple(map(float, self.distortion)) or (0.0,) * len(names))
        if not np.isfinite(self.parameters).all():
            raise ValueError("a parameter is not a finite number")
        if self.fx_px <= 0 or self.fy_px <= 0:
            raise ValueError(f"focal lengths {self.fx_px:g} and {self.fy_px:g} px, expected more than 0")
        if self.width_px <= 0 or self.height_px <= 0:
            raise ValueError(f"a picture of {self.width_px}×{self.height_px}, expected more than 0")
        if self.covariance is not None and self.covariance.shape != (len(self.parameters),) * 2:
            raise ValueError(f"covariance of shape {self.covariance.shape} for {len(self.parameters)} parameters")

    @cached_property
    def parameters(self) -> np.ndarray:
        """(fx, fy, cx, cy, *distortion), float64."""
        return np.array([self.fx_px, self.fy_px, self.cx_px, self.cy_px, *self.distortion])

    @property
    def names(self) -> tuple[str, ...]:
        return LENS + MODELS[self.model]

    @property
    def sigma(self) -> np.ndarray | None:
        """Standard deviation of each parameter, or None."""
        return None if self.covariance is None else np.sqrt(np.maximum(np.diag(self.covariance), 0))

    @property
    def matrix(self) -> np.ndarray:
        """K, (3, 3) float64."""
        return np.array([[self.fx_px, 0, self.cx_px], [0, self.fy_px, self.cy_px], [0, 0, 1]])

    @property
    def size(self) -> tuple[int, int]:
        return self.width_px, self.height_px

    def project(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the camera's frame → pixels.

        points_m: (n, 3). Returns (n, 2) float64, NaN where there is no pixel at all, and (n,) bool: in front of the
        camera, within the angles at which the model is valid (beyond them a polynomial folds back and would project a
        point beside the camera into the picture), and inside the picture.
        """
        pixels, _, visible = self._project(np.eye(4), points_m)
        return pixels, visible

    def project_from(
        self, camera_from_source: np.ndarray, points_m: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As project(), of points of another frame; also their depth along the optical axis, (n,) metres."""
        return self._project(camera_from_source, points_m)

    def _project(
        self, camera_from_source: np.ndarray, points_m: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points = np.asarray(points_m).reshape(-1, 3)
        n = len(points)
        # One block of results, and scratch that every chunk reuses: fresh memory costs more than the arithmetic.
        result, visible = np.empty((3, n)), np.empty(n, bool)
        chunk, scratch = np.empty((CHUNK, 3)), np.empty((3, CHUNK))
        # A slice of a (4, 4), or float32 beside float64, would keep numpy from calling BLAS, which is ten times as
        # fast.
        rotation = np.ascontiguousarray(camera_from_source[:3, :3], np.float64)
        translation = np.asarray(camera_from_source[:3, 3:], np.float64)
        with np.errstate(all="ignore"):  # points in the camera's own plane, and infinite ones, end as NaN
            for start in range(0, n, CHUNK):
                part, count = slice(start, start + CHUNK), min(CHUNK, n - start)
                chunk[:count] = points[part]
                x, y, z = rows = np.matmul(rotation, chunk[:count].T, out=scratch[:, :count])
                rows += translation
                result[2, part] = z
                if self.model != "fisheye" and not (z > 0).any():  # in a 360° sweep half of the chunks lie behind
                    result[:2, part], visible[part] = np.nan, False
                    continue
                u, v = self._fisheye_pixels(x, y, z) if self.model == "fisheye" else self._polynomial_pixels(x, y, z)
                result[0, part], result[1, part] = u, v
                inside = u >= -0.5  # NaN is not
                inside &= u < self.width_px - 0.5
                inside &= v >= -0.5
                inside &= v < self.height_px - 0.5
                visible[part] = inside
        return result[:2].T, result[2], visible

    def _polynomial_pixels(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of points, all three of which it overwrites. NaN behind the camera and beyond the lens's limit."""
        # putmask: assigning by a mask takes four times as long where true and false change often.
        np.putmask(z, z <= 0, np.nan)
        np.divide(1.0, z, out=z)
        x *= z
        y *= z
        u, v = x, y
        if any(self.distortion):
            u, v, valid = self._polynomial(x, y)
            if self._limit < np.inf:
                beyond = ~valid
                np.putmask(u, beyond, np.nan)
                np.putmask(v, beyond, np.nan)
        return self._to_pixels(u, v)

    def _fisheye_pixels(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, v, valid = self._fisheye(x, y, z)
        beyond = ~valid
        np.putmask(u, beyond, np.nan)
        np.putmask(v, beyond, np.nan)
        return self._to_pixels(u, v)

    def _to_pixels(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In place."""
        u *= self.fx_px
        u += self.cx_px
        v *= self.fy_px
        v += self.cy_px
        return u, v

    def _polynomial(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """radtan and rational: undistorted → distorted, both normalised (z = 1)."""
        k1, k2, p1, p2, k3 = self.distortion[:5]
        r2, term = x * x, y * y  # `term` is reused below: allocating an array costs as much as filling it
        r2 += term
        valid = r2 < self._limit**2
        radial = r2 * k3
        radial += k2
        radial *= r2
        radial += k1
        radial *= r2
        radial += 1.0
        if self.model == "rational":
            k4, k5, k6 = self.distortion[5:]
            radial /= 1.0 + r2 * (k4 + r2 * (k5 + r2 * k6))
        if p1 == 0.0 == p2:
            return x * radial, y * radial, valid
        # u = x·(radial + 2p1·y + 2p2·x) + p2·r², v likewise: the two share their bracket.
        radial += np.multiply(y, 2.0 * p1, out=term)
        radial += np.multiply(x, 2.0 * p2, out=term)
        u = x * radial
        u += np.multiply(r2, p2, out=term)
        v = y * radial
        v += np.multiply(r2, p1, out=term)
        return u, v, valid

    def _fisheye(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k1, k2, k3, k4 = self.distortion
        r, t2 = x * x, y * y
        r += t2
        np.sqrt(r, out=r)
        theta = np.divide(z, r)
        np.arctan(theta, out=theta)  # half the time of arctan2, and right beyond 90° too, where such lenses still see
        np.subtract(np.pi / 2, theta, out=theta)
        valid = theta < self._limit
        np.multiply(theta, theta, out=t2)
        scale = t2 * k4
        for k in (k3, k2, k1):
            scale += k
            scale *= t2
        scale += 1.0
        scale *= theta
        scale /= np.maximum(r, 1e-300, out=r)  # on the axis x and y are 0, whatever they are scaled by
        return x * scale, y * scale, valid

    @cached_property
    def _limit(self) -> float:
        """The radius (fisheye: angle) up to which the distorted radius still grows. Infinite if it always does."""
        fisheye = self.model == "fisheye"
        at = np.linspace(0, np.pi, 4001) if fisheye else np.geomspace(1e-3, 1e3, 20001)
        falling = np.flatnonzero(self._radial(at)[1] <= 0)
        return float(at[falling[0]]) if len(falling) else (np.pi if fisheye else np.inf)

    def _radial(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distorted radius, its derivative) of an undistorted radius, or of an angle for fisheye."""
        r2 = r * r
        if self.model == "fisheye":
            k1, k2, k3, k4 = self.distortion
            return (
                r * (1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))),
                1 + r2 * (3 * k1 + r2 * (5 * k2 + r2 * (7 * k3 + r2 * 9 * k4))),
            )
        k1, k2, _, _, k3, k4, k5, k6 = (*self.distortion, 0.0, 0.0, 0.0)[:8]
        top, bottom = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        d_top, d_bottom = 2 * r * (k1 + r2 * (2 * k2 + 3 * r2 * k3)), 2 * r * (k4 + r2 * (2 * k5 + 3 * r2 * k6))
        return r * top / bottom, top / bottom + r * (d_top * bottom - top * d_bottom) / bottom**2

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels → directions, (n, 3) float64, of depth 1 along the optical axis (fisheye: of length 1, since it sees
        past 90°). NaN for a pixel that no direction reaches.
        """
        pixels = np.asarray(pixels, np.float64).reshape(-1, 2)
        rays = np.empty((len(pixels), 3))
        with np.errstate(all="ignore"):
            for start in range(0, len(pixels), CHUNK):
                part = slice(start, start + CHUNK)
                u, v = (pixels[part, 0] - self.cx_px) / self.fx_px, (pixels[part, 1] - self.cy_px) / self.fy_px
                if self.model == "fisheye":
                    reached = np.hypot(u, v)
                    theta = self._invert_radial(reached)
                    scale = np.where(reached > 0, np.sin(theta) / np.maximum(reached, 1e-300), 1.0)
                    rays[part] = np.column_stack([u * scale, v * scale, np.cos(theta)])
                else:
                    x, y = self._undistort(u, v)
                    rays[part] = np.column_stack([x, y, np.where(np.isfinite(x), 1.0, np.nan)])
        return rays

    def unproject(self, pixels: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """Pixels and their depth along the optical axis → points of the camera's frame, (n, 3) float64 metres."""
        rays = self.rays(pixels)
        with np.errstate(all="ignore"):
            rays *= (np.asarray(depth_m, np.float64).reshape(-1) / rays[:, 2])[:, None]
        return rays

    def points(self, depth_m: np.ndarray) -> np.ndarray:
        """A depth picture (h, w) in metres → points (h·w, 3); NaN where the depth is 0 or NaN, which means none."""
        if depth_m.shape != (self.height_px, self.width_px):
            shape = " × ".join(map(str, depth_m.shape[::-1]))
            raise ValueError(
                f"a depth picture of {shape}, but these intrinsics are of {self.width_px} × {self.height_px}"
            )
        depth = np.where(depth_m > 0, depth_m, np.nan).astype(np.float64)
        points: np.ndarray = depth.reshape(-1, 1) * self._grid
        return points

    @cached_property
    def _grid(self) -> np.ndarray:
        """The ray of depth 1 of every pixel, row by row: computed once per camera."""
        v, u = np.mgrid[: self.height_px, : self.width_px]
        return self.unproject(np.column_stack([u.ravel(), v.ravel()]), np.ones(u.size))

    def _invert_radial(self, reached: np.ndarray) -> np.ndarray:
        at = np.minimum(reached, self._limit * 0.99)
        for _ in range(NEWTON_STEPS):
            value, slope = self._radial(at)
            at = np.clip(at - (value - reached) / slope, 0.0, self._limit)
            if not np.max(np.abs(value - reached), initial=0.0) > NEWTON_TOLERANCE:
                break
        return np.where(np.abs(self._radial(at)[0] - reached) < 1e-8, at, np.nan)

    def _undistort(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Newton with the full 2 × 2 derivative: the usual fixed point diverges near the edge of wide lenses."""
        p1, p2 = self.distortion[2:4]
        # Start on the radius that the radial part alone gives.
        reached = np.hypot(u, v)
        scale = self._invert_radial(reached) / np.where(reached > 0, reached, 1.0)
        scale = np.where(reached > 0, scale, 1.0)
        # Where the radial part alone never gets that far, tangential terms cannot be what is missing: NaN stays NaN.
        x, y = u * scale, v * scale
        for _ in range(NEWTON_STEPS):
            got_u, got_v, _ = self._polynomial(x, y)
            r = np.hypot(x, y)
            radius, slope = self._radial(np.maximum(r, 1e-12))
            radial, d_r2 = (
                radius / np.maximum(r, 1e-12),
                np.where(r > 1e-9, (slope - radius / np.maximum(r, 1e-12)) / (2 * r**2), 0),
            )
            d_r2 = np.nan_to_num(d_r2)  # derivative of the radial factor by r²
            xx = radial + 2 * x * x * d_r2 + 2 * p1 * y + 6 * p2 * x
            xy = 2 * x * y * d_r2 + 2 * p1 * x + 2 * p2 * y
            yy = radial + 2 * y * y * d_r2 + 6 * p1 * y + 2 * p2 * x
            du, dv, determinant = u - got_u, v - got_v, xx * yy - xy * xy
            x, y = x + (yy * du - xy * dv) / determinant, y + (xx * dv - xy * du) / determinant
            if not np.nanmax(np.abs(du) + np.abs(dv), initial=0.0) > NEWTON_TOLERANCE:
                break
        got_u, got_v, valid = self._polynomial(x, y)
        fits = valid & (np.abs(got_u - u) + np.abs(got_v - v) < 1e-8)
        return np.where(fits, x, np.nan), np.where(fits, y, np.nan)
