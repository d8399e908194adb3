"""The shapes an engine is built for. A GPU's engine knows ranges only: each profile is one, and its best size.

Batches are filled up to the next power of two, so that a handful of CUDA graphs serves any number of faces or of rigs.

Example:
    (profile,) = derive({"face": ("n", 1, 48, 48)}, [{"face": (1, 1, 48, 48)}])
    profile.admits({"face": (3, 1, 48, 48)})           # True
    profile.filled({"face": (3, 1, 48, 48)})           # {"face": (4, 1, 48, 48)}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
Free = tuple[int | str | None, ...]  # of an input as the model declares it: a size that is free is a name or None

MAX_BATCH = 8  # faces in view; more are run in turns of so many


@dataclass(frozen=True)
class Profile:
    """Input → (smallest, best, largest). batched: the inputs whose first size is a batch."""

    ranges: dict[str, tuple[Shape, Shape, Shape]]
    batched: frozenset[str] = frozenset()

    def admits(self, shapes: Mapping[str, Shape]) -> bool:
        return all(
            len(shapes[name]) == len(least)
            and all(a <= b <= c for a, b, c in zip(least, shapes[name], most, strict=True))
            for name, (least, _, most) in self.ranges.items()
        )

    def filled(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes that are run: the batch rounded up to a power of two, as far as this profile reaches."""
        return {
            name: (min(1 << (shape[0] - 1).bit_length(), self.ranges[name][2][0]), *shape[1:])
            if name in self.batched
            else shape
            for name, shape in shapes.items()
        }

    def batches(self, shapes: Mapping[str, Shape]) -> list[dict[str, Shape]]:
        """These shapes with every size of batch that is run."""
        most = max((self.ranges[name][2][0] for name in self.batched), default=1)
        counts = [1 << power for power in range(most.bit_length())]
        sized = [{n: (c, *s[1:]) if n in self.batched else s for n, s in shapes.items()} for c in counts]
        return list({tuple(filled.values()): filled for filled in map(self.filled, sized)}.values())

    def largest(self) -> dict[str, Shape]:
        return {name: most for name, (_, _, most) in self.ranges.items()}


def derive(
    inputs: Mapping[str, Free], hints: Sequence[Mapping[str, Shape]] = (), *, largest_batch: int = MAX_BATCH
) -> tuple[Profile, ...]:
    """One profile a hint, and one that spans them all where they differ in more than the batch.

    hints: shapes that will be run; without any, free sizes are taken for 1. Raises ValueError for a hint that is no
    shape of the model's.
    """
    requested = list(hints) or [{}]
    for hint in requested:
        for name, shape in hint.items():
            fixed = inputs.get(name)
            if (
                fixed is None
                or len(fixed) != len(shape)
                or any(isinstance(f, int) and f != s for f, s in zip(fixed, shape, strict=True))
            ):
                raise ValueError(f"input '{name}' has the shape {fixed}, which {shape} is no case of")
    whole = [
        {name: hint.get(name) or tuple(s if isinstance(s, int) else 1 for s in free) for name, free in inputs.items()}
        for hint in requested
    ]
    # What the first free size is called is the batch's name; an input whose first size is fixed has none.
    batched = frozenset(name for name, free in inputs.items() if free and not isinstance(free[0], int))

    def ranged(least: Mapping[str, Shape], best: Mapping[str, Shape], most: Mapping[str, Shape]) -> Profile:
        def reach(name: str) -> tuple[Shape, Shape, Shape]:
            if name not in batched:
                return least[name], best[name], most[name]
            return (1, *least[name][1:]), best[name], (max(largest_batch, most[name][0]), *most[name][1:])

        return Profile({name: reach(name) for name in inputs}, batched)

    keys = list(dict.fromkeys(_key(hint, batched) for hint in whole))
    distinct = [next(hint for hint in whole if _key(hint, batched) == key) for key in keys]
    profiles = [ranged(hint, hint, hint) for hint in distinct]
    if len(distinct) > 1:
        least, most = (
            {
                name: tuple(extreme(sizes) for sizes in zip(*(hint[name] for hint in distinct), strict=True))
                for name in inputs
            }
            for extreme in (min, max)
        )
        profiles.append(ranged(least, distinct[-1], most))
    return tuple(profiles)


def _key(hint: Mapping[str, Shape], batched: frozenset[str]) -> tuple[tuple[str, Shape], ...]:
    return tuple((name, shape[1:] if name in batched else shape) for name, shape in hint.items())
