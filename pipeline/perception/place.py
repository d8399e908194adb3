"""The place that a picture shows (street, forest, office …): the network, and its answer over time.

Example:
    PlaceModel(engine, manifest).probs(image_bgr)    # (15,) float32
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.errors import AssetError, ConfigError
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.installation import COMMAND, model_path
from pipeline.perception.expression.smoothing import towards
from pipeline.perception.inputs import Picture
from pipeline.perception.model_loader import Engines
from pipeline.preprocessing import PLACE_PX, place_tensor
from pipeline.probabilities import softmax

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
        """model: a file of the models folder, without .onnx, or a path. Raises AssetError when it is not there,
        ConfigError when its input is another one."""
        path = model_path(model)
        if not path.is_file():
            raise AssetError(f"{path}: no such model. Train it with: {COMMAND} train place")
        manifest = Manifest.read(path)
        if [tensor.name for tensor in manifest.inputs] != ["place"]:
            raise ConfigError(
                f"place model {manifest.id}: its inputs are {[t.name for t in manifest.inputs]}, a place model's "
                f"is 'place'. Train one with: {COMMAND} train place"
            )
        # In fp16 it just misses the parity gate, in int8 by far (models/place.md), so it always runs in fp32.
        return cls(engines.load(path, manifest.name, INPUT, reduced=False), manifest)

    def probs(self, image_bgr: npt.NDArray[np.uint8]) -> Floats:
        """image_bgr: (h, w, 3) or (h, w), any size. Returns (labels,) float32 that sum to 1, calibrated."""
        logits = self._engine.run({"place": place_tensor(image_bgr)[None]})["logits"]  # (1, labels)
        return np.asarray(softmax(logits[0], temperature=self._temperature), np.float32)


class PlaceEstimator:
    """A camera's place over time: runs the network every `every_ms`, holds the answer in between, and smooths it.

    smoothing_ms: time constant of an exponential mean; an unusable picture does not change it. A capture time before
    the last one resets it.
    """

    def __init__(self, model: PlaceModel, *, smoothing_ms: float, every_ms: float) -> None:
        self._model, self._smoothing_ns, self._every_ns = model, smoothing_ms * 1e6, every_ms * 1e6
        self._run_ns: int | None = None
        self._smoothed_ns = 0  # of the picture that `_probs` was updated with last
        self._probs: Floats | None = None
        self._fault = ""

    def update(self, picture: Picture) -> tuple[Floats | None, str, int]:
        """(labels,) or None, and why; and the age of that answer in ns: 0 when it is of this picture."""
        capture_ns = picture.frame.capture_ns
        if self._run_ns is not None and capture_ns < self._run_ns:
            self._run_ns, self._probs = None, None
        if self._run_ns is None or capture_ns - self._run_ns >= max(1, self._every_ns):
            self._run_ns = capture_ns
            image, self._fault = picture.decoded
            if image is not None:
                probs = self._model.probs(image)
                before = probs if self._probs is None else self._probs
                self._probs = towards(before, probs, capture_ns - self._smoothed_ns, self._smoothing_ns)
                self._smoothed_ns = capture_ns
        return (None if self._fault else self._probs), self._fault, capture_ns - self._run_ns
