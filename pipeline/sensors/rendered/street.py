"""The rendered street: houses, fences, trees, lamps, parked cars, and the moving cars, cyclist and people.

Example:
    things = street(seed=0)          # the same seed builds the same street
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.sensors.rendered import traffic
from pipeline.sensors.rendered.ground import PAVEMENT_M
from pipeline.sensors.rendered.solids import Colour, Decal, Solid, Thing, Track, disc, frustum, rectangle, standing

CAR_COLOURS: tuple[Colour, ...] = (
    (52, 46, 170),
    (150, 92, 38),
    (206, 208, 206),
    (70, 66, 62),
    (118, 124, 128),
    (60, 110, 60),
    (46, 150, 214),
    (120, 60, 40),
)
WALLS: tuple[Colour, ...] = (
    (176, 206, 226),
    (150, 176, 214),
    (196, 206, 210),
    (150, 190, 176),
    (206, 196, 180),
    (120, 140, 190),
)
ROOFS: tuple[Colour, ...] = ((58, 66, 128), (70, 74, 84), (62, 80, 112), (86, 84, 96))
GLASS: Colour = (104, 88, 70)
TYRE: Colour = (36, 34, 34)
BARK: Colour = (56, 78, 96)
SKIN: Colour = (140, 172, 216)


def street(seed: int) -> tuple[Thing, ...]:
    """Ids count from 1. Moving things come first, so that their ids are the same for every seed."""
    random = np.random.default_rng([seed, 1])
    things: list[tuple[str, Track, tuple[float, float, float], tuple[Solid, ...], bool]] = []

    def add(
        kind: str, track: Track, size_m: tuple[float, float, float], solids: tuple[Solid, ...], moves: bool = False
    ) -> None:
        things.append((kind, track, size_m, solids, moves))

    add("car", traffic.ahead, *car((52, 46, 170), lights=True), True)
    for x_m, colour in zip(traffic.ONCOMING_FROM_M, ((206, 208, 206), (150, 92, 38)), strict=True):
        add("car", traffic.cruising(x_m, -traffic.LANE_Y_M, -2), *car(colour), True)
    add("cyclist", traffic.cruising(traffic.CYCLIST_FROM_M, -3.45, 1), *cyclist(), True)
    clothes = ((150, 60, 40), (70, 60, 52)), ((60, 60, 190), (84, 62, 40)), ((60, 150, 90), (60, 56, 60))
    for walk, (coat, trousers) in zip(traffic.WALKS, clothes, strict=True):
        add("person", traffic.walking(*walk), *person(coat, trousers), True)
    for kind, x_m, y_m, (size_m, solids) in _standing(random):
        add(kind, standing(x_m, y_m), size_m, solids)
    return tuple(Thing(i + 1, *parts) for i, parts in enumerate(things))


def _standing(
    random: np.random.Generator,
) -> Iterator[tuple[str, float, float, tuple[tuple[float, float, float], tuple[Solid, ...]]]]:
    """(kind, x, y, (size, solids)) of the static things."""
    for side in (-1, 1):
        x_m = random.uniform(0, 3)
        while x_m < traffic.STREET_M - 9:
            length = min(random.uniform(9, 15), traffic.STREET_M - 1 - x_m)
            depth, back = random.uniform(7, 9), random.uniform(1.2, 3.0)
            yield "house", x_m + length / 2, side * (PAVEMENT_M + back + depth / 2), house(random, length, depth, -side)
            gap = random.uniform(1.5, 5.0)
            if gap > 2.5:
                yield (
                    "hedge",
                    x_m + length + gap / 2,
                    side * (PAVEMENT_M + 0.7),
                    hedge(gap - 0.4, random.uniform(1.0, 1.7)),
                )
            x_m += length + gap
        for x_m in np.arange(8.0, traffic.STREET_M, 24.0):
            yield "lamp", float(x_m) + 4 * (side > 0), side * 6.6, lamp(-side)
        for x_m in np.arange(16.0, traffic.STREET_M, 16.0):
            if (x := float(x_m + random.uniform(-2.5, 2.5))) and random.random() < 0.7 and _free(x, 4.0):
                yield "tree", x, side * 7.7, tree(random)
        for x_m in np.arange(3.5, traffic.STREET_M - 3, 6.0):
            x = float(x_m + random.uniform(-0.4, 0.4))
            if random.random() < (0.62 if side > 0 else 0.5) and _free(x, 8.0):
                colour = CAR_COLOURS[random.integers(len(CAR_COLOURS))]
                size_m, solids = van(colour) if random.random() < 0.15 else car(colour)
                yield "car", x, side * float(5.0 + random.uniform(-0.08, 0.08)), (size_m, solids)
        for x_m in random.uniform(0, traffic.STREET_M, 4):
            if _free(float(x_m), 3.0):
                yield "bin", float(x_m), side * 8.5, bin_()
    for x_m in traffic.CROSSINGS_X_M:
        for side in (-1, 1):
            yield "sign", x_m + 2.3 * side, 6.35 * side, sign()


def _free(x_m: float, by_m: float) -> bool:
    return all(abs(x_m - crossing) > by_m for crossing in traffic.CROSSINGS_X_M)


Built = tuple[tuple[float, float, float], tuple[Solid, ...]]  # size, and what it is things of


def darker(colour: Colour, share: float) -> Colour:
    blue, green, red = (round(c * share) for c in colour)
    return blue, green, red


def car(colour: Colour, *, lights: bool = False) -> Built:
    length, width = 4.3, 1.78
    half_l, half_w = length / 2, width / 2
    decals = []
    for face, sign in (("+y", 1), ("-y", -1)):
        for x in (1.32, -1.3):
            decals += [
                disc(face, (x, sign * half_w, 0.33), 0.34, TYRE),
                disc(face, (x, sign * half_w, 0.33), 0.18, (150, 150, 152)),
            ]
        decals.append(rectangle(face, (0.0, sign * half_w, 0.62), 3.9, 0.05, darker(colour, 0.7)))
    for y in (-0.66, 0.66):
        decals.append(rectangle("+x", (half_l, y, 0.68), 0.34, 0.16, (236, 246, 246)))
        decals.append(rectangle("-x", (-half_l, y, 0.72), 0.3, 0.18, (40, 36, 230 if lights else 150)))
    decals += [
        rectangle("+x", (half_l, 0, 0.42), 1.2, 0.16, (50, 48, 46)),
        rectangle("-x", (-half_l, 0, 0.5), 0.52, 0.12, (220, 224, 224)),
    ]
    body = frustum((length, width), (length, width), 0.2, 0.88, colour=colour, reflectance=0.45, decals=tuple(decals))
    cabin = frustum(
        (2.75, 1.66), (1.65, 1.34), 0.88, 1.38, colour=GLASS, reflectance=0.2, at_m=(-0.25, 0), top_shift_m=-0.08
    )
    roof = frustum((1.72, 1.38), (1.5, 1.24), 1.38, 1.46, colour=colour, reflectance=0.45, at_m=(-0.33, 0))
    return (length, width, 1.46), (body, cabin, roof)


def van(colour: Colour) -> Built:
    length, width = 5.0, 1.95
    decals = []
    for face, sign in (("+y", 1), ("-y", -1)):
        y = sign * width / 2
        for x in (1.55, -1.5):
            decals += [disc(face, (x, y, 0.35), 0.36, TYRE), disc(face, (x, y, 0.35), 0.18, (150, 150, 152))]
        decals.append(rectangle(face, (1.35, y * 0.99, 1.5), 1.3, 0.6, GLASS))
    decals.append(rectangle("-x", (-length / 2, 0, 1.5), 1.5, 0.55, GLASS))
    decals.append(rectangle("-x", (-length / 2, 0, 0.5), 0.52, 0.12, (220, 224, 224)))
    decals += [rectangle("-x", (-length / 2, y, 0.95), 0.16, 0.4, (40, 36, 160)) for y in (-0.85, 0.85)]
    below, above = (tuple(d for d in decals if (d.corners[:, 2].mean() > 1.1) == up) for up in (False, True))
    body = frustum((length, width), (length, width), 0.22, 1.1, colour=colour, reflectance=0.45, decals=below)
    upper = frustum(
        (length, width), (4.3, 1.7), 1.1, 1.95, colour=colour, reflectance=0.45, top_shift_m=-0.25, decals=above
    )
    return (length, width, 1.95), (body, upper)


def person(coat: Colour, trousers: Colour) -> Built:
    legs = [
        frustum((0.15, 0.14), (0.18, 0.17), -0.05, 0.86, colour=trousers, reflectance=0.3, at_m=(0, y), swing_m=swing)
        for y, swing in ((0.1, 0.2), (-0.1, -0.2))
    ]
    body = frustum((0.26, 0.44), (0.24, 0.42), 0.84, 1.46, colour=coat, reflectance=0.4)
    arms = [
        frustum(
            (0.12, 0.1),
            (0.13, 0.11),
            0.82,
            1.42,
            colour=darker(coat, 0.85),
            reflectance=0.4,
            at_m=(0, y),
            swing_m=swing,
        )
        for y, swing in ((0.28, -0.16), (-0.28, 0.16))
    ]
    head = frustum((0.2, 0.18), (0.2, 0.19), 1.49, 1.74, colour=SKIN, reflectance=0.45, sides=8)
    hair = frustum(
        (0.22, 0.2), (0.14, 0.13), 1.66, 1.78, colour=(40, 52, 70), reflectance=0.2, sides=8, at_m=(-0.02, 0)
    )
    return (0.66, 0.68, 1.78), (*legs, body, *arms, head, hair)


def cyclist() -> Built:
    wheels = tuple(
        disc(face, (x, y, 0.34), 0.34, (52, 50, 50)) for face, y in (("+y", 0.03), ("-y", -0.03)) for x in (-0.52, 0.52)
    )
    hubs = tuple(
        disc(face, (x, y, 0.34), 0.28, (128, 128, 126))
        for face, y in (("+y", 0.03), ("-y", -0.03))
        for x in (-0.52, 0.52)
    )
    frame = frustum(
        (1.5, 0.06), (0.9, 0.06), 0.3, 0.85, colour=(60, 140, 210), reflectance=0.3, decals=(*wheels, *hubs)
    )
    bar = frustum((0.06, 0.56), (0.06, 0.56), 0.95, 1.02, colour=(60, 60, 60), reflectance=0.3, at_m=(0.45, 0))
    legs = frustum((0.4, 0.3), (0.3, 0.34), 0.35, 0.95, colour=(70, 58, 50), reflectance=0.3, at_m=(-0.08, 0))
    body = frustum(
        (0.3, 0.38), (0.32, 0.44), 0.95, 1.5, colour=(50, 170, 220), reflectance=0.5, at_m=(-0.1, 0), top_shift_m=0.18
    )
    head = frustum(
        (0.26, 0.22), (0.18, 0.16), 1.52, 1.8, colour=(210, 214, 216), reflectance=0.5, at_m=(0.14, 0), sides=8
    )
    return (1.76, 0.56, 1.8), (frame, legs, bar, body, head)


def house(random: np.random.Generator, length: float, depth: float, towards: int) -> Built:
    """towards: the side its front is on, +1 for +y."""
    storeys = int(random.integers(2, 4))
    wall, roof = WALLS[random.integers(len(WALLS))], ROOFS[random.integers(len(ROOFS))]
    high = 0.6 + 2.8 * storeys
    face, y = ("+y" if towards > 0 else "-y"), towards * depth / 2
    columns = int(length // 2.9)
    steps = (np.arange(columns) + 0.5) * length / columns - length / 2
    door = int(random.integers(columns))
    decals: list[Decal] = [rectangle(face, (0, y, 0.35), length, 0.5, darker(wall, 0.72))]
    for storey in range(storeys):
        for k, x in enumerate(steps):
            if storey == 0 and k == door:
                decals.append(rectangle(face, (x, y, 1.3), 1.1, 2.1, (60, 74, 100)))
                continue
            z = 2.0 + 2.8 * storey
            decals += [
                rectangle(face, (x, y, z), 1.34, 1.54, (232, 236, 236)),
                rectangle(face, (x, y, z), 1.14, 1.34, (112, 92, 72)),
            ]
            decals.append(rectangle(face, (x - 0.02, y, z + 0.35), 1.14, 0.06, (232, 236, 236)))
    base = frustum((length, depth), (length, depth), -0.2, high, colour=wall, reflectance=0.4, decals=tuple(decals))
    eaves = random.uniform(0.25, 0.45)
    ridge = high + random.uniform(2.0, 3.2)
    top = frustum((length + 0.3, depth + 2 * eaves), (length + 0.1, 0.3), high, ridge, colour=roof, reflectance=0.25)
    size = (length + 0.3, depth + 2 * eaves, float(top.vertices[:, 2].max()))
    return size, (base, top)


def tree(random: np.random.Generator) -> Built:
    high, wide = random.uniform(5.0, 7.5), random.uniform(2.2, 3.0)
    green = darker((60, 129, 85), random.uniform(0.74, 1.0))
    low = high * 0.38
    steps = ((low, 0.55, high * 0.52, 1.0), (high * 0.52, 1.0, high * 0.74, 0.92), (high * 0.74, 0.92, high, 0.35))
    crown = tuple(
        frustum((wide * a, wide * a), (wide * b, wide * b), z, z2, colour=green, reflectance=0.5, sides=8)
        for z, a, z2, b in steps
    )
    trunk = frustum((0.3, 0.3), (0.22, 0.22), -0.1, low + 0.1, colour=BARK, reflectance=0.3, sides=8)
    return (wide, wide, high), (trunk, *crown)


def hedge(length: float, high: float) -> Built:
    solid = frustum((length, 0.8), (length, 0.8), -0.1, high, colour=(48, 96, 58), reflectance=0.5)
    return (length, 0.8, high), (solid,)


def lamp(towards: int) -> Built:
    pole = frustum((0.14, 0.14), (0.09, 0.09), -0.1, 5.0, colour=(96, 98, 96), reflectance=0.4, sides=8)
    arm = frustum((0.1, 1.3), (0.1, 1.3), 5.0, 5.1, colour=(96, 98, 96), reflectance=0.4, at_m=(0, towards * 0.6))
    head = frustum((0.24, 0.6), (0.16, 0.5), 4.9, 5.0, colour=(214, 226, 228), reflectance=0.4, at_m=(0, towards * 1.0))
    return (0.24, 2.6, 5.1), (pole, head, arm)


def bin_() -> Built:
    return (0.6, 0.6, 1.05), (frustum((0.5, 0.5), (0.6, 0.6), -0.05, 1.05, colour=(64, 84, 60), reflectance=0.3),)


def sign() -> Built:
    pole = frustum((0.07, 0.07), (0.07, 0.07), -0.05, 2.2, colour=(150, 152, 152), reflectance=0.5, sides=8)
    patch = (
        rectangle("-x", (-0.03, 0, 2.5), 0.62, 0.62, (180, 96, 30)),
        rectangle("-x", (-0.03, 0, 2.5), 0.34, 0.34, (236, 236, 236)),
    )
    board = frustum((0.06, 0.62), (0.06, 0.62), 2.2, 2.8, colour=(128, 130, 130), reflectance=0.9, decals=patch)
    return (0.14, 0.62, 2.8), (pole, board)
