"""The interface of a backend: what runs an ONNX model, whichever runtime does the work.

Knows neither what a model is for nor where it came from, nor any backend. A backend is one file of the package
`backends`, or anybody's class, named as "module:Name"; nothing is registered. load.py chooses one and loads a model
with it.

Example:
    class Mine(Engine):
        def __init__(self, model_path, *, threads): ...
        def run(self, inputs): return {"logits": ...}
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]
Shape = tuple[int, ...]
Shapes = Sequence[Mapping[str, Shape]]  # each: a shape for every input that has a free size
Samples = Callable[[], Iterable[Tensors]]  # inputs of the model, in batches: what the parity gate compares engines on


class Engine(ABC):
    """One model, loaded and ready. Not safe to share between threads."""

    # `auto` takes the usable backend with the highest rank: faster hardware ranks above what runs everywhere.
    rank: ClassVar[int] = 0
    # False for a runtime that refuses graphs with an If, such as voice activity's.
    runs_branches: ClassVar[bool] = True
    description: str  # for people: runtime, version, device, threads

    @classmethod
    def has_hardware(cls) -> bool:
        """False where a machine has nothing of the hardware that this backend is for: `auto` then passes over it
        without a message, for there is nothing to do about it."""
        return True

    @classmethod
    @abstractmethod
    def unusable(cls) -> str:
        """Why this backend cannot run here, with the fix; "" when it can. Must not crash where there is no driver."""

    @abstractmethod
    def __init__(self, model_path: Path, *, threads: int) -> None:
        """Load the model. Raises ConfigError when the runtime refuses the file."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, tuple[int | str | None, ...]]:
        """Name → shape of each input; a size that is free is a name or None."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Tensors:
        """Every output by name. The arrays are the caller's to keep."""

    def close(self) -> None:  # noqa: B027  # what holds nothing has nothing to release
        """Release memory and threads."""


class BuiltEngine(Engine):
    """A backend whose engines are built for this machine and for given shapes, which takes from seconds to minutes."""

    @abstractmethod
    def __init__(self, model_path: Path, *, threads: int = 1, shapes: Shapes = ()) -> None:
        """Load what `build` made, building it first where there is none. Raises EngineError."""

    @classmethod
    @abstractmethod
    def is_built(cls, model_path: Path, shapes: Shapes) -> bool: ...

    @classmethod
    @abstractmethod
    def build(cls, model_path: Path, shapes: Shapes, stopping: threading.Event | None = None) -> None:
        """Make the engine and keep it. Raises EngineError when the runtime refuses the model. stopping: give up."""

    @classmethod
    @abstractmethod
    def discard(cls, model_path: Path, shapes: Shapes) -> None:
        """Forget what was built: it failed."""

    @property
    @abstractmethod
    def approved(self) -> dict[str, Any]:
        """The figures with which this very engine passed the parity gate; empty: it has not."""

    @abstractmethod
    def approve(self, figures: dict[str, Any]) -> None: ...

    @abstractmethod
    def prepare(self, shapes: Shapes) -> None:
        """Run these shapes once, so that the first real frame is not the slowest."""
