"""What kind of place the camera looks at (street, forest, office …): AlignedSet → Prediction, and the network alone.

A place changes slowly, so it is not looked at in every set: `every_ms` says how often. Between two looks the last answer is
held, and the prediction's opinion says how old it is. All depends on the frames' seq and capture_ns alone.

    task = Place(every_ms=200)
    task.open("auto")
    task.predict(aligned).label                      # "street"
    PlaceModel(engine, manifest).probs(image_bgr)    # (15,) float32, for those who bring their own pictures
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import AlignedSet, Opinion, Prediction
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.smoothing import softmax, towards
from pipeline.perception.inputs import PICTURES, Picture
from pipeline.perception.model_loader import Engines
from pipeline.preprocessing import PLACE_PX, place_tensor
from pipeline.task import Task

Floats = npt.NDArray[np.float32]

MODEL = "place"
INPUT = {"place": (1, 1, PLACE_PX, PLACE_PX)}


class PlaceModel:
    """The network with its labels and its temperature."""

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine, self._temperature = engine, manifest.temperature
        self.labels, self.id = manifest.labels, manifest.id

    @classmethod
    def open(cls, engines: Engines, model: str = MODEL) -> PlaceModel:
        """model: a file of the models folder, without .onnx, or a path. Raises AssetError when it is not there, ConfigError
        when it takes something else."""
        path = Path(model) if model.endswith(".onnx") else assets.MODELS / f"{model}.onnx"
        if not path.is_file():
            raise AssetError(f"{path}: no such model. Train it with: python run_pipeline.py train place")
        manifest = Manifest.read(path)
        if [tensor.name for tensor in manifest.inputs] != ["place"]:
            raise ConfigError(
                f"place model {manifest.id}: its inputs are {[t.name for t in manifest.inputs]}, a place model's "
                "is 'place'. Train one with: python run_pipeline.py train place"
            )
        # In fp16 it misses the parity gate by a hair, in int8 by far (models/place.md): so it runs in fp32 whatever is asked for.
        return cls(engines.load(path, manifest.name, INPUT, reduced=False), manifest)

    def probs(self, image_bgr: npt.NDArray[np.uint8]) -> Floats:
        """image_bgr: (h, w, 3) or (h, w), any size. Returns (labels,) float32 that sum to 1, calibrated."""
        logits = self._engine.run({"place": place_tensor(image_bgr)[None]})["logits"]  # (1, labels)
        return softmax(logits[0] / self._temperature)


class PlaceWatch:
    """Looks every `every_ms`, holds the answer between, and smooths it: what a task keeps of a camera's place.

    smoothing_ms: time constant of an exponential mean; a refused picture leaves it as it is. Time that goes back begins afresh.
    """

    def __init__(self, model: PlaceModel, *, smoothing_ms: float, every_ms: float) -> None:
        self._model, self._smoothing_ns, self._every_ns = model, smoothing_ms * 1e6, every_ms * 1e6
        self._looked_ns: int | None = None
        self._seen_ns = 0  # of the look that `_probs` rests on
        self._probs: Floats | None = None
        self._wrong = ""

    def update(self, picture: Picture) -> tuple[Floats | None, str, int]:
        """(labels,) or None and why; and how old the look is that says so, in ns: 0 for this very picture."""
        capture_ns = picture.frame.capture_ns
        if self._looked_ns is not None and capture_ns < self._looked_ns:
            self._looked_ns, self._probs = None, None
        if self._looked_ns is None or capture_ns - self._looked_ns >= max(1, self._every_ns):
            self._looked_ns = capture_ns
            image, self._wrong = picture.seen
            if image is not None:
                found = self._model.probs(image)
                before = found if self._probs is None else self._probs
                self._probs = towards(before, found, capture_ns - self._seen_ns, self._smoothing_ns)
                self._seen_ns = capture_ns
        return (None if self._wrong else self._probs), self._wrong, capture_ns - self._looked_ns


class Place(Task):
    """`probs` are those of the newest picture of the set's first camera, smoothed. A covered lens counts as missing, and so
    does the camera that sent nothing: no label then.

    model: a file of the models folder, without .onnx, or a path. smoothing_ms: time constant of an exponential mean.
    every_ms: how often the network runs, at most; 0: on every set. uncertain_below: the label is "uncertain" where no
    probability reaches this.
    """

    def __init__(
        self,
        *,
        model: str = MODEL,
        smoothing_ms: float = 1000.0,
        every_ms: float = 200.0,
        uncertain_below: float = 0.35,
        threads: int = 1,
    ) -> None:
        if smoothing_ms < 0 or every_ms < 0 or threads < 1:
            raise ValueError("smoothing_ms and every_ms must be at least 0, threads at least 1")
        if not 0 <= uncertain_below < 1:
            raise ValueError("uncertain_below must be from 0 to below 1")
        self._wanted, self._smoothing_ms, self._every_ms = model, smoothing_ms, every_ms
        self._uncertain_below, self._threads = uncertain_below, threads

    def open(self, backend: str) -> None:
        model = PlaceModel.open(self.open_engines(backend, threads=self._threads), self._wanted)
        self.labels, self.model = model.labels, model.id
        self._watch = PlaceWatch(model, smoothing_ms=self._smoothing_ms, every_ms=self._every_ms)

    def predict(self, aligned: AlignedSet) -> Prediction:
        frame = next(
            (frames[-1] for frames in aligned.frames.values() if frames and frames[-1].encoding in PICTURES), None
        )
        if frame is None:
            return self.prediction(aligned, None)
        probs, wrong, age_ns = self._watch.update(Picture(frame))
        if probs is None:
            return self.prediction(
                aligned, None, bad={frame.stream: wrong}, opinions=[Opinion("place", frame.stream, 0.0, (), wrong)]
            )
        held = f"held: looked {age_ns / 1e6:.0f} ms before this picture" if age_ns else ""
        return self.prediction(
            aligned,
            probs,
            used=(frame.stream,),
            uncertain_below=self._uncertain_below,
            opinions=[Opinion("place", frame.stream, 1.0, tuple(float(p) for p in probs), held)],
        )
