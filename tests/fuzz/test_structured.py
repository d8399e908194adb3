"""Structured inputs, drawn by Hypothesis: nested values of every type where files and messages hold values.

Where `test_fuzz` alters samples, these are built from nothing; Hypothesis shrinks what fails to its smallest form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pipeline.errors import SensoriumError
from tests.fuzz import targets
from tests.fuzz.harness import TARGETS, Reader

assert targets
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["Frame", "Hello", "config", "arrival", "nan", "1e400", "../x", "2001-99-99", "camera"]),
)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=40,
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=40,
)
NAMES = st.sampled_from(
    ["version", "intrinsics", "poses", "camera", "cam0", "model", "matrix", "K", "D", "image_width", "do", "source"]
)
TABLES = st.dictionaries(NAMES | st.text(max_size=8), JSON_VALUES, max_size=6)
BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    names = ("wire", "control", "compression", "page", "event-log", "yaml", "rig", "camera-info", "kalibr", "manifest")
    return {name: TARGETS[name].make(tmp_path_factory.mktemp(name)) for name in names}


def accepts_or_refuses(reader: Reader, data: bytes) -> None:
    try:
        reader.read(data)
    except SensoriumError as error:
        assert str(error).strip() and reader.names in str(error)


@pytest.mark.parametrize("name", ["control", "compression"])
@seed(1)
@BOUNDED
@given(value=VALUES)
def test_any_msgpack_is_a_message_or_refused(readers: dict[str, Reader], name: str, value: Any) -> None:
    for tree in (value, [1, 1, 1, value], [1, 1, 1, ["Frame", value]]):
        accepts_or_refuses(readers[name], msgpack.packb(tree, unicode_errors="surrogatepass"))


@pytest.mark.parametrize("name", ["page", "event-log"])
@seed(1)
@BOUNDED
@given(value=JSON_VALUES | TABLES)
def test_any_json_is_read_or_refused(readers: dict[str, Reader], name: str, value: Any) -> None:
    accepts_or_refuses(readers[name], json.dumps(value).encode())


@pytest.mark.parametrize("name", ["yaml", "rig", "camera-info", "kalibr"])
@seed(1)
@BOUNDED
@given(value=JSON_VALUES | TABLES)
def test_any_yaml_is_read_or_refused(readers: dict[str, Reader], name: str, value: Any) -> None:
    accepts_or_refuses(readers[name], yaml.safe_dump(value).encode("utf-8", "surrogatepass"))


@seed(1)
@BOUNDED
@given(value=JSON_VALUES | TABLES)
def test_any_manifest_is_read_or_refused(readers: dict[str, Reader], value: Any) -> None:
    reader = readers["manifest"]
    assert reader.encode is not None
    accepts_or_refuses(reader, reader.encode(value))


@pytest.mark.parametrize("depth", [10, 600, 5000, 100_000])
def test_nesting_is_refused_not_followed(readers: dict[str, Reader], depth: int) -> None:
    for name in ("wire", "control", "compression"):
        head = b"\xff\xff\x1f\x00" if name == "wire" else b""  # the length of a part
        for opening in (b"\x91", b"\x81\xa1a", b"\x94\x01\x01\x01" + b"\x91"):
            accepts_or_refuses(readers[name], head + opening * depth)
    for name in ("page", "event-log", "yaml", "rig", "camera-info", "kalibr"):
        for opening in (b"[", b'{"a":', b"- ", b"a: &a [*a, "):
            accepts_or_refuses(readers[name], opening * depth)


def test_every_target_has_samples_that_it_accepts(tmp_path: Path) -> None:
    for name, target in TARGETS.items():
        (tmp_path / name).mkdir()
        try:
            reader = target.make(tmp_path / name)
        except ModuleNotFoundError:
            continue
        assert reader.samples and target.what, name
        for sample in reader.samples:
            reader.read(sample)
