"""Does somebody speak? Silero VAD over the microphone's running samples.

Aligned sets come with overlapping windows (the last second, 24 times a second); each sample is processed once. State
advances by the microphone's `seq` and by counting samples, never by a clock. Knows nothing of the words or the speaker.

Example:
    activity = VoiceActivity(engine)
    activity.update(aligned.frames["microphone"])      # True, False, or None where it is unknown
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.frame import Frame
from pipeline.inference.engine import Engine

SAMPLE_RATE_HZ = 16_000
HOP = 512  # samples the network judges at a time: 32 ms
CONTEXT = 64  # samples before them, which the network takes again

# Speech begins after two hops above the one threshold and ends after eight (256 ms, a pause between words) below the
# other; the thresholds are Silero's own.
START_PROB, STOP_PROB = 0.5, 0.35
START_HOPS, STOP_HOPS = 2, 8

RATE_TOLERANCE = 0.02  # chunks are stamped by a fitted clock, so their length is not exact


class VoiceActivity:
    def __init__(self, engine: Engine, log: logging.Logger | None = None) -> None:
        self._engine = engine
        self._log = log or logging.getLogger("voice_activity")
        self._last: Frame | None = None
        self._warned_of_rate = False
        self.gaps = 0
        self._reset()

    def _reset(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._pending = np.empty(0, np.float32)
        self._speaking = False
        self._hops = 0  # in a row that contradict the present answer

    def update(self, frames: Sequence[Frame]) -> bool | None:
        """frames: "pcm_f32", in the order of capture; those of an earlier call are passed over. None: no sound, or not
        at 16 kHz."""
        if not frames or not self._has_known_rate(frames[-1]):
            return None
        for frame in frames:
            last = self._last
            if last is not None and frame.capture_ns <= last.capture_ns:
                continue
            if last is not None and frame.seq != last.seq + 1:
                self.gaps += 1
                self._reset()
            self._last = frame
            self._process(frame.data)
        return self._speaking

    def _process(self, samples: npt.NDArray[Any]) -> None:
        self._pending = np.concatenate([self._pending, samples.astype(np.float32, copy=False)])
        while len(self._pending) >= HOP:
            hop, self._pending = self._pending[:HOP], self._pending[HOP:]
            self._judge(self._speech_prob(hop))

    def _speech_prob(self, hop: npt.NDArray[np.float32]) -> float:
        samples = np.concatenate([self._context, hop])[None]  # (1, 576)
        outputs = self._engine.run({"input": samples, "state": self._state, "sr": np.array(SAMPLE_RATE_HZ, np.int64)})
        self._state, self._context = outputs["stateN"], hop[-CONTEXT:]
        return float(outputs["output"][0, 0])

    def _judge(self, prob: float) -> None:
        against = prob < STOP_PROB if self._speaking else prob >= START_PROB
        self._hops = self._hops + 1 if against else 0
        if self._hops >= (STOP_HOPS if self._speaking else START_HOPS):
            self._speaking, self._hops = not self._speaking, 0

    def _has_known_rate(self, frame: Frame) -> bool:
        rate_hz = len(frame.data) * NS / frame.duration_ns if frame.duration_ns else SAMPLE_RATE_HZ
        known = abs(rate_hz / SAMPLE_RATE_HZ - 1) < RATE_TOLERANCE
        if not known and not self._warned_of_rate:
            self._warned_of_rate = True
            self._log.warning(
                "%s has %.0f samples a second; voice activity needs %d, so `speaking` stays unknown. "
                "Set sample_rate_hz: %d on that node",
                frame.stream,
                rate_hz,
                SAMPLE_RATE_HZ,
                SAMPLE_RATE_HZ,
            )
        return known
