"""Encoders and fusion as one engine beside three engines called in turn, on the backend that `auto` takes here.

Example:
    python run_pipeline.py bench fused [--voice FILE.onnx] [--fusion FILE.onnx] [--rounds 60]

`live` is what the emotion task does: the face's encoder and the fusion for every picture of 30 a second, the voice's
encoder four times a second. One engine runs the voice's encoder for every picture too.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.inference.choose_backend import load
from pipeline.inference.engine import Tensors
from pipeline.inference.manifest import METADATA_KEY, Manifest
from pipeline.inference.onnx_file import OnnxFile
from pipeline.installation import MODELS
from pipeline.perception import parity_samples
from pipeline.probabilities import log_softmax
from pipeline.training.export import fused

PICTURES_HZ, DECISIONS_HZ = 30, 4


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("face", "voice", "fusion"):
        options.add_argument(f"--{name}", type=Path, default=MODELS / f"{name}-expression.onnx")
    options.add_argument("--rounds", type=int, default=60)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.onnx"
        fused.join(chosen.face, chosen.voice, chosen.fusion, joined)
        for faces in (1, 4):
            print(compare(chosen.face, chosen.voice, chosen.fusion, joined, faces=faces, rounds=chosen.rounds))


def compare(face: Path, voice: Path, fusion: Path, joined: Path, *, faces: int, rounds: int) -> str:
    faces_tensor = next(batch for batch in parity_samples.of(face) if len(batch["face"]) >= faces)["face"][:faces]
    window = {name: value[:1] for name, value in next(iter(parity_samples.of(voice))).items()}
    present = np.ones((faces, 2), np.float32)
    whole = {"face": faces_tensor, "voice": next(iter(window.values())), "present": present}
    shapes = [
        {name: value.shape for name, value in inputs.items()} for inputs in ({"face": faces_tensor}, window, whole)
    ]
    opinion = {"face": (faces, 1, 7), "voice": (faces, 1, 7), "present": (faces, 2)}
    quiet = logging.getLogger("bench")
    face_engine, voice_engine = (
        load(path, warm_up=shape, log=quiet) for path, shape in ((face, shapes[0]), (voice, shapes[1]))
    )
    fusion_engine, one = load(fusion, warm_up=opinion, log=quiet), load(joined, warm_up=shapes[2], log=quiet)
    temperatures = [_temperature(path) for path in (face, voice)]

    def run_face() -> Tensors:
        return face_engine.run({"face": faces_tensor})

    def run_voice() -> Tensors:
        return voice_engine.run(window)

    face_opinion, voice_opinion = (
        log_softmax(call()["logits"], temperature=temperature).astype(np.float32)[:, None]
        for call, temperature in zip((run_face, run_voice), temperatures, strict=True)
    )
    voice_opinion = np.repeat(voice_opinion, faces, axis=0)

    def fuse() -> Tensors:
        return fusion_engine.run({"face": face_opinion, "voice": voice_opinion, "present": present})

    apart = np.abs(np.exp(fuse()["logits"]) - np.exp(one.run(whole)["logits"])).max()
    cost = _in_turns(
        {"face": run_face, "voice": run_voice, "fusion": fuse, "one engine": lambda: one.run(whole)}, rounds
    )
    three = cost["face"] + cost["voice"] + cost["fusion"]
    live = cost["face"] + cost["fusion"] + cost["voice"] * DECISIONS_HZ / PICTURES_HZ
    parts = ", ".join(f"{name} {cost[name]:.2f}" for name in ("face", "voice", "fusion"))
    return (
        f"{faces} face{'s' if faces > 1 else ''}, {one.description}; ms of CPU p50: "
        f"one engine {cost['one engine']:.2f}, "
        f"three {three:.2f} ({parts}), live {live:.2f}; apart by {apart:.0e}"
    )


def _in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    spent_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began_ns = time.thread_time_ns()
            call()
            spent_ms[name].append((time.thread_time_ns() - began_ns) / 1e6)
    return {name: float(np.median(values)) for name, values in spent_ms.items()}


def _temperature(path: Path) -> float:
    return Manifest.read(path).temperature if METADATA_KEY in OnnxFile.read(path).metadata else 1.0


if __name__ == "__main__":
    main()
