"""Three ways to read a running pipeline, and its published schema. Its nodes are those of third_party.py."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import websockets.sync.client
from running import Running, a_file, finished, running, wait_for

import pipeline
from pipeline import frame, scene_state
from pipeline.frame import Prediction
from pipeline.transport import wire_format

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text()
SCHEMA = json.loads((ROOT / "docs" / "prediction.schema.json").read_text())

THIRD_PARTY = """
    camera: {use: synthetic, encoding: series_f32, rate_hz: 40, seed: 1}
    smooth: {use: "third_party:Smoother", inputs: [camera], process: one}
    align: {use: align, inputs: [camera, smooth], anchor: camera, process: one,
            sync: {smooth: {policy: "third_party:First"}}}
    emotion: {use: infer, task: "third_party:Mood", inputs: [align], process: one, options: {threshold: 0.5}}
"""


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def run(port: int) -> Iterator[Running]:
    page = f"page: {{use: dashboard, inputs: [emotion, health], port: {port}}}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sensorium-test-")))
        run = stack.enter_context(running(folder, "run", a_file(folder, THIRD_PARTY + page)))
        wait_for(lambda: "Page:" in run.out or run.process.poll() is not None, "the page")
        yield run
        run.interrupt()
        assert run.wait() == 0, run.err


def program(run: Running, text: str, first_lines: int, **more: str) -> list[str]:
    """The first lines that a program prints, as a user would run it: in a process and a folder of its own."""
    environment = {"XDG_RUNTIME_DIR": str(run.folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more
    command = [sys.executable, "-c", text]
    with subprocess.Popen(
        command, cwd="/", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            assert started.stdout is not None and started.stderr is not None
            lines = [started.stdout.readline().strip() for _ in range(first_lines)]
            assert all(lines), started.stderr.read()
            return lines
        finally:
            started.kill()


def example(number: int) -> str:
    """The nth Python program of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[number]


# --- three ways -------------------------------------------------------------------------------------------------------


def test_three_lines_of_python_print_predictions(run: Running) -> None:
    for line in program(run, example(0), 3):
        assert re.fullmatch(r"(good|bad) \(\)", line), line


def test_program_without_our_package_prints_predictions(run: Running) -> None:
    assert re.findall(r"^import (.*)", example(1), re.MULTILINE) == ["glob, json, msgpack, os, tempfile, zmq"]
    for line in program(run, example(1), 3):
        assert re.fullmatch(r"(good|bad) \[\]", line), line


def test_program_without_our_package_looks_where_the_page_says_and_nowhere_else(run: Running, tmp_path: Path) -> None:
    other = tmp_path / f"sensorium-{os.getuid()}" / "1-other"  # a newer run of somebody who has no XDG_RUNTIME_DIR
    other.mkdir(parents=True)
    (other / "graph.json").write_text('{"pid": 1, "streams": {"emotion": "ipc:///nowhere.sock"}}')
    os.utime(other / "graph.json", (4e9, 4e9))
    for line in program(run, example(1), 3, TMPDIR=str(tmp_path)):
        assert re.fullmatch(r"(good|bad) \[\]", line), line


def test_program_without_our_package_is_fifteen_lines() -> None:
    assert len([line for line in example(1).splitlines() if line.strip()]) <= 16


def test_page_sends_predictions_as_json(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run.folder))
    address = pipeline.page_address("ws") + "&pictures=0"
    with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
        websockets.sync.client.connect(address.partition("?")[0])
    with websockets.sync.client.connect(address) as browser:
        message = (json.loads(text) for text in browser if isinstance(text, str))
        prediction = next(message for message in message if message["type"] == "prediction")
    del prediction["type"]
    jsonschema.validate(prediction, SCHEMA)
    assert prediction["label"] in ("good", "bad")


