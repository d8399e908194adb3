"""An object detector from an ONNX file, the pinned one or your own: picture → boxes in that picture.

Layout and input size are read from the file as far as it has them; the rest defaults to what the layout's authors
trained with, and every point can be set. This module handles files and pixels, detections.py the output tensors.

Example:
    detector = Detector.load("auto", engines, log)       # None: it is not downloaded, and the log says how to get it
    for detection in detector.find(image_bgr): detection.label, detection.score, detection.box_px
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.errors import ConfigError, nearest
from pipeline.inference.engine import Engine
from pipeline.inference.onnx_file import OnnxFile, Value
from pipeline.perception.model_loader import Engines
from pipeline.perception.objects.detections import COCO, LAYOUTS, Detection, Size, layout_of, suppressed
from pipeline.plugins import renamed_key
from pipeline.preprocessing import letterbox

PINNED = "yolox-nano"  # of models/assets.toml; yolox-tiny detects more and takes four times as long
NONE = "none"
NO_DETECTOR = "detector"  # in a prediction's `missing`

# Colour order, mean and standard deviation (of 0 to 255) the published models were trained with.
_TRAINED: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "yolox": ("bgr", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "nanodet": ("bgr", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    "ssd": ("rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ssd_raw": ("rgb", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


@dataclass(frozen=True)
class Description:
    """A detector's file, and what the file does not say of itself.

    Args:
        file: A path of an ONNX file, or the name of an asset.
        layout: "auto", or one of detections.LAYOUTS. Default: recognised by the outputs.
        labels: In the order of the classes, without background: a list, or a file with one a line. Default: COCO's 80.
        colour: "bgr" or "rgb". Default: as the layout's models were trained.
        mean: Of the three channels, of 0 to 255. Default: as the layout's models were trained.
        std: Likewise, above 0.
        input_px: [width, height] where the file leaves it open (px).
        min_score: Least score of a box (0 < s < 1). Default 0.35.
        overlap: Largest intersection over union of two boxes of one class (0 < o ≤ 1). Default 0.5.
        where: How errors begin.
    """

    file: str
    layout: str = "auto"
    labels: Sequence[str] | str = COCO
    colour: str = ""
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    input_px: Sequence[int] = ()
    min_score: float = 0.35
    overlap: float = 0.5
    where: str = field(default="detector", compare=False)

    def __post_init__(self) -> None:
        if self.layout != "auto" and self.layout not in LAYOUTS:
            raise ConfigError(
                f"{self.where}.layout: found '{self.layout}', expected auto, {', '.join(LAYOUTS)}."
                f"{nearest(self.layout, LAYOUTS)}"
            )
        if self.colour not in ("", "bgr", "rgb"):
            raise ConfigError(f"{self.where}.colour: found '{self.colour}', expected bgr or rgb")
        if (
            len(self.mean) not in (0, 3)
            or len(self.std) not in (0, 3)
            or len(self.input_px) not in (0, 2)
            or 0 in self.std
        ):
            raise ConfigError(
                f"{self.where}: mean and std are three numbers each, std above 0, input_px is [width, height]"
            )
        if not 0 < self.min_score < 1 or not 0 < self.overlap <= 1:
            raise ConfigError(f"{self.where}: min_score and overlap must be above 0 and at most 1")

    @classmethod
    def of(cls, option: str | Mapping[str, Any]) -> Description:
        if isinstance(option, str):
            return cls(option)
        known = [f.name for f in fields(cls) if f.name != "where"]
        for key in option:
            if key not in known:
                if renamed := renamed_key(str(key), known, "detector"):
                    raise renamed
                raise ConfigError(
                    f"detector: unknown key '{key}'. Known: {', '.join(known)}.{nearest(str(key), known)}"
                )
        if "file" not in option:
            raise ConfigError("detector.file: missing: a path of an ONNX file, or the name of an asset")
        return cls(**option)

    def names(self) -> tuple[str, ...]:
        if not isinstance(self.labels, str):
            return tuple(self.labels)
        try:
            return tuple(
                line.strip() for line in Path(self.labels).read_text(encoding="utf-8").splitlines() if line.strip()
            )
        except OSError as error:
            raise ConfigError(
                f"{self.where}.labels: {self.labels}: {error.strerror}. Give a file with one label a line"
            ) from error


class Detector:
    def __init__(self, engine: Engine, file: OnnxFile, description: Description, *, name: str) -> None:
        self._engine, self.name, self.labels = engine, name, description.names()
        self._input = file.inputs[0]
        self._bytes = self._input.dtype == "uint8"  # TensorFlow's: (n, h, w, 3), any size, scaled inside the network
        self.input_px = _input_px(self._input, description)
        shapes = {value.name: value.shape for value in file.outputs}
        try:
            layout = (
                description.layout
                if description.layout != "auto"
                else layout_of(shapes, input_px=self.input_px, classes=len(self.labels))
            )
        except ConfigError as error:
            raise ConfigError(f"{description.file}: {error}") from error
        self.layout, self._decode = layout, LAYOUTS[layout]
        colour, mean, std = _TRAINED[layout]
        self._rgb = (description.colour or colour) == "rgb"
        self._mean, self._std = tuple(description.mean) or mean, tuple(description.std) or std
        self._min_score, self._overlap = description.min_score, description.overlap

    @classmethod
    def load(cls, option: str | Mapping[str, Any], engines: Engines, log: logging.Logger) -> Detector | None:
        """option: "auto" (the pinned detector, where it has been fetched), "none", a path, the name of an asset, or a
        table with the fields of Description. None: no detector, and a log line says how to get one. Raises
        ConfigError."""
        if option == NONE:
            return None
        if option == "auto":
            if assets.local(assets.entry(PINNED)) is None:
                # Never downloaded implicitly: without network, the start would wait for it.
                log.warning(
                    "no object detector, so obstacles have no labels; everything else works. Download one: %s %s",
                    assets.PULL,
                    PINNED,
                )
                return None
            option = PINNED
        description = Description.of(option)
        path = Path(description.file) if description.file.endswith(".onnx") else assets.path(description.file)
        file = OnnxFile.read(path)
        if len(file.inputs) != 1 or len(file.inputs[0].shape) != 4:
            here = "; ".join(f"{v.name} {v.shape}" for v in file.inputs)
            raise ConfigError(
                f"{path}: a detector has one input, (1, 3, height, width) or (1, height, width, 3). Found: {here}"
            )
        name = path.stem if description.file.endswith(".onnx") else description.file
        value, size_px = file.inputs[0], _input_px(file.inputs[0], description)
        # Engines are warmed up with float32 zeros, which TensorFlow's exports do not accept.
        warm_up = None if value.dtype == "uint8" else {value.name: (1, 3, size_px[1], size_px[0])}
        engine = engines.load(path, name, warm_up, reduced=False, branches=value.dtype == "uint8")
        return cls(engine, file, description, name=f"{name}@{file.graph_sha256[:8]}")

    def find(self, image_bgr: npt.NDArray[np.uint8]) -> list[Detection]:
        """image_bgr: (h, w, 3). Boxes in its pixels and inside it, surest first."""
        height, width = image_bgr.shape[:2]
        tensor: npt.NDArray[Any]
        if self._bytes:
            # These were trained on pictures stretched to a square.
            scaled = cv2.resize(image_bgr, self.input_px, interpolation=cv2.INTER_LINEAR)
            tensor = (scaled[..., ::-1] if self._rgb else scaled)[None]
            scale = np.array([self.input_px[0] / width, self.input_px[1] / height] * 2)
        else:
            tensor, factor = letterbox(image_bgr, self.input_px, rgb=self._rgb, mean=self._mean, std=self._std)
            scale = np.full(4, factor)
        outputs = self._engine.run({self._input.name: np.ascontiguousarray(tensor)})
        candidates = self._decode(outputs, self.input_px, len(self.labels))
        detections = []
        for kind, score, box in suppressed(candidates, min_score=self._min_score, overlap=self._overlap):
            left, top, right, bottom = (float(v) for v in np.clip(box / scale, 0, (width, height) * 2))
            if right - left >= 1 and bottom - top >= 1:
                detections.append(Detection(self.labels[kind], score, (left, top, right - left, bottom - top)))
        return detections


def _input_px(value: Value, description: Description) -> Size:
    """Width and height of the network's input."""
    by_name = value.shape[1:3] if value.dtype == "uint8" else value.shape[2:]
    if all(isinstance(size, int) and size > 0 for size in by_name):
        return int(by_name[1] or 0), int(by_name[0] or 0)
    if description.input_px:
        return int(description.input_px[0]), int(description.input_px[1])
    raise ConfigError(
        f"{description.file}: its input {value.name} {value.shape} has any size. Choose one: input_px: [416, 416]"
    )
