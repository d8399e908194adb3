"""`import pipeline` exports all that is public, loads nothing until it is used, and is typed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from typing import assert_type
from collections.abc import Iterator

import pipeline
from pipeline import Frame, Prediction, Subscription

predictions: Iterator[Prediction] = pipeline.subscribe("emotion")
for prediction in pipeline.subscribe("emotion"):
    assert_type(prediction, Prediction)
    assert_type(prediction.label, str | None)
for frame in pipeline.subscribe("camera", Frame):
    assert_type(frame.capture_ns, int)
for health in pipeline.subscribe("health"):
    assert_type(health, pipeline.Health)


class Thermometer(pipeline.Source):
    def info(self) -> pipeline.StreamInfo:
        return pipeline.StreamInfo(self.name, "series_f32", 1.0)

    def frames(self, clock: pipeline.Clock) -> Iterator[Frame]:
        while clock.sleep_until(clock.now_ns(), self.context.stopping):
            yield pipeline.silence(self.name, clock.now_ns(), "unplugged")


class Mood(pipeline.Task):
    labels = ("good", "bad")

    def predict(self, aligned: pipeline.AlignedSet) -> Prediction:
        return self.prediction(aligned, None)
"""


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(pipeline, name) is not None


def test_what_type_checkers_see_is_what_is_exported() -> None:
    tree = ast.parse((ROOT / "pipeline" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        f"{statement.module}:{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == {f"{module}:{name}" for name, module in pipeline._MODULE_OF.items()}
    assert set(pipeline.__all__) == set(pipeline._MODULE_OF) <= set(dir(pipeline))


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'subscrib'"):
        pipeline.subscrib  # noqa: B018


def test_importing_it_loads_nothing() -> None:
    program = (
        "import sys, pipeline; print(sorted({m.partition('.')[0] for m in sys.modules} & {'numpy', 'zmq', 'cv2'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_program_of_a_user_is_checked_by_mypy(tmp_path: Path) -> None:
    mypy_api = pytest.importorskip("mypy.api")
    assert (ROOT / "pipeline" / "py.typed").is_file()  # else type checkers ignore an installed package
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    out, errors, status = mypy_api.run([*arguments, str(tmp_path / "program.py")])
    assert (status, errors) == (0, ""), out
