"""What a user sets of an aligner, in the units of the YAML; checked, and turned into an AlignerConfig.

Example:
    options = AlignerOptions(anchor="camera", sync={"microphone": {"policy": "window", "before_ms": 1000}})
    config = options.config(inputs=["camera", "microphone"], start_ns=clock.start_ns)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.alignment.aligner import Emit
from pipeline.alignment.event_log import AlignerConfig, check_anchor
from pipeline.alignment.sync_policies import MS, parse_policy


@dataclass(frozen=True)
class AlignerOptions:
    """The options that decide which frames are in a set; nodes/align.py documents each. Raises ValueError."""

    anchor: str | None = None
    anchor_rate_hz: float | None = None
    max_wait_ms: float | None = 60.0
    emit: Emit = "ready"
    sync: Mapping[str, Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if (self.anchor is None) == (self.anchor_rate_hz is None):
            raise ValueError("give either anchor (an input's name) or anchor_rate_hz")
        if self.max_wait_ms is not None and not 0 <= self.max_wait_ms < math.inf:
            raise ValueError(f"max_wait_ms: found {self.max_wait_ms}, expected 0 or more, or null")
        check_anchor(self.anchor or self.anchor_rate_hz or 0.0, self.max_wait_ns)
        for stream, entry in (self.sync or {}).items():
            # So that an error shows now, and not when the first frame arrives.
            parse_policy(entry, f"sync.{stream}", own=self.own_policies)

    @property
    def own_policies(self) -> tuple[Mapping[str, Any], ...]:
        """The entries of `sync`, which may name code of the user's."""
        return tuple((self.sync or {}).values())

    @property
    def max_wait_ns(self) -> int | None:
        return None if self.max_wait_ms is None else round(self.max_wait_ms * MS)

    def named_inputs(self) -> Iterator[tuple[str, str]]:
        """(option, the input that it names)."""
        yield from ((f"sync.{stream}", stream) for stream in self.sync or {})
        if self.anchor:
            yield "anchor", self.anchor

    def config(self, inputs: Sequence[str], start_ns: int) -> AlignerConfig:
        """An input without a sync policy gets its nearest frame, within half of its own period."""
        sync = self.sync or {}
        policies = {name: dict(sync.get(name, {"policy": "nearest"})) for name in inputs if name != self.anchor}
        anchor = self.anchor or float(self.anchor_rate_hz or 0)
        return AlignerConfig(anchor, policies, self.max_wait_ns, self.emit, start_ns)
