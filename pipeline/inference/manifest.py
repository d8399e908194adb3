"""What an ONNX file records about itself: its inputs, labels, calibration, origin and figures, in its metadata.

A model travels as one file; its manifest cannot be lost, and the task reads labels and temperature from it instead of
from its own code. The hash is of the graph with its weights, not of the file: writing the manifest does not change it,
altering a weight does.

Example:
    manifest = Manifest.read(Path("models/face-expression.onnx"))
    manifest.id                  # "face-expression@1a2b3c4d", the `model` of every prediction it makes
    probs = softmax(logits / manifest.temperature)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline.errors import ConfigError
from pipeline.inference.onnx_file import OnnxFile
from pipeline.installation import COMMAND

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "sensorium.manifest"
MAX_TEMPERATURE = 1e6


@dataclass(frozen=True)
class TensorInfo:
    """shape: a name stands for a free size, as in ("n", 1, 48, 48). meaning: unit, range, how it is computed."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    meaning: str


@dataclass(frozen=True)
class Manifest:
    """The description of one model.

    Args:
        temperature: Logits are divided by it before the softmax (> 0).
        made_by: The exact command, seed included.
        windows_ms: Input → how much time it covers, for inputs that cover any (ms).
        metrics: Name of the measure on a named set → value, as in {"publictest_accuracy": 0.67}.
        sha256: Of the graph; filled in by `write`.
        precision: "fp32", "fp16" or "int8".
        made_from: sha256 of the fp32 graph that another precision was made from, and must agree with.
    """

    name: str
    task: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...]
    temperature: float
    training_data: str
    licence: str
    made_by: str
    windows_ms: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    sha256: str = ""
    precision: str = "fp32"
    made_from: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.sha256[:8]}"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises ConfigError when the file is missing, is no ONNX file, has no manifest, or has changed."""
        file = OnnxFile.read(path)
        stored = file.metadata.get(METADATA_KEY)
        if stored is None:
            raise ConfigError(
                f"{path}: an ONNX file without a manifest (no '{METADATA_KEY}' in its metadata). "
                f"Export it with: {COMMAND} train …, or add one with Manifest.write()."
            )
        manifest = cls._parse(path, stored)
        # `onnx` writes a graph's bytes as we hash them; a file that somebody else wrote is asked the slow way.
        if file.graph_sha256 != manifest.sha256 and (actual := graph_sha256(_load(path))) != manifest.sha256:
            raise ConfigError(
                f"{path}: the graph has changed since it was exported (hash {actual[:8]}, its manifest says "
                f"{manifest.sha256[:8]}). Fetch the file again: git checkout -- {path}"
            )
        for described, actual_values in ((manifest.inputs, file.inputs), (manifest.outputs, file.outputs)):
            if [tensor.name for tensor in described] != [value.name for value in actual_values]:
                raise ConfigError(
                    f"{path}: the manifest describes {[tensor.name for tensor in described]}, the graph has "
                    f"{[value.name for value in actual_values]}. Export it again."
                )
        return manifest

    def write(self, path: Path) -> Manifest:
        """Write this manifest into the ONNX file, in place of an earlier one. Returns it with the graph's hash."""
        import onnx

        model = _load(path)
        written = replace(self, sha256=graph_sha256(model))
        others = {entry.key: entry.value for entry in model.metadata_props if entry.key != METADATA_KEY}
        onnx.helper.set_model_props(model, others | {METADATA_KEY: json.dumps(asdict(written), ensure_ascii=False)})
        whole = path.with_suffix(".onnx.new")
        onnx.save(model, str(whole))
        whole.replace(path)  # a reader sees the old file or the new one, never half of one
        return written

    @classmethod
    def _parse(cls, path: Path, stored: str) -> Manifest:
        try:
            manifest = msgspec.json.decode(stored, type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ConfigError(f"{path}: its manifest cannot be read ({error}). Export it again.") from error
        if not 0 < manifest.temperature < MAX_TEMPERATURE:
            raise ConfigError(
                f"{path}: its manifest has a temperature of {manifest.temperature:g}, expected more than 0 and less "
                f"than {MAX_TEMPERATURE:g}. Export it again."
            )
        return manifest


PRECISIONS = ("fp32", "fp16", "int8")


def with_precision(path: Path, precision: str) -> Path:
    """models/face.onnx, "fp16" → models/face.fp16.onnx, where `export --precision fp16` writes it."""
    return path if precision == "fp32" else path.with_name(f"{path.stem}.{precision}.onnx")


def precision_of(path: Path) -> str:
    """As the file's name has it."""
    suffix = path.stem.rpartition(".")[2]
    return suffix if suffix in PRECISIONS else "fp32"


def full_precision(path: Path) -> Path:
    """models/face.fp16.onnx → models/face.onnx, which it must agree with."""
    return path if precision_of(path) == "fp32" else path.with_name(f"{path.stem.rpartition('.')[0]}.onnx")


def graph_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph and its weights: the same before and after metadata is written."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def _load(path: Path) -> onnx.ModelProto:
    OnnxFile.read(path)  # for its error messages

    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # DecodeError, of whichever protobuf is installed
        raise ConfigError(f"{path}: not an ONNX file, or damaged: {error}. Fetch it again.") from error
