"""Joins the encoders and the fusion into one ONNX graph, so that a set needs one call (on a GPU one enqueue).

The joined graph predicts for one moment: nothing is smoothed between the encoders and the fusion, and the voice encoder
runs whenever the face encoder does. The live task smooths faces and runs the voice encoder four times a second, so it
runs them separately; docs/engines.md has the figures. `benchmarks.fused` measures both.

Example:
    join(face, voice, fusion, out)       # face (n, 1, 48, 48), voice (1, 2, 64, 300), present (n, 2) → logits (n, 7)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from pipeline.errors import ConfigError
from pipeline.inference.manifest import METADATA_KEY, Manifest
from pipeline.inference.onnx_file import OnnxFile


def join(face: Path, voice: Path, fusion: Path, out: Path) -> None:
    """Each file has a manifest, or is an untrained one with the same inputs.

    Raises ConfigError where they do not fit.
    """
    fusion_inputs = {value.name for value in OnnxFile.read(fusion).inputs}
    if fusion_inputs != {"face", "voice", "present"}:
        raise ConfigError(f"{fusion}: its inputs are {sorted(fusion_inputs)}; expected face, voice and present")
    encoders = {
        name: compose.add_prefix(_loaded(path), f"{name}_") for name, path in (("face", face), ("voice", voice))
    }
    _fix_batch_to_one(encoders["voice"].graph)
    between = _calibration_nodes({name: _temperature(path) for name, path in (("face", face), ("voice", voice))})
    opinions = encoders["face"]
    opinions = compose.merge_models(opinions, encoders["voice"], io_map=[])
    opinions = compose.merge_models(
        opinions,
        between,
        io_map=[("face_logits", "face_logits_in"), ("voice_logits", "voice_logits_in")],
        outputs=["face_opinion", "voice_opinion"],
    )
    joined = compose.merge_models(
        opinions,
        compose.add_prefix(_loaded(fusion), "fusion_"),
        io_map=[("face_opinion", "fusion_face"), ("voice_opinion", "fusion_voice")],
    )
    renamed = {
        f"face_{OnnxFile.read(face).inputs[0].name}": "face",
        f"voice_{OnnxFile.read(voice).inputs[0].name}": "voice",
        "fusion_present": "present",
        "fusion_logits": "logits",
    }
    _rename(joined.graph, renamed)
    onnx.checker.check_model(joined)
    onnx.save(joined, str(out))


def _loaded(path: Path) -> onnx.ModelProto:
    model = onnx.load(str(path))
    del model.metadata_props[:]
    return model


def _fix_batch_to_one(graph: onnx.GraphProto) -> None:
    """A set has one window of sound and any number of faces: dynamic dimensions of one name would be equal."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1


def _temperature(path: Path) -> float:
    return Manifest.read(path).temperature if METADATA_KEY in OnnxFile.read(path).metadata else 1.0


def _calibration_nodes(temperatures: dict[str, float]) -> onnx.ModelProto:
    """Logits of each → calibrated log-probabilities (n, 1, labels); one voice for every face."""
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "g_axis"),
        numpy_helper.from_array(np.float32(0), "g_nothing"),
    ]
    nodes = []
    for name, temperature in temperatures.items():
        constants.append(numpy_helper.from_array(np.float32(temperature), f"g_{name}_t"))
        nodes += [
            helper.make_node("Div", [f"{name}_logits_in", f"g_{name}_t"], [f"g_{name}_scaled"]),
            helper.make_node("LogSoftmax", [f"g_{name}_scaled"], [f"g_{name}_log"], axis=1),
            helper.make_node("Unsqueeze", [f"g_{name}_log", "g_axis"], [f"g_{name}_row"]),
        ]
    nodes += [
        helper.make_node("Mul", ["g_face_row", "g_nothing"], ["g_rows"]),
        helper.make_node("Add", ["g_voice_row", "g_rows"], ["voice_opinion"]),
        helper.make_node("Identity", ["g_face_row"], ["face_opinion"]),
    ]
    inputs = [
        helper.make_tensor_value_info(f"{name}_logits_in", TensorProto.FLOAT, [batch, "labels"])
        for name, batch in zip(temperatures, ("n", 1), strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(f"{name}_opinion", TensorProto.FLOAT, ["n", 1, "labels"]) for name in temperatures
    ]
    graph = helper.make_graph(nodes, "calibration", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for values in (graph.input, graph.output):
        for value in values:
            value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
