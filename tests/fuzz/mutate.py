"""Valid bytes → bytes that are nearly valid: flipped bits, cuts, splices, extreme lengths and numbers, deep nesting.

Everything is drawn from one random.Random, so that a seed repeats a run.

Example:
    mutated(random.Random(1), [sample, another])       # bytes
    altered_tree(random.Random(1), {"seq": 3})         # {"seq": -9223372036854775809}, {"seq": [[[[…]]]]}, …
"""

from __future__ import annotations

import copy
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

MAX_BYTES = 1 << 20  # of an input: longer ones take time and find nothing else
DEPTHS = (3, 64, 600, 5000, 100_000)  # of nesting: below and above every limit of recursion
INTEGERS = (
    *(0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536),
    *((1 << 24), (1 << 30), (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 53) + 1),
    *((1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
FLOATS = (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, -0.0, 1e-30, 1e30, -1.0)
NUMBERS = (
    *(b"nan", b"inf", b"-inf", b"NaN", b"Infinity", b".inf", b"1e400", b"-1e308", b"1e308", b"5e-324", b"-1", b"0"),
    *(b"00", b"1.", b".5", b"9" * 30, b"9" * 400, b"9" * 5000, b"0x10", b"1_000", b"1e5", b"-0", b"2147483648"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"4294967296", b"10000-13-40", b"~"),
)
WORDS = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\r", b"\n\n", b"\t", b"'", b'"', b"#", b","),
    *(
        b"null",
        b"true",
        b"{}",
        b"[]",
        b'""',
        b": ",
        b"- ",
        b"&a [*a]",
        b"*a",
        b"<<: *a",
        b"!!python/object:os.system x",
    ),
    *(b"!!binary x", b"!!timestamp 9999-12-31", b"2001-99-99", b"../../../etc/passwd", b"/dev/zero", b"%s%n{0}", b"|"),
)
OPENINGS = (b"[", b'{"a":', b"(", b"- ", b"a: ", b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\x0a\x7f", b"[[")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def mutated(chance: random.Random, pool: Sequence[bytes]) -> bytes:
    """One of the pool, altered once to a few times; seldom plain noise."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.choice((0, 1, 3, 8, 16, 64, 500, 5000)))
    raw = bytearray(chance.choice(pool))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        chance.choice(_WAYS)(chance, raw, pool)
    return bytes(raw[:MAX_BYTES])


def _place(chance: random.Random, raw: bytearray) -> int:
    """A position: often near the ends, where headers and indexes are."""
    size = len(raw)
    kind = chance.random()
    if kind < 0.35:
        return chance.randrange(min(size, 64) + 1)
    if kind < 0.55:
        return size - chance.randrange(min(size, 96) + 1)
    return chance.randrange(size + 1)


def _flip(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if (at := _place(chance, raw)) < len(raw):
            raw[at] ^= 1 << chance.randrange(8)


def _byte(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    if (at := _place(chance, raw)) < len(raw):
        raw[at] = chance.choice((0, 1, 0x7F, 0x80, 0xC0, 0xFE, 0xFF, chance.randrange(256)))


def _integer(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    """An extreme number over 1, 2, 4 or 8 bytes, in either byte order: lengths, counts, offsets, times."""
    width = chance.choice((1, 2, 4, 4, 8, 8))
    at = _place(chance, raw)
    value = chance.choice((*INTEGERS, len(raw), len(raw) - at, len(raw) + 1, chance.getrandbits(64)))
    raw[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, chance.choice(("little", "big")))


def _nudge(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    if (at := _place(chance, raw)) < len(raw):
        raw[at] = (raw[at] + chance.choice((-2, -1, 1, 2))) % 256


def _float(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    layout, at = chance.choice(("<f", ">f", "<d", ">d")), _place(chance, raw)
    value = chance.choice(FLOATS)
    packed = struct.pack(layout, value if layout[1] == "d" or abs(value) < 3e38 else float("inf"))
    raw[at : at + len(packed)] = packed


def _cut(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    del raw[_place(chance, raw) :]


def _remove(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    at = _place(chance, raw)
    del raw[at : at + chance.choice((1, 1, 2, 4, 8, 64, 1000))]


def _double(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    at, size = _place(chance, raw), chance.choice((1, 4, 16, 200, 4000))
    raw[at:at] = raw[at : at + size] * chance.choice((1, 1, 2, 20))


def _blank(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    at, size = _place(chance, raw), chance.choice((1, 4, 8, 64))
    part = len(raw[at : at + size])
    raw[at : at + size] = chance.choice((bytes(part), b"\xff" * part, chance.randbytes(part)))


def _insert(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    at = _place(chance, raw)
    raw[at:at] = chance.choice((*WORDS, chance.randbytes(chance.choice((1, 2, 9, 100)))))


def _splice(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    other = chance.choice(pool)
    at, begin = _place(chance, raw), _place(chance, bytearray(other))
    raw[at:] = other[begin:]


def _transplant(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    other = chance.choice(pool)
    at, begin, size = _place(chance, raw), _place(chance, bytearray(other)), chance.choice((2, 4, 8, 32, 300))
    raw[at : at + size] = other[begin : begin + size]


def _written_number(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    """A number that stands there as text becomes another one."""
    begin = _place(chance, raw)
    match = _NUMBER.search(raw, begin, begin + 4000)
    if match is not None:
        raw[match.start() : match.end()] = chance.choice(NUMBERS)


def _line(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    """A line is doubled, removed or moved."""
    begin = raw.rfind(b"\n", 0, _place(chance, raw)) + 1
    end = raw.find(b"\n", begin) + 1 or len(raw)
    line = bytes(raw[begin:end])
    if chance.random() < 0.6:
        del raw[begin:end]
    at = raw.rfind(b"\n", 0, _place(chance, raw)) + 1
    raw[at:at] = line


def _nest(chance: random.Random, raw: bytearray, pool: Sequence[bytes]) -> None:
    at, opening = _place(chance, raw), chance.choice(OPENINGS)
    raw[at:at] = opening * (chance.choice(DEPTHS) // len(opening))


# The frequent first: each that finds most, several times.
_WAYS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _byte, _byte, _integer, _integer, _integer, _nudge, _float, _cut, _remove, _double, _blank),
    *(_insert, _insert, _splice, _transplant, _written_number, _written_number, _line, _nest),
)


# --- trees ------------------------------------------------------------------------------------------------------------


def altered_tree(chance: random.Random, tree: Any) -> Any:
    """A copy of nested dicts and lists in which one to three values are something else."""
    root = copy.deepcopy(tree)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not isinstance(root, dict | list) or chance.random() < 0.02:
            return extreme(chance, root)
        _alter(chance, root)
    return root


def _alter(chance: random.Random, node: Any) -> None:
    """Walks down at random and alters what is there."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = chance.choice(keys)
        value = node[key]
        if isinstance(value, dict | list) and value and chance.random() < 0.8:
            node = value
            continue
        break
    kind = chance.random()
    if kind < 0.1 and isinstance(node, dict):
        del node[key]
    elif kind < 0.2 and isinstance(node, dict):
        node[chance.choice(("extra", "", "a" * 300, "é", "0", str(key)[:-1], str(key).upper()))] = value
    elif kind < 0.2:
        node[key : key + 1] = chance.choice(([], [value, value], [value] * 300))
    else:
        node[key] = extreme(chance, value)


def extreme(chance: random.Random, value: Any) -> Any:
    """Another value in the place of `value`: at times of the same type, at times of any."""
    if chance.random() < 0.4:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return chance.choice((value + 1, value - 1, -value, *INTEGERS, *(-i for i in INTEGERS[-6:])))
        if isinstance(value, float):
            return chance.choice((*FLOATS, -value, value * 1e9, value * 1e-9))
        if isinstance(value, str):
            return chance.choice(
                (value[:-1], value + "x", value.upper(), "", "a" * 5000, "\0", "../" * 8 + "etc/passwd")
            )
        if isinstance(value, bytes):
            return chance.choice((value[:-1], value + b"x", b"", bytes(70_000), chance.randbytes(len(value))))
    if chance.random() < 0.08:
        nested: Any = value
        for _ in range(chance.choice(DEPTHS[:4])):
            nested = [nested]
        return nested
    return chance.choice(
        (
            *(None, True, False, "", "x", "nan", "é" * 40, [], {}, [0], [[]], {"a": 1}, {"": None}, b"", b"\xff\x00"),
            *FLOATS,
            *INTEGERS[-10:],
            *(-1, -(1 << 31), -(1 << 63), 10**30),
        )
    )
