"""A table of options is checked once against a constructor, converted, and refused with the place and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from pipeline import plugins
from pipeline.errors import ConfigError
from pipeline.plugins import check_options, construct


class Inner:
    def __init__(self, *, width_m: float = 1.0, sync: str = "nearest") -> None:
        self.width_m = width_m


class Outer:
    def __init__(self, *, rate_hz: float = 1.0, inner: dict[str, Any] | None = None, queue: int = 1) -> None:
        if rate_hz < 0:
            raise ValueError("rate_hz: found a negative rate, expected 0 or more")
        self.rate_hz, self.inner = rate_hz, inner

    @classmethod
    def nested_options(cls, options: Mapping[str, Any]) -> Iterable[tuple[str, type | None]]:
        yield "inner", Inner


def test_options_are_converted_to_the_types_of_the_constructor_also_nested_ones() -> None:
    options = check_options(Outer, {"rate_hz": 30, "inner": {"width_m": 2}}, "nodes.camera")
    assert options == {"rate_hz": 30.0, "inner": {"width_m": 2.0}}
    assert [type(options["rate_hz"]), type(options["inner"]["width_m"])] == [float, float]


def test_checked_options_are_not_checked_again() -> None:
    options = check_options(Outer, {"inner": {"width_m": 2}}, "nodes.camera")
    assert check_options(Outer, options, "") is options
    assert check_options(Inner, options["inner"], "") is options["inner"]
    assert construct(Outer, options, "").inner is options["inner"]


def test_changed_options_are_checked_again() -> None:
    options = check_options(Outer, {"rate_hz": 30}, "nodes.camera")
    with pytest.raises(ConfigError, match="unknown key 'rate'"):
        check_options(Outer, options | {"rate": 1}, "nodes.camera")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_hz": "fast"}, "nodes.camera.rate_hz: found 'fast', expected float"),
        ({"rate": 1}, "nodes.camera: unknown key 'rate'. Outer takes: rate_hz, inner, queue. Did you mean 'rate_hz'?"),
        (
            {"proces": 1},
            "nodes.camera: unknown key 'proces'. Outer takes: rate_hz, inner, queue. Did you mean 'process'?",
        ),
        ({"rate_hz": -1}, "nodes.camera: rate_hz: found a negative rate"),
        ({"keep": 2}, "nodes.camera: 'keep' is now called 'queue'"),
        ({"own_m": [1]}, "nodes.camera: unknown key 'own_m'"),  # renamed, but to nothing that Outer knows
        ({"pick": "latest"}, "nodes.camera: 'pick' is now called 'sync', one level below: inner: {sync: …}"),
        ({"inner": {"pick": "latest"}}, "nodes.camera.inner: 'pick' is now called 'sync'"),
        ({"inner": {"width": 1}}, "nodes.camera.inner: unknown key 'width'"),
        ({"width_m": 1}, "Inner takes it, one level below: inner: {width_m: …}"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_fix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        construct(Outer, options, "nodes.camera", reserved=("process",))


def test_a_renamed_key_names_a_word_that_is_in_use() -> None:
    assert set(plugins.RENAMED) & set(plugins.RENAMED.values()) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width_px": 2_000_000}, "width_px: found 2000000, expected at most 65,536"),
        ({"height_px": 10**30}, "height_px: found 1"),
        ({"rate_hz": 1e308}, r"rate_hz: found 1e\+308, expected at most 1,000,000"),
        ({"rate_hz": float("nan")}, "rate_hz: found nan, expected a finite number"),
        ({"rate_hz": float("-inf")}, "rate_hz: found -inf, expected a finite number"),
    ],
)
def test_a_number_that_no_node_could_work_with_is_refused(options: dict[str, Any], message: str) -> None:
    from nodes.synthetic import Synthetic

    with pytest.raises(ConfigError, match=message):
        check_options(Synthetic, options, "nodes.camera")
