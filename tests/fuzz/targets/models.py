"""Models and data sets of others: ONNX files, their manifests, data sets, clouds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.clouds import read_points
from pipeline.errors import ConfigError
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.manifest import METADATA_KEY, Manifest, TensorInfo
from pipeline.inference.onnx_file import OnnxFile
from pipeline.recording import dataset
from tests.fuzz.harness import Reader, target
from tests.fuzz.targets.settings import file_reader


def _model() -> onnx.ModelProto:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    values = [helper.make_tensor_value_info(name, kind, ["n", 4]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _manifest() -> Manifest:
    ends = [TensorInfo(name, ("n", 4), "float32", "numbers") for name in ("x", "y")]
    return Manifest("m", "emotion", (ends[0],), (ends[1],), ("a", "b", "c", "d"), 1.5, "none", "none", "test")


def _written(path: Path) -> bytes:
    onnx.save(_model(), str(path))
    _manifest().write(path)
    return path.read_bytes()


@target("manifest", weight=60)
def manifest(folder: Path) -> Reader:
    """ONNX files and their manifests."""
    sample = _written(folder / "sample.onnx")
    stored = asdict(Manifest.read(folder / "sample.onnx"))

    def with_manifest(tree: Any) -> bytes:
        model = onnx.load_from_string(sample)
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(tree)})
        return bytes(model.SerializeToString())

    return file_reader(folder, "x.onnx", Manifest.read, [sample], trees=[stored], encode=with_manifest)


@target("onnx", weight=6)
def graph(folder: Path) -> Reader:
    """ONNX graphs, up to an engine that runs them."""
    sample = _written(folder / "sample.onnx")

    def read(path: Path) -> object:
        OnnxFile.read(path)
        engine = Onnxruntime(path, threads=1, device="cpu")
        shape = next(iter(engine.inputs.values()), ())
        if tuple(shape[1:]) != (4,):
            raise ConfigError("x.onnx: not the input that the task has")
        return engine.run({next(iter(engine.inputs)): np.ones((1, 4), np.float32)})

    return file_reader(folder, "x.onnx", read, [sample])


@target("data-set", weight=6)
def data_set(folder: Path) -> Reader:
    """Data sets (JSON and NPZ)."""
    face = dataset.Modality("embedding", np.ones((3, 2), np.float32), np.ones(3, bool), np.zeros(3, np.int64))
    rows = dataset.Rows(("a",), np.zeros(3, np.int64), np.full(3, "g"), np.arange(3), {"face": face})
    dataset.save(folder / "set", rows)
    names = ("dataset.json", "rows.npz")
    whole = [(folder / "set" / name).read_bytes() for name in names]

    def read(data: bytes) -> object:
        which = data[0] % 2 if data else 0
        path = folder / "set" / names[which]
        path.write_bytes(data[1:])
        try:
            loaded = dataset.load(folder / "set")
            if which == 1:  # the archive has checksums
                assert np.array_equal(loaded.modalities["face"].values, face.values), "other values than were written"
                assert np.array_equal(loaded.capture_ns, rows.capture_ns), "other times than were written"
            return loaded
        finally:
            path.write_bytes(whole[which])

    tree = json.loads(whole[0])
    samples = [bytes([i]) + raw for i, raw in enumerate(whole)]
    return Reader(samples, read, [tree], lambda tree: b"\0" + json.dumps(tree).encode(), names="/set")


def _clouds(folder: Path, name: str, samples: list[bytes]) -> Reader:
    return file_reader(folder, name, read_points, samples)


PCD = """# .PCD v0.7
VERSION 0.7
FIELDS x y z intensity
SIZE 4 4 4 4
TYPE F F F F
COUNT 1 1 1 1
WIDTH 3
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 3
DATA {}
"""


@target("pcd", weight=30)
def pcd(folder: Path) -> Reader:
    """Clouds in PCD files."""
    text = PCD.format("ascii").encode() + b"1 2 3 4\n5 6 7 8\n9 1 2 3\n"
    binary = PCD.format("binary").encode() + np.arange(12, dtype="<f4").tobytes()
    return _clouds(folder, "x.pcd", [text, binary])


@target("cloud-text", weight=30)
def cloud_text(folder: Path) -> Reader:
    """Clouds in text files."""
    return _clouds(folder, "x.csv", [b"x,y,z\n1,2,3\n4.5,-6,7e-1\n"])


@target("npy", weight=20)
def npy(folder: Path) -> Reader:
    """Clouds in NPY files."""
    np.save(folder / "sample.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    return _clouds(folder, "x.npy", [(folder / "sample.npy").read_bytes()])
