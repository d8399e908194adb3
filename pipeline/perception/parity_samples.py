"""Inputs that engines are compared on: at least 256 of each model, the same on every machine and at every call.

Faces and pictures are cut from the packaged clip and perturbed by a seeded generator; sounds are synthetic voices (no
clip with speech comes in a package under terms we can ship); opinions are drawn over all of their range, with each
modality present or absent. Computed on demand, since they are 3 to 50 MB and only a new engine needs them.

Example:
    for inputs in parity_samples.of(Path("models/face-expression.onnx")): engine.run(inputs)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.errors import ConfigError
from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.inference.engine import Tensors
from pipeline.inference.onnx_file import OnnxFile, Value
from pipeline.perception.expression.faces import INPUT as PICTURE
from pipeline.perception.expression.faces import WINDOW_PX, FaceDetector
from pipeline.preprocessing import (
    VOICE_FRAMES,
    VOICE_HOP,
    VOICE_RATE_HZ,
    face_crop,
    face_tensor,
    letterbox,
    place_tensor,
    voice_tensor,
)

Floats = npt.NDArray[np.float32]

COUNT = 256
BATCHES = (1, 3, 4, 8, 2)  # in turn: every size that is run alone, filled up, and as it is
PICTURES, LOOKS = 32, 8  # pictures of the clip; perturbations of each


def of(model_path: Path, *, seed: int = 0) -> Iterator[Tensors]:
    """Batches of inputs of this model; another seed, other pictures and other draws. Raises ConfigError for a model
    whose inputs are none that are known here."""
    inputs = {value.name: value for value in OnnxFile.read(model_path).inputs}
    generate = GENERATORS.get(frozenset(inputs))
    if generate is None and (size_px := _one_picture(tuple(inputs.values()))):
        return _letterboxed(next(iter(inputs)), size_px, seed)
    if generate is None:
        raise ConfigError(
            f"{model_path}: there are no samples for the inputs {sorted(inputs)}. Known: "
            f"{', '.join(' + '.join(sorted(names)) for names in GENERATORS)}"
        )
    return _batched(generate(inputs, seed))


def faces(inputs: dict[str, Value], seed: int) -> Tensors:
    """(256, 1, 48, 48): the clip's face from sad to happy, moved, turned, scaled, blurred, dimmed, mirrored, noisy."""
    random = np.random.default_rng([1, seed])
    detector = FaceDetector(Onnxruntime(assets.path("centerface"), threads=1, device="cpu"))
    crops = []
    for image in _pictures(PICTURES, seed):
        detected = detector.whole(image)
        if not detected:
            continue
        face = detected[0]
        for look in range(LOOKS):
            shift = random.normal(0, 0.05, 2) * face.side_px
            grown = np.exp(random.normal(0, 0.12))
            box = np.array([*(face.box_px[:2] + shift), *(face.box_px[2:] * grown)], np.float32)
            shown = image if look % 4 else image[:, ::-1]
            if look % 4 == 0:
                box[0] = image.shape[1] - box[0] - box[2]
            crop = face_crop(np.ascontiguousarray(shown), box, face.landmarks_px if look % 4 else None).astype(
                np.float64
            )
            if look % 3 == 1:
                crop = np.asarray(cv2.GaussianBlur(crop, (0, 0), random.uniform(0.5, 2.0)), np.float64)
            crop = crop * random.uniform(0.3, 1.2) + random.normal(0, random.uniform(0, 12), crop.shape)
            crops.append(np.clip(crop, 0, 255).astype(np.float32))
    while len(crops) < COUNT:  # a picture in which no face is detected
        crops.append(np.clip(crops[len(crops) % 7] + random.normal(0, 20, crops[0].shape), 0, 255).astype(np.float32))
    return {"face": face_tensor(np.stack(crops[:COUNT]))}


def pictures(inputs: dict[str, Value], seed: int) -> Tensors:
    """(256, 3, 96, 96) RGB, 0 to 255: windows of the clip's pictures, with and without the face."""
    random = np.random.default_rng([2, seed])
    windows = []
    for image in _pictures(PICTURES, seed):
        for _ in range(LOOKS):
            side = int(random.integers(WINDOW_PX, min(image.shape[:2]) + 1))
            top, left = (int(random.integers(0, size - side + 1)) for size in image.shape[:2])
            window = cv2.resize(
                image[top : top + side, left : left + side], (WINDOW_PX, WINDOW_PX), interpolation=cv2.INTER_AREA
            )
            windows.append(np.clip(window * random.uniform(0.3, 1.3), 0, 255).astype(np.uint8))
    return {PICTURE: cv2.dnn.blobFromImages(windows[:COUNT], swapRB=True)}


