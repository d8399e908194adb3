"""Aligned sets for the emotion task, and small networks with known or random answers in place of the trained ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline import assets
from pipeline.errors import AssetError
from pipeline.frame import AlignedSet, Frame, Receipt
from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.perception.expression.fusion import Fusion
from pipeline.perception.expression.modalities import Evidence
from pipeline.tasks.emotion import Emotion

MS = 1_000_000
LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
PERIOD_NS = 1_001 * 1_000 * MS // 24_000
RATE_HZ = 16_000


def random_face_model(folder: Path) -> Path:
    """face (n, 1, 48, 48) → logits (n, 7), embedding (n, 7): one random matrix, with a manifest."""
    matrix = np.random.default_rng(3).normal(0, 0.1, (48 * 48, 7)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["face"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        helper.make_node("Identity", ["logits"], ["embedding"]),
    ]
    face = helper.make_tensor_value_info("face", TensorProto.FLOAT, ["n", 1, 48, 48])
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 7]) for name in ("logits", "embedding")]
    graph = helper.make_graph(nodes, "random", [face], out, [numpy_helper.from_array(matrix, "matrix")])
    path = folder / "random.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    Manifest(
        name="random",
        task="emotion",
        inputs=(TensorInfo("face", ("n", 1, 48, 48), "float32", ""),),
        outputs=tuple(TensorInfo(name, ("n", 7), "float32", "") for name in ("logits", "embedding")),
        labels=LABELS,
        temperature=1.5,
        training_data="none",
        licence="Apache-2.0",
        made_by="this test",
    ).write(path)
    return path


def voice_model(
    folder: Path,
    *,
    label: str,
    labels: Sequence[str] = LABELS,
    shape: tuple[int, ...] = (2, 64, 300),
    sure: float = 6.0,
    name: str = "voice",
    licence: str = "CC BY-NC-SA 4.0: not for commercial use",
) -> Path:
    """A voice network that answers `label`, whatever its input is."""
    flat = int(np.prod(shape))
    bias = np.float32([sure if each == label else 0.0 for each in labels])
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["nothing"]),
        helper.make_node("Add", ["nothing", "bias"], ["logits"]),
    ]
    tensor = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(labels)])
    stored = [
        numpy_helper.from_array(np.zeros((flat, len(labels)), np.float32), "matrix"),
        numpy_helper.from_array(bias, "bias"),
    ]
    path = folder / f"always-{label}-{len(labels)}-{name}.onnx"
    graph = helper.make_graph(nodes, "stand-in", [tensor], [out], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    Manifest(
        name="stand-in",
        task="emotion",
        inputs=(TensorInfo(name, ("n", *shape), "float32", ""),),
        outputs=(TensorInfo("logits", ("n", len(labels)), "float32", ""),),
        labels=tuple(labels),
        temperature=1.0,
        training_data="none",
        licence=licence,
        made_by="this test",
    ).write(path)
    return path


def opened(model: Path, **options: Any) -> Emotion:
    """Without a voice, unless one is named."""
    task = Emotion(model=str(model), **{"voice": "none", **options})
    try:
        task.open("auto")
    except AssetError as error:
        pytest.skip(str(error))
    return task


def asset(name: str) -> Path:
    try:
        return assets.path(name)
    except AssetError as error:
        pytest.skip(str(error))


def clip(first: int, count: int, step: int = 1) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Index and picture of every `step`-th frame of the demo clip, from `first` on."""
    with av.open(str(asset("demo-clip"))) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i >= first + count:
                return
            if i >= first and (i - first) % step == 0:
                yield i, frame.to_ndarray(format="bgr24")


def camera(seq: int, image: np.ndarray[Any, Any], encoding: str = "bgr8") -> Frame:
    return Frame("webcam", seq, seq * PERIOD_NS, encoding, image)  # type: ignore[arg-type]


def silence(first_seq: int, count: int) -> list[Frame]:
    """20 ms chunks of zeros."""
    return [
        Frame("mic", i, i * 20 * MS, "pcm_f32", np.zeros(320, np.float32), 20 * MS)
        for i in range(first_seq, first_seq + count)
    ]


def speech(first_seq: int, count: int, *, gain: float = 0.1, noise: float = 1e-4) -> list[Frame]:
    """20 ms chunks: syllables of a buzz, four a second, over a little noise."""
    at = np.arange(first_seq * 320, (first_seq + count) * 320)
    buzz = np.sign(np.sin(2 * np.pi * 120 * at / RATE_HZ)) * (np.sin(2 * np.pi * 4 * at / RATE_HZ) > 0)
    samples = (gain * buzz + np.random.default_rng(first_seq).normal(0, noise, len(at))).clip(-1, 1).astype(np.float32)
    return [
        Frame("mic", first_seq + i, (first_seq + i) * 20 * MS, "pcm_f32", samples[i * 320 : (i + 1) * 320], 20 * MS)
        for i in range(count)
    ]


def aligned(*frames: Frame, missing: tuple[str, ...] = (), anchor_ns: int | None = None) -> AlignedSet:
    streams: dict[str, tuple[Frame, ...]] = {}
    for frame in frames:
        streams[frame.stream] = (*streams.get(frame.stream, ()), frame)
    receipts = [Receipt(stream, "exact", tuple(f.seq for f in matched)) for stream, matched in streams.items()]
    receipts += [Receipt(stream, "late", reason="nothing until the deadline") for stream in missing]
    at_ns = frames[0].capture_ns if anchor_ns is None else anchor_ns
    return AlignedSet("webcam", at_ns, streams, tuple(receipts), missing, arrival_ns=5 * MS, sent_ns=7 * MS)


def cases(fusion: Fusion, face: np.ndarray, voice: np.ndarray, present: np.ndarray) -> list[dict[str, Evidence]]:
    """face, voice: (n, labels) log-probabilities. present: (n, 2) their weights."""

    def evidence(name: str, log_probs: np.ndarray, weight: float) -> Evidence:
        return fusion.modalities.from_encoder(
            name, log_probs, weight, "", stream=name, offset_s=0.0, probs=np.exp(log_probs)
        )

    return [
        {"face": evidence("face", f, float(weights[0])), "voice": evidence("voice", v, float(weights[1]))}
        for f, v, weights in zip(face, voice, present, strict=True)
    ]
