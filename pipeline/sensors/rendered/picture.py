"""The picture that a camera in the rendered street takes: sky, ground, shadows, and things from far to near.

Example:
    scene = Scene(things, seed)
    scene.take(lens, camera, t_s, out)           # (h, w, 3) uint8 BGR, filled
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.rig.intrinsics import Intrinsics
from pipeline.sensors.rendered import ground
from pipeline.sensors.rendered.rays import BEHIND_M, gait
from pipeline.sensors.rendered.solids import Colour, Solid, Thing
from pipeline.sensors.rendered.traffic import STREET_M

SUN = np.array([0.42, 0.5, 0.76]) / np.linalg.norm([0.42, 0.5, 0.76])  # towards it: ahead on the left
HAZE = np.array([224.0, 214, 204])  # what the horizon fades into
HAZE_M = 210.0  # after so far, 63 % of it
NEAR_M = 0.25
SMALLEST_PX = 1.2  # smaller patches are not drawn
DECALS_M = 75.0  # neither are farther ones
SUBPIXEL = 4  # bits of a pixel's fraction that OpenCV draws polygons with


class _View(NamedTuple):
    """One moment's corners as one camera sees them."""

    lens: Intrinsics
    eye: np.ndarray  # (3,), in the street's frame
    world: np.ndarray  # (corners, 3), in the street's frame
    corners_m: np.ndarray  # (corners, 3), in the camera's frame: right, down, ahead
    pixels: np.ndarray  # (corners, 2); meaningless behind the camera


