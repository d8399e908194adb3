"""`nodes` and `tasks`: what is listed, and that every option is described from the code."""

from __future__ import annotations

import pytest

from pipeline.cli.describe import (
    INPUT_KEYS,
    KINDS,
    NODE_KEYS,
    documented,
    in_yaml,
    options_of,
    print_described,
    print_list,
)
from pipeline.errors import ConfigError
from pipeline.node import Node, Source
from pipeline.plugins import all_named
from pipeline.runtime import config
from pipeline.task import Task, find_task


class Thermometer(Source):
    """Degrees.

    Args:
        port: Where it is connected
            (a serial port).
        rate_hz: Readings a second (> 0).

    Raises:
        DeviceError: It is not connected.
    """

    def __init__(self, *, port: str, rate_hz: float = 1.0, offset_ms: float | None = None) -> None:
        super().__init__(offset_ms=offset_ms)


def test_args_of_a_docstring_are_read_with_their_continuation_lines() -> None:
    assert documented(Thermometer.__doc__) == {
        "port": "Where it is connected (a serial port).",
        "rate_hz": "Readings a second (> 0).",
    }


def test_options_are_the_constructor_s_with_type_default_and_meaning() -> None:
    port, rate, offset = options_of(Thermometer)
    assert (port.name, port.type, port.default) == ("port", "str", "")
    assert (rate.name, rate.type, rate.default, rate.text) == ("rate_hz", "float", "1.0", "Readings a second (> 0).")
    assert offset.default == "null" and "every capture time" in offset.text  # described by Source, for every sensor


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ((1, "a"), "[1, a]"), ("", "''"), (2.5, "2.5")]
)
def test_defaults_are_written_as_in_a_config(value: object, text: str) -> None:
    assert in_yaml(value) == text


def test_keys_of_nodes_and_inputs_are_those_of_the_config() -> None:
    assert set(NODE_KEYS) == set(config.RESERVED) and set(INPUT_KEYS) == set(config.INPUT_KEYS)


def test_a_node_is_described_with_what_every_node_and_every_sensor_has(capsys: pytest.CaptureFixture[str]) -> None:
    print_described("camera", Node)
    text = capsys.readouterr().out
    assert "device: int | str = 0" in text and "offset_ms: float | None = null" in text
    assert all(f"  {key}\n" in text for key in ("optional", "process", "host", "restarts"))
    assert "\n  inputs\n" not in text  # a source has none


def test_every_task_is_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    print_list(Task)
    listed = capsys.readouterr().out
    for name in ("emotion", "scene", "objects", "obstacles", "place", "sounds"):
        assert f"  {name} " in listed
        print_described(name, Task)
        assert f"Options of {name}" in capsys.readouterr().out


@pytest.mark.parametrize("base", [Node, Task])
def test_every_option_of_every_node_and_task_is_documented(base: type) -> None:
    _, package = KINDS[base]
    silent = [
        f"{name}.{option.name}"
        for name, kind in all_named(base, package).items()
        for option in options_of(kind)
        if not option.text
    ]
    assert silent == []


def test_a_task_asked_for_as_a_node_is_recognised_and_the_other_way_round() -> None:
    with pytest.raises(ConfigError, match="emotion is a task, not a node. See: .* tasks emotion"):
        print_described("emotion", Node)
    with pytest.raises(ConfigError, match="camera is a node, not a task. See: .* nodes camera"):
        find_task("camera")
    with pytest.raises(ConfigError, match=r"mine.yaml: nodes.emotion.use: emotion is a task, not a node"):
        config.resolve("emotion", "mine.yaml: nodes.emotion")
