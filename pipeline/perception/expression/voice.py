"""What a voice sounds like: a speech-expression network over the last seconds of the microphone, while somebody speaks.

Decides every 250 ms of the microphone's own time, and averages the log-probabilities of its latest decisions. After the
last word the opinion stays for a moment and then fades. State advances by the frames' seq and capture times alone.

Example:
    voice = VoiceClassifier(engine, manifest, labels)
    evidence = voice.update(aligned.frames["microphone"], speaking=True)
    evidence.weight, evidence.log_probs, evidence.reason        # 1.0, (7,), ""
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import ConfigError
from pipeline.frame import NO_EMBEDDING, Frame
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.quality import voice_quality
from pipeline.preprocessing import VOICE_FRAMES, VOICE_HOP, VOICE_RATE_HZ, audio_window, voice_tensor
from pipeline.probabilities import softmax

Floats = npt.NDArray[np.float32]

DECIDE_NS = NS // 4
WINDOW_NS = VOICE_FRAMES * VOICE_HOP * NS // VOICE_RATE_HZ
MIN_SPEECH_NS = NS // 2  # less than half a second of speech is a syllable, not an expression
# The windows overlap by 2.75 of 3 s, so the mean reaches only a little further back than a window does.
REMEMBER_NS = 1 * NS
HOLD_NS, FADE_NS = NS // 2, 2 * NS  # after the last word: counts fully until the first, not at all after the second
FLOOR = 1e-6


class VoiceEvidence(NamedTuple):
    """log_probs: (labels,) or None before the first decision. weight: presence times quality. reason: why it is below
    1. embedding: (d,) float32, of the latest decision; empty where the network has no such output."""

    log_probs: Floats | None
    weight: float
    reason: str
    embedding: Floats = NO_EMBEDDING


class DecisionSchedule:
    """When to decide: every 250 ms of the stream's own time while somebody speaks, from half a second of speech on."""

    def __init__(self) -> None:
        self.spoke_ns = self._began_ns = self._decided_ns = -(1 << 62)
        self.since_ns = 0  # from the decision before to the latest

    def update(self, end_ns: int, speaking: bool) -> int | None:
        """The time up to which sound is to be judged now, or None. end_ns: of the sound, which does not go back."""
        if not speaking:
            return None
        if end_ns - self.spoke_ns > FADE_NS:
            self._began_ns = end_ns
        self.spoke_ns = max(self.spoke_ns, end_ns)
        due_ns = end_ns // DECIDE_NS * DECIDE_NS
        if due_ns <= self._decided_ns or due_ns - self._began_ns < MIN_SPEECH_NS:
            return None
        self.since_ns, self._decided_ns = due_ns - self._decided_ns, due_ns
        return due_ns


class VoiceClassifier:
    """The opinion of a voice network about the last seconds of the microphone.

    Args:
        engine: The network, with one input: `voice` (preprocessing.voice_tensor) or `samples` (n, k), the last k
            samples at 16 kHz as they are.
        manifest: Of the network.
        labels: What the task answers with. A network that knows fewer leaves the others their even share.
    """

    def __init__(self, engine: Engine, manifest: Manifest, labels: Sequence[str]) -> None:
        self._engine, self._temperature = engine, manifest.temperature
        self._input, shape = manifest.inputs[0].name, manifest.inputs[0].shape
        known = [label for label in manifest.labels if label in labels]
        if len(manifest.inputs) != 1 or self._input not in ("voice", "samples") or len(known) != len(manifest.labels):
            raise ConfigError(
                f"voice model {manifest.id}: it has the inputs {[i.name for i in manifest.inputs]} and the labels "
                f"{manifest.labels}; expected one input, 'voice' (n, 2, 64, 300) or 'samples' (n, k), and labels out "
                f"of {tuple(labels)}"
            )
        self._samples = int(shape[1]) if self._input == "samples" else VOICE_FRAMES * VOICE_HOP
        self._columns = [list(labels).index(label) for label in manifest.labels]
        self._labels = len(labels)
        self._window_ns = max(WINDOW_NS, self._samples * NS // VOICE_RATE_HZ)
        self._frames: list[Frame] = []
        self._reset()

    def _reset(self) -> None:
        self._frames.clear()
        self._mean: Floats | None = None
        self._quality, self._reason, self._embedding = 0.0, "", NO_EMBEDDING
        self._schedule = DecisionSchedule()

    def update(self, frames: Sequence[Frame], *, speaking: bool | None) -> VoiceEvidence:
        """frames: "pcm_f32" at 16 kHz in the order of capture; those of an earlier call are passed over. speaking: at
        their end."""
        if not frames or speaking is None:
            return VoiceEvidence(None, 0.0, "not at 16 kHz" if frames else "no sound")
        end_ns = self._append(frames)
        if end_ns - self._schedule.spoke_ns > FADE_NS:
            self._mean = None  # the next words are another utterance, perhaps another person's
        due_ns = self._schedule.update(end_ns, speaking)
        if due_ns is not None:
            self._decide(due_ns)
        return self._evidence(end_ns)

    def _append(self, frames: Sequence[Frame]) -> int:
        """Remember what a window needs. Returns when the sound ends."""
        last = self._frames[-1] if self._frames else None
        if last is not None and frames[-1].capture_ns < last.capture_ns - self._window_ns:
            self._reset()  # the stream has started again
            last = None
        self._frames += [f for f in frames if last is None or f.capture_ns > last.capture_ns]
        end_ns = self._frames[-1].end_ns
        self._frames = [f for f in self._frames if f.end_ns > end_ns - self._window_ns - DECIDE_NS]
        return end_ns

    def _decide(self, due_ns: int) -> None:
        before_ns = self._samples * NS // VOICE_RATE_HZ
        samples, present = audio_window(tuple(self._frames), due_ns, before_ns=before_ns, sample_rate_hz=VOICE_RATE_HZ)
        tensor = voice_tensor(samples, present) if self._input == "voice" else samples
        outputs = self._engine.run({self._input: tensor[None]})
        self._embedding = outputs["embedding"][0] if "embedding" in outputs else NO_EMBEDDING
        probs = softmax(outputs["logits"][0], temperature=self._temperature)
        # A network that knows four labels of seven says how the four compare, and leaves the others their even share.
        spread = np.full(self._labels, 1 / self._labels, np.float64)
        spread[self._columns] = probs * len(self._columns) / self._labels
        now = np.log(np.maximum(spread, FLOOR)).astype(np.float32)
        share = 1 - np.exp(-self._schedule.since_ns / REMEMBER_NS)
        self._mean = now if self._mean is None else np.asarray(self._mean + np.float32(share) * (now - self._mean))
        self._quality, self._reason = voice_quality(samples, present)

    def _evidence(self, end_ns: int) -> VoiceEvidence:
        silent_ns = end_ns - self._schedule.spoke_ns
        if silent_ns >= FADE_NS:
            return VoiceEvidence(None, 0.0, "nobody speaks")
        if self._mean is None:
            return VoiceEvidence(None, 0.0, "somebody has only begun to speak")
        log_probs = self._mean - np.log(np.exp(self._mean).sum(dtype=np.float32))
        fade = min(1.0, (FADE_NS - silent_ns) / (FADE_NS - HOLD_NS))
        reason = self._reason or (f"nobody has spoken for {silent_ns / NS:.1f} s" if fade < 1 else "")
        return VoiceEvidence(log_probs, self._quality * fade, reason, self._embedding)