def test_pick_rule_of_a_third_party_chose_the_frames(run: Running) -> None:
    lines = program(
        run,
        "import pipeline\nfor p in pipeline.subscribe('emotion', wait_s=20): print(p.receipts[1].reason, p.model)",
        3,
    )
    assert set(lines) == {"the first after mood@1"}


# --- the published schema ---------------------------------------------------------------------------------------------


def test_every_line_of_out_follows_the_schema(folder: Path) -> None:
    done = finished(folder, "run", a_file(folder, THIRD_PARTY), "--for", "500ms", "--out", "p.jsonl")
    lines = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    assert done.returncode == 0 and len(lines) > 5, done.stderr
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    assert [line.get("summary") for line in lines] == [None] * (len(lines) - 1) + [True]


def a_prediction() -> dict[str, Any]:
    receipt = frame.Receipt("camera", "exact", (1,))
    subject = frame.Subject(1, (0, 0, 10, 10), (0.75, 0.25))
    timing = {"wait": 1, "infer": 2, "total": 3}
    opinions = (
        frame.Opinion("face", "camera", 0.9, (0.75, 0.25), "blurred", np.float32([0.5, -1])),
        frame.Opinion("voice", "microphone", 0.0, (), "nobody speaks"),
    )
    return Prediction(
        "emotion",
        1,
        ("a", "b"),
        np.float32([0.75, 0.25]),
        "a",
        "m@1",
        (subject,),
        ("camera",),
        (),
        (receipt,),
        None,
        timing,
        opinions,
    ).record()


def test_schema_takes_a_prediction_with_everything() -> None:
    jsonschema.validate(a_prediction(), SCHEMA)


@pytest.mark.parametrize("key", sorted(a_prediction()))
def test_schema_asks_for_every_field(key: str) -> None:
    line = a_prediction()
    del line[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(line, SCHEMA)


def test_schema_refuses_a_field_that_it_does_not_describe() -> None:
    with pytest.raises(jsonschema.ValidationError, match="mood"):
        jsonschema.validate(a_prediction() | {"mood": 1}, SCHEMA)


def test_schema_lists_every_state_of_a_receipt() -> None:
    assert SCHEMA["$defs"]["receipt"]["properties"]["state"]["enum"] == list(typing.get_args(frame.ReceiptState))


# --- the page cannot drift from the structs ---------------------------------------------------------------------------


def type_on_the_page(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is np.ndarray:
        return "array"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nil" if a is type(None) else type_on_the_page(a) for a in arguments)
    if origin is typing.Literal:
        return "str"
    if origin is tuple:
        inner = [type_on_the_page(a) for a in arguments if a is not Ellipsis]
        return f"[{inner[0]} …]" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return f"{{{type_on_the_page(arguments[0])}: {type_on_the_page(arguments[1])}}}"
    return str(kind.__name__)


@pytest.mark.parametrize("name", re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))
def test_table_of_the_page_is_the_struct(name: str) -> None:
    struct = next(getattr(m, name) for m in (wire_format, frame, scene_state) if hasattr(m, name))
    rows = re.search(rf"### {name}\n\n\|.*\n\|.*\n((?:\|.*\n)+)", PAGE)
    assert rows
    documented = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows[1].splitlines()]
    tag = [["0", "", "str"]] if struct.__struct_config__.tag else []
    fields = [
        [str(i), field.name, "[…]" if field.name == "value" else type_on_the_page(field.type)]
        for i, field in enumerate(msgspec.structs.fields(struct), start=len(tag))
    ]
    assert documented == tag + fields


def test_page_tells_every_message_that_a_reader_meets() -> None:
    inside = {"Report", "Fault", "Request", "Ping", "Pong"}  # of launchers, processes and other hosts
    messages = {kind.__name__ for kind in typing.get_args(wire_format.Value)} - inside
    assert messages <= set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE))


def test_page_tells_every_dtype_and_encoding() -> None:
    assert all(dtype in PAGE for dtype in wire_format.DTYPES)
    assert all(encoding in PAGE for encoding in typing.get_args(frame.Encoding))
