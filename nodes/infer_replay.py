"""Runs a predicting node on the sets that it predicted from in the recorded run.

`run_pipeline.py replay` puts it in place of `infer`.

Example:
    emotion: {use: infer_replay, path: rec.mcap, options: {task: emotion}, inputs: [align], process: align}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from pipeline.frame import AlignedSet, Message, Prediction
from pipeline.node import Arrival, Node, Transform
from pipeline.plugins import construct, find
from pipeline.recording.arrival_replay import ShedSets, predicted_anchors

SHED = "shed in the recorded run too"


class InferReplay(Transform):
    """Leaves out the sets that were shed in the recorded run, so that whatever the task remembers is the same as then.

    Args:
        path: The recording; it holds the predictions of a node of this name.
        options: The options of the node that it replaces.
        node: That node, as `use` names it. Default infer.
        unclosed: Read a recording that was not closed, up to its last whole chunk.
    """

    consumes: ClassVar[tuple[type, ...]] = (AlignedSet,)
    produces: ClassVar[type | None] = Prediction

    def __init__(
        self, *, path: str, options: dict[str, Any] | None = None, node: str = "infer", unclosed: bool = False
    ) -> None:
        self._path, self._unclosed = Path(path), unclosed
        replaced = construct(find(node, Node, "nodes", what="node"), options or {}, node)
        if not isinstance(replaced, Transform) or replaced.produces is not Prediction:
            raise ValueError(f"node: '{node}' does not predict")
        self._node = replaced

    def open(self) -> None:
        self._shed = ShedSets(predicted_anchors(self._path, self.name, unclosed=self._unclosed))
        self._node.context = self.context
        self._node.open()

    def process(self, arrival: Arrival) -> Iterable[Message]:
        assert isinstance(arrival.message, AlignedSet)
        if arrival.message.anchor_ns in self._shed:
            self.context.metrics.drop(arrival.source, SHED)
            return ()
        return self._node.process(arrival)

    def close(self) -> None:
        self._node.close()