def places(inputs: dict[str, Value], seed: int) -> Tensors:
    """`place` (256, 1, 225, 225): cuts of the clip's pictures from a quarter of a side to all of it, lighter, darker,
    softer."""
    random = np.random.default_rng([5, seed])
    tensors = []
    for image in _pictures(PICTURES, seed):
        for look in range(LOOKS):
            rows, columns = (round(size * random.uniform(0.25, 1)) for size in image.shape[:2])
            top, left = (
                int(random.integers(image.shape[0] - rows + 1)),
                int(random.integers(image.shape[1] - columns + 1)),
            )
            cut = image[top : top + rows, left : left + columns]
            if look % 3 == 1:
                cut = cv2.GaussianBlur(cut, (0, 0), random.uniform(0.5, 3.0))
            light = cut * random.uniform(0.3, 1.4) + random.normal(0, random.uniform(0, 12), cut.shape)
            tensors.append(place_tensor(np.clip(light, 0, 255).astype(np.uint8)))
    return {"place": np.stack(tensors[:COUNT])}


def sounds(inputs: dict[str, Value], seed: int) -> Tensors:
    """`samples` (256, k) at 16 kHz: synthetic voices."""
    length = inputs["samples"].shape[1]
    count = length if isinstance(length, int) else VOICE_FRAMES * VOICE_HOP
    random = np.random.default_rng([3, seed])
    return {"samples": np.stack(list(_voices(random, count)))}


def voices(inputs: dict[str, Value], seed: int) -> Tensors:
    """`voice` (256, 2, 64, 300): the same voices, some present in part."""
    random = np.random.default_rng([3, seed])
    return {"voice": _in_part(random, _voices(random, VOICE_FRAMES * VOICE_HOP))}


def events(inputs: dict[str, Value], seed: int) -> Tensors:
    """`sound` (256, 2, 64, 300): synthetic noises, ticks, tones, engines and voices, some present in part."""
    random = np.random.default_rng([5, seed])
    count = VOICE_FRAMES * VOICE_HOP
    synthetic: list[Floats] = []
    for kind in range(COUNT // LOOKS):  # each six times, at another moment and level
        event = _event(random, count, kind % 4)
        synthetic += [
            np.roll(event, int(random.integers(count))) * np.float32(random.uniform(0.1, 1)) for _ in range(6)
        ]
    return {"sound": _in_part(random, [*synthetic, *itertools.islice(_voices(random, count), COUNT - len(synthetic))])}


def opinions(inputs: dict[str, Value], seed: int) -> Tensors:
    """Log-probabilities of each modality, from sure to undecided, and how present it is: 0, partly or fully."""
    random = np.random.default_rng([4, seed])
    tensors: Tensors = {}
    for name, value in inputs.items():
        shape = (COUNT, *(size if isinstance(size, int) else 1 for size in value.shape[1:]))
        if name == "present":
            tensors[name] = random.choice(np.array([0, 0.3, 0.7, 1, 1], np.float32), shape)
            tensors[name][tensors[name].max(axis=1) == 0] = 1
        else:
            logits = random.normal(size=shape) * random.uniform(0.2, 4, (COUNT, *[1] * (len(shape) - 1)))
            tensors[name] = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)
    return tensors


GENERATORS: dict[frozenset[str], Callable[[dict[str, Value], int], Tensors]] = {
    frozenset({"face"}): faces,
    frozenset({PICTURE}): pictures,
    frozenset({"samples"}): sounds,
    frozenset({"voice"}): voices,
    frozenset({"sound"}): events,
    frozenset({"place"}): places,
    frozenset({"face", "voice", "present"}): opinions,
}


def _one_picture(inputs: tuple[Value, ...]) -> tuple[int, int] | None:
    """Width and height of a detector's input, whatever it is called: (1, 3, height, width) float32 and nothing else."""
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 4:
        return None
    batch, channels, height, width = inputs[0].shape
    fixed = batch == 1 and channels == 3 and isinstance(height, int) and isinstance(width, int)
    return (int(width or 0), int(height or 0)) if fixed else None


def _letterboxed(name: str, size_px: tuple[int, int], seed: int) -> Iterator[Tensors]:
    """One at a time, since 256 of them would fill half a gigabyte: windows of the clip's pictures, 0 to 255."""
    random = np.random.default_rng([5, seed])
    for image in _pictures(PICTURES, seed):
        for _ in range(LOOKS):
            side = int(random.integers(WINDOW_PX, min(image.shape[:2]) + 1))
            top, left = (int(random.integers(0, size - side + 1)) for size in image.shape[:2])
            window = image[top : top + side, left : left + side].astype(np.float32) * random.uniform(0.3, 1.3)
            yield {name: letterbox(np.clip(window, 0, 255).astype(np.uint8), size_px)[0]}


