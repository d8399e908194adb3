"""The parts of a rendered street: convex solids, composed to things that stand or move.

A solid is given in its thing's frame: x along the thing's heading, y left, z up from the ground it stands on, in
metres.

Example:
    body = frustum((4.3, 1.8), (4.3, 1.8), 0.2, 0.85, colour=(60, 60, 190), reflectance=0.5)
    van = Thing(7, "car", standing(31.0, -5.0), (4.3, 1.8, 1.5), (body, cabin))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Colour = tuple[int, int, int]  # blue, green, red, as a picture has them

# (t_s (n,)) → x, y, yaw, each (n,): where a thing is in the street's own frame. x may leave the street: it is periodic.
Track = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Decal:
    """A flat patch on a solid's face, visible with it: a window, a door, a wheel. corners: (n, 3), convex."""

    corners: np.ndarray
    normal: np.ndarray  # (3,), of the face
    colour: Colour


@dataclass(frozen=True, eq=False)
class Solid:
    """A convex polyhedron: n·x ≤ offset for every face.

    vertices: (v, 3). faces: vertex indices, one tuple a face. normals: (k, 3), outward, unit length. offsets: (k,).
    reflectance: in [0, 1], as a lidar sees it head-on. swing_m: how far it swings to and fro along x while its thing
    walks.
    """

    vertices: np.ndarray
    faces: tuple[tuple[int, ...], ...]
    normals: np.ndarray
    offsets: np.ndarray
    colour: Colour
    reflectance: float
    decals: tuple[Decal, ...] = ()
    swing_m: float = 0.0

    @cached_property
    def low(self) -> np.ndarray:
        """(3,): the least corner of its box."""
        corner: np.ndarray = self.vertices.min(axis=0)
        return corner

    @cached_property
    def high(self) -> np.ndarray:
        """(3,): the greatest corner of its box."""
        corner: np.ndarray = self.vertices.max(axis=0)
        return corner


@dataclass(frozen=True, eq=False)
class Thing:
    """size_m: length, width and height of its box, standing on the ground around the track's point."""

    id: int  # 1 and up; 0 is the ground
    kind: str
    track: Track
    size_m: tuple[float, float, float]
    solids: tuple[Solid, ...]
    moves: bool = False


def standing(x_m: float, y_m: float, yaw_rad: float = 0.0) -> Track:
    return lambda t_s: (np.full_like(t_s, x_m), np.full_like(t_s, y_m), np.full_like(t_s, yaw_rad))


def frustum(
    bottom_m: tuple[float, float],
    top_m: tuple[float, float],
    from_z_m: float,
    to_z_m: float,
    *,
    colour: Colour,
    reflectance: float,
    at_m: tuple[float, float] = (0.0, 0.0),
    top_shift_m: float = 0.0,
    sides: int = 4,
    decals: tuple[Decal, ...] = (),
    swing_m: float = 0.0,
) -> Solid:
    """A prism whose top may be smaller than its bottom, and shifted along x: box, roof, cabin, trunk or crown.

    bottom_m, top_m: length and width. sides: 4 for a box, 8 for round things.
    """
    angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) / np.cos(np.pi / sides) / 2  # its flats touch ±½
    low = np.column_stack([ring * bottom_m + at_m, np.full(sides, from_z_m)])
    high = np.column_stack([ring * top_m + at_m + (top_shift_m, 0.0), np.full(sides, to_z_m)])
    vertices = np.concatenate([low, high])
    around = [(i, (i + 1) % sides, (i + 1) % sides + sides, i + sides) for i in range(sides)]
    faces = (*around, tuple(range(sides, 2 * sides)), tuple(reversed(range(sides))))
    normals = []
    for face in faces:  # a roof's ridge is an edge, so two corners of a face may coincide: its diagonals never do
        a, b, c, d = vertices[[face[0], face[1], face[len(face) // 2], face[-1]]]
        normal = np.cross(c - a, d - b)
        if not normal.any():
            normal = np.array([0.0, 0.0, 1.0])  # the ridge itself
        normals.append(normal / np.linalg.norm(normal))
    n = np.array(normals)
    offsets = np.array([normal @ vertices[face[0]] for normal, face in zip(n, faces, strict=True)])
    return Solid(vertices, faces, n, offsets, colour, reflectance, decals, swing_m)


def rectangle(
    face: str, centre_m: tuple[float, float, float], width_m: float, height_m: float, colour: Colour
) -> Decal:
    """An upright patch. face: "+x", "-x", "+y" or "-y": the direction of its normal."""
    axis, sign = "xy".index(face[1]), 1.0 if face[0] == "+" else -1.0
    normal = np.zeros(3)
    normal[axis] = sign
    along = np.zeros(3)
    along[1 - axis] = width_m / 2
    up = np.array([0.0, 0.0, height_m / 2])
    corners = np.array(centre_m) + np.array([-along - up, along - up, along + up, -along + up])
    return Decal(corners, normal, colour)


def disc(face: str, centre_m: tuple[float, float, float], radius_m: float, colour: Colour) -> Decal:
    """A wheel, seen from the side. face: "+y" or "-y"."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    corners = np.array(centre_m) + radius_m * np.column_stack([np.cos(angle), np.zeros(12), np.sin(angle)])
    return Decal(corners, np.array([0.0, 1.0 if face == "+y" else -1.0, 0.0]), colour)