class Scene:
    """All corners and faces of a street's things as flat arrays, so that a picture is a few large operations."""

    def __init__(self, things: Sequence[Thing], seed: int) -> None:
        self.things = things
        solids = [(k, solid) for k, thing in enumerate(things) for solid in thing.solids]
        corners: list[np.ndarray] = []
        of_solid: list[int] = []
        # Solid, corners, normal, colour, whether a decal.
        polygons: list[tuple[int, list[int], np.ndarray, Colour, bool]] = []
        count = 0
        for s, (_, solid) in enumerate(solids):
            for face, normal in zip(solid.faces, solid.normals, strict=True):
                polygons.append((s, [count + i for i in face], normal, solid.colour, False))
            corners.append(solid.vertices)
            count += len(solid.vertices)
            for decal in solid.decals:
                polygons.append((s, list(range(count, count + len(decal.corners))), decal.normal, decal.colour, True))
                corners.append(decal.corners)
                count += len(decal.corners)
            of_solid += [s] * (count - len(of_solid))
        self._corners, self._of_solid = np.concatenate(corners), np.array(of_solid)
        self._thing_of_solid = np.array([k for k, _ in solids])
        self._swing = np.array([solid.swing_m for _, solid in solids])
        self._first = np.searchsorted(self._of_solid, np.arange(len(solids)))
        self._solid = np.array([p[0] for p in polygons])
        max_sides = max(len(p[1]) for p in polygons)
        self._sides = np.array([len(p[1]) for p in polygons])
        self._index = np.array([p[1] + [p[1][-1]] * (max_sides - len(p[1])) for p in polygons])
        self._normal = np.array([p[2] for p in polygons])
        self._colour = np.array([p[3] for p in polygons], float)
        self._decal = np.array([p[4] for p in polygons])
        walkers = np.unique(self._thing_of_solid[self._swing != 0])
        self._walkers = [(int(k), np.flatnonzero(self._thing_of_solid == k)) for k in walkers]
        self._moves = np.array([thing.moves for thing in things])
        self._standing_at = np.array([[float(v[0]) for v in thing.track(np.zeros(1))] for thing in things])
        shadows = []
        for thing, (x, y, yaw) in zip(things, self._standing_at.tolist(), strict=True):
            shadows += [shadow(thing, yaw, (x, y), of=solid) for solid in thing.solids if not thing.moves]
        self.paint = ground.Paint(seed, shadows)
        self._sky: dict[Intrinsics, np.ndarray] = {}

    def take(
        self, lens: Intrinsics, camera: tuple[float, float, float, float], t_s: float, out: np.ndarray
    ) -> np.ndarray:
        """camera: its x, y, z and yaw in the street's frame; it looks level. out: (h, w, 3) uint8, filled and
        returned."""
        x, y, z, yaw = camera
        first = ground.draw(self.paint, out, (lens.fx_px, lens.fy_px, lens.cx_px, lens.cy_px), camera)
        self._draw_sky(lens, yaw, out, first)
        places = self._places(t_s, x)
        self._draw_shadows(lens, camera, places, out)
        place = places[self._thing_of_solid]
        world = self._world(place, t_s)
        cos, sin, dx, dy = np.cos(yaw), np.sin(yaw), world[:, 0] - x, world[:, 1] - y
        corners_m = np.stack([sin * dx - cos * dy, z - world[:, 2], cos * dx + sin * dy], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = corners_m[:, :2] / corners_m[:, 2:] * (lens.fx_px, lens.fy_px) + (lens.cx_px, lens.cy_px)
        self._draw_things(_View(lens, np.array([x, y, z]), world, corners_m, pixels), place, out)
        return out

    def _places(self, t_s: float, rig_x_m: float) -> np.ndarray:
        """(things, 4): x, y, yaw and the ground's z under each, of its copy that is visible."""
        places = self._standing_at.copy()
        for k in np.flatnonzero(self._moves).tolist():
            places[k] = [float(v[0]) for v in self.things[k].track(np.array([t_s]))]
        x, y, yaw = places.T
        x = np.mod(x - rig_x_m + BEHIND_M, STREET_M) - BEHIND_M + rig_x_m
        return np.stack([x, y, yaw, ground.stand(x, y)], axis=1)

    def _world(self, place: np.ndarray, t_s: float) -> np.ndarray:
        """Every corner in the street's frame, (corners, 3). place: of each solid's thing."""
        swing = np.zeros(len(place))
        for k, solids in self._walkers:
            swing[solids] = self._swing[solids] * gait(self.things[k], np.array([t_s]))[0]
        x, y, yaw, z = place[self._of_solid].T
        cos, sin = np.cos(yaw), np.sin(yaw)
        own_x = self._corners[:, 0] + swing[self._of_solid]
        own_y = self._corners[:, 1]
        return np.stack([x + cos * own_x - sin * own_y, y + sin * own_x + cos * own_y, z + self._corners[:, 2]], axis=1)

    def _draw_things(self, view: _View, place: np.ndarray, out: np.ndarray) -> None:
        rank = self._ranks(view)
        patch, behind, colour = self._patches(view, place, rank >= 0)
        with np.errstate(invalid="ignore"):
            fixed = _fixed(view.pixels[self._index[patch]])
        sides, bgr = self._sides[patch].tolist(), colour.tolist()
        for p in np.argsort(rank[self._solid[patch]], kind="stable").tolist():
            if not behind[p]:
                cv2.fillConvexPoly(out, fixed[p, : sides[p]], bgr[p], cv2.LINE_AA, SUBPIXEL)
            elif (clipped := before(view.corners_m[self._index[patch[p], : sides[p]]])) is not None:
                cv2.fillConvexPoly(out, _pixels(view.lens, clipped), bgr[p], cv2.LINE_AA, SUBPIXEL)

    def _ranks(self, view: _View) -> np.ndarray:
        """Each solid's place in the drawing order; −1: it is not visible."""
        low, high = (f.reduceat(view.world, self._first, axis=0) - view.eye for f in (np.minimum, np.maximum))
        nearest, farthest = (f.reduceat(view.corners_m[:, 2], self._first) for f in (np.minimum, np.maximum))
        left, right = (f.reduceat(view.pixels[:, 0], self._first) for f in (np.minimum, np.maximum))
        with np.errstate(invalid="ignore"):
            inside = (right > 0) & (left < view.lens.width_px) & (right - left > 0.7)
        visible = np.flatnonzero((farthest > NEAR_M) & ((nearest < NEAR_M) | inside))
        rank = np.full(len(nearest), -1)
        rank[visible[far_to_near(low[visible], high[visible])]] = np.arange(len(visible))
        return rank

    def _patches(
        self, view: _View, place: np.ndarray, visible: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visible faces and decals: indices, whether a part of each lies behind the camera, and colours (n, 3)."""
        patch = np.flatnonzero(visible[self._solid])
        cos, sin, n = np.cos(place[self._solid[patch], 2]), np.sin(place[self._solid[patch], 2]), self._normal[patch]
        normal = np.stack([cos * n[:, 0] - sin * n[:, 1], sin * n[:, 0] + cos * n[:, 1], n[:, 2]], axis=1)
        facing = np.flatnonzero(((view.world[self._index[patch, 0]] - view.eye) * normal).sum(axis=1) < 0)
        patch, normal = patch[facing], normal[facing]
        index, is_decal = self._index[patch], self._decal[patch]
        u, v, depth = (
            values[index.T] for values in (*view.pixels.T, view.corners_m[:, 2])
        )  # (corners of a patch, patches)
        left, right, top, bottom = u.min(axis=0), u.max(axis=0), v.min(axis=0), v.max(axis=0)
        nearest, farthest = depth.min(axis=0), depth.max(axis=0)
        behind = nearest < NEAR_M
        with np.errstate(invalid="ignore"):
            inside = (right > 0) & (left < view.lens.width_px) & (bottom > 0) & (top < view.lens.height_px)
            large = np.minimum(right - left, bottom - top) > np.where(is_decal, SMALLEST_PX, 0.2)
        drawn = np.flatnonzero((farthest > NEAR_M) & (behind | (inside & large)) & ~(is_decal & (nearest > DECALS_M)))
        light = 0.6 + 0.42 * np.maximum(normal[drawn] @ SUN, 0) + 0.06 * normal[drawn, 2]
        away = np.maximum(depth[0, drawn], 0)
        # Full haze from 120 m on hides objects that enter the street.
        haze = np.maximum(1 - np.exp(-away / HAZE_M), np.clip((away - 85) / 35, 0, 1))[:, None]
        colour = np.minimum(self._colour[patch[drawn]] * light[:, None], 255) * (1 - haze) + HAZE * haze
        return patch[drawn], behind[drawn], colour

    def _draw_shadows(
        self, lens: Intrinsics, camera: tuple[float, float, float, float], places: np.ndarray, out: np.ndarray
    ) -> None:
        """Of moving things; the ground's picture has the shadows of all others."""
        x, y, z, yaw = camera
        mask: np.ndarray | None = None
        for k in np.flatnonzero(self._moves).tolist():
            px, py, turn, stands = places[k]
            if not -8 < px - x < 70:
                continue
            outline = shadow(self.things[k], turn)
            dx, dy = outline[:, 0] + px - x, outline[:, 1] + py - y
            depth, aside = np.cos(yaw) * dx + np.sin(yaw) * dy, np.sin(yaw) * dx - np.cos(yaw) * dy
            shape = before(np.stack([aside, np.full_like(aside, z - stands), depth], axis=1))
            if shape is not None:
                mask = np.zeros(out.shape[:2], np.uint8) if mask is None else mask
                cv2.fillConvexPoly(mask, _pixels(lens, shape), 255, cv2.LINE_AA, SUBPIXEL)
        if mask is not None and (box := cv2.boundingRect(mask))[2]:
            at = (slice(box[1], box[1] + box[3]), slice(box[0], box[0] + box[2]))
            light = 255 - (mask[at] * np.float32(1 - ground.SHADE)).astype(np.uint8)
            out[at] = cv2.multiply(out[at], cv2.merge([light, light, light]), scale=1 / 255)

    def _draw_sky(self, lens: Intrinsics, yaw: float, out: np.ndarray, first: int) -> None:
        if lens not in self._sky:
            self._sky[lens] = sky(lens)
        whole = self._sky[lens]
        turn = (yaw + np.pi) % (2 * np.pi) - np.pi
        left = int(np.clip((whole.shape[1] - lens.width_px) / 2 - turn * lens.fx_px, 0, whole.shape[1] - lens.width_px))
        out[:first] = whole[:first, left : left + lens.width_px]


def shadow(
    thing: Thing, yaw_rad: float, at_m: tuple[float, float] = (0.0, 0.0), *, of: Solid | None = None
) -> np.ndarray:
    """The outline, (n, 2) in metres, of a thing's shadow on level ground, or of one solid's alone."""
    v = np.concatenate([s.vertices for s in thing.solids]) if of is None else of.vertices
    cos, sin, z = np.cos(yaw_rad), np.sin(yaw_rad), np.maximum(v[:, 2], 0.0)
    x = at_m[0] + cos * v[:, 0] - sin * v[:, 1] - z * SUN[0] / SUN[2]
    y = at_m[1] + sin * v[:, 0] + cos * v[:, 1] - z * SUN[1] / SUN[2]
    outline: np.ndarray = cv2.convexHull(np.stack([x, y], axis=1).astype(np.float32))[:, 0]
    return outline


def far_to_near(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A drawing order in which no box comes before one that it may hide. low, high: (n, 3) corners relative to the eye.

    A box may hide another only if no plane between the two has the eye on the other box's side: each pair that is
    separated along some axis has an order, or needs none.
    """
    n = len(low)
    behind = np.zeros((n, n), bool)  # [a, b]: a cannot hide b
    for axis in range(3):
        a_low, a_high = low[:, axis, None] + 1e-6, high[:, axis, None] - 1e-6
        behind |= (a_low >= high[None, :, axis] - 1e-5) & (a_low >= 0)
        behind |= (a_high <= low[None, :, axis] + 1e-5) & (a_high <= 0)
    first = behind & ~behind.T  # [a, b]: a is drawn before b
    links = first.astype(np.float32)
    waits = links.sum(axis=0)
    distance = np.hypot(*np.maximum(np.maximum(low, -high), 0)[:, :2].T)
    left, layer, layers = np.ones(n, bool), np.zeros(n), 0
    while left.any():
        ready = left & (waits == 0)
        if not ready.any():  # boxes that hide each other in a cycle: the farthest is drawn first
            ready = left & (np.arange(n) == np.argmax(np.where(left, distance, -1)))
        layer[ready] = layers
        layers += 1
        left &= ~ready
        waits -= ready.astype(np.float32) @ links
    order: np.ndarray = np.lexsort((-distance, layer))
    return order


def before(corners: np.ndarray) -> np.ndarray | None:
    """The part of a polygon, (n, 3) with depth last, farther than NEAR_M; None: there is none."""
    clipped = []
    ring = corners.tolist()
    for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
        if a[2] >= NEAR_M:
            clipped.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            share = (NEAR_M - a[2]) / (b[2] - a[2])
            clipped.append([p + (q - p) * share for p, q in zip(a, b, strict=True)])
    return np.array(clipped) if len(clipped) >= 3 else None


def _pixels(lens: Intrinsics, corners: np.ndarray) -> np.ndarray:
    return _fixed(corners[:, :2] / corners[:, 2:] * (lens.fx_px, lens.fy_px) + (lens.cx_px, lens.cy_px))


def _fixed(pixels: np.ndarray) -> np.ndarray:
    """In OpenCV's format: integers with SUBPIXEL bits of fraction, within its range."""
    fixed: np.ndarray = np.round(np.clip(pixels, -20000, 20000) * (1 << SUBPIXEL)).astype(np.int32)
    return fixed


def sky(lens: Intrinsics) -> np.ndarray:
    """A clear day with hills, wider than the picture by the largest turn of the rig."""
    margin = round(0.2 * lens.fx_px)
    width, height = lens.width_px + 2 * margin, lens.height_px
    up = np.clip((lens.cy_px - np.arange(height)) / lens.fy_px, 0, 1)[:, None]
    share = np.clip(up / 0.45, 0, 1) ** 0.6
    rows = HAZE * (1 - share) + np.array([214.0, 158, 104]) * share
    whole = np.repeat(rows[:, None, :], width, axis=1).astype(np.float32)
    random = np.random.default_rng(5)
    clouds = np.zeros((height, width), np.float32)
    for octave in (6, 12, 24, 48):
        shape = (max(2, octave), max(2, octave // 2 * 3))
        clouds += (
            cv2.resize(random.standard_normal(shape).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
            / octave**0.7
        )
    cover = np.clip((clouds - 0.22) * 2.2, 0, 0.8)[..., None] * np.clip(up / 0.12, 0, 1)[..., None]
    whole = whole * (1 - cover) + np.float32(244) * cover
    angle = np.arange(width) / lens.fx_px
    for base, wave, colour in ((0.028, 0.018, (200, 186, 168)), (0.012, 0.014, (168, 162, 138))):
        line = base + wave * np.sin(angle * 5 + 40 * base) + wave / 2 * np.sin(angle * 13 + 9 * wave)
        whole[up < line[None, :]] = colour
    done: np.ndarray = whole.astype(np.uint8)
    return done