def _batched(whole: Tensors) -> Iterator[Tensors]:
    at = turn = 0
    while at < COUNT:
        size = BATCHES[turn % len(BATCHES)]
        yield {name: value[at : at + size] for name, value in whole.items()}
        at, turn = at + size, turn + 1


def _pictures(count: int, seed: int) -> Iterable[npt.NDArray[np.uint8]]:
    """Evenly from the demo clip, (360, 640, 3) BGR; another seed begins later."""
    clip = cv2.VideoCapture(str(assets.path("demo-clip")))
    every = max(1, int(clip.get(cv2.CAP_PROP_FRAME_COUNT)) // count)
    try:
        for index in range(count * every):
            if not clip.grab():
                return
            if index % every == seed % every:
                yield np.asarray(clip.retrieve()[1], np.uint8)
    finally:
        clip.release()


def _in_part(random: np.random.Generator, sounds: Iterable[Floats]) -> Floats:
    """Each as a window of the microphone; of every fourth only the end is present."""
    tensors = []
    for index, samples in enumerate(sounds):
        present = np.ones(len(samples), bool)
        if index % 4 == 1:
            present[: int(random.integers(1, len(present) - VOICE_RATE_HZ // 2))] = False
        tensors.append(voice_tensor(np.where(present, samples, 0).astype(np.float32), present))
    return np.stack(tensors)


def _event(random: np.random.Generator, count: int, kind: int) -> Floats:
    """kind 0: a steady coloured noise; 1: ticks; 2: a gliding tone with pauses; 3: the harmonics of an engine."""
    seconds = np.arange(count) / VOICE_RATE_HZ
    noise = random.normal(size=count)
    colour = np.convolve(noise, np.exp(-np.arange(64) / random.uniform(0.3, 20)), "same")
    if kind == 0:
        sound = colour * (1 + random.uniform(0, 0.9) * np.sin(2 * np.pi * random.uniform(0.1, 15) * seconds))
    elif kind == 1:
        sound = colour * np.exp(-((seconds * random.uniform(0.8, 9)) % 1) * random.uniform(5, 60))
    elif kind == 2:
        glide_hz = random.uniform(200, 3000) * np.exp(
            random.uniform(-0.5, 0.5) * np.sin(2 * np.pi * random.uniform(0.2, 3) * seconds)
        )
        sound = np.sin(2 * np.pi * np.cumsum(glide_hz) / VOICE_RATE_HZ) * (
            np.sin(2 * np.pi * random.uniform(0.3, 2) * seconds) > 0
        )
    else:
        base_hz = random.uniform(12, 160)
        sound = sum(
            np.sin(2 * np.pi * n * base_hz * seconds + random.uniform(0, 6)) / n ** random.uniform(0.2, 1)
            for n in range(1, 30)
        )
    sound = sound / (np.abs(sound).max() + 1e-9) + noise * random.uniform(0.0005, 0.05)
    return np.asarray(np.clip(sound * random.uniform(0.02, 0.9), -1, 1), np.float32)


def _voices(random: np.random.Generator, count: int) -> Iterator[Floats]:
    """32 voices, each eight times: earlier, louder or softer, in another room."""
    for _ in range(COUNT // LOOKS):
        voice = _voice(random, count)
        for _ in range(LOOKS):
            shifted = np.roll(voice, int(random.integers(count))) * random.uniform(0.1, 1.2)
            yield np.clip(shifted + random.normal(0, random.uniform(0, 0.05), count), -1, 1).astype(np.float32)


def _voice(random: np.random.Generator, count: int) -> Floats:
    """Syllables: harmonics of a moving pitch through three moving formants, pauses, breath, and a room's noise."""
    seconds = np.arange(count) / VOICE_RATE_HZ
    pitch_hz = random.uniform(85, 260) * np.exp(
        0.25 * np.sin(2 * np.pi * random.uniform(0.3, 1.5) * seconds + random.uniform(0, 6))
    )
    phase = 2 * np.pi * np.cumsum(pitch_hz) / VOICE_RATE_HZ
    formants = [(random.uniform(*span), random.uniform(60, 180)) for span in ((250, 850), (850, 2400), (2300, 3400))]
    sound = np.zeros(count)
    for harmonic in range(1, 25):
        hz = harmonic * float(pitch_hz.mean())
        gain = sum(1 / (1 + ((hz - centre) / width) ** 2) for centre, width in formants) + 0.02
        sound += gain / harmonic**0.5 * np.sin(harmonic * phase)
    syllables = np.clip(
        np.sin(2 * np.pi * random.uniform(2.5, 6) * seconds + random.uniform(0, 6)) + random.uniform(-0.4, 0.6), 0, 1
    )
    sound = sound / (np.abs(sound).max() + 1e-9) * syllables + random.normal(0, random.uniform(0.001, 0.1), count)
    return np.asarray(np.clip(sound * random.uniform(0.02, 0.8), -1, 1), np.float32)
