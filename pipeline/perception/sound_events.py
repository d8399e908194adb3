"""Sound events: a network over the last three seconds of the microphone, twice a second.

Decides when the network runs, when the input is silence, and below which confidence nothing is reported. State advances
by the frames' own times alone, so that a replay gives the answers of the live run.

Example:
    detector = SoundEventDetector(engine, manifest)
    detector.update(aligned.frames.get("microphone"), aligned.anchor_ns)    # (Sound("dog_bark", 0.93),)
    detector.reason                               # why no event is reported: "silence: -84 dB"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import Frame
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.installation import COMMAND, MODELS, model_path
from pipeline.perception.model_loader import Engines
from pipeline.preprocessing import (
    VOICE_BANDS,
    VOICE_FRAMES,
    VOICE_HOP,
    VOICE_RATE_HZ,
    audio_window,
    complete_columns,
    log_mel,
    voice_columns,
)
from pipeline.probabilities import softmax
from pipeline.scene_state import Sound

Floats = npt.NDArray[np.float32]

MODEL = MODELS / "sound-events.onnx"
OTHER = "other"  # a sound of none of the classes that are reported
SILENCE = "silence"

COLUMN_NS = VOICE_HOP * NS // VOICE_RATE_HZ
WINDOW_NS = VOICE_FRAMES * COLUMN_NS
DECIDE_COLUMNS, MIN_COLUMNS = 50, 100  # a decision every 0.5 s, once there is a second of sound
DECIDE_NS = DECIDE_COLUMNS * COLUMN_NS
HOLD_NS = 2 * DECIDE_NS  # without newer sound, a decision is valid for this long
# Mean power of a band in the loudest tenth of the window, relative to a full-scale sine. White noise of -50 dB full
# scale has this level: a quiet room through any microphone is below, and all but the end of ESC-10's faintest clips
# above.
SILENT_DB = -70.0
# Least probability of a reported event. Chosen within folds 1 to 3, where 96 % of the reported events were right.
REPORT_ABOVE = 0.7
RATE_TOLERANCE = 0.02  # chunks are stamped by a fitted clock, so their length is not exact


def loudness_db(mel: npt.NDArray[np.floating]) -> Floats:
    """(64, t) of preprocessing.log_mel -> (t,): mean power of a column's bands."""
    return np.asarray(10 * np.log10(np.exp(mel.astype(np.float32)).mean(axis=0) + 1e-10), np.float32)


def loudest_db(level_db: Floats) -> float:
    """Of the loudest tenth of the columns; -100 where there are none."""
    return float(np.sort(level_db)[-max(1, len(level_db) // 10) :].mean()) if len(level_db) else -100.0


def silent(level_db: Floats) -> bool:
    return loudest_db(level_db) < SILENT_DB


@dataclass(frozen=True)
class Decision:
    """At due_ns. probs: (labels,) calibrated, or None where the network did not run. reason: why no event is
    reported."""

    due_ns: int
    sounds: tuple[Sound, ...]
    probs: Floats | None
    reason: str


NO_DECISION = Decision(-(1 << 62), (), None, "no sound")


class SoundEventDetector:
    """Detects sound events in a stream of audio frames. report_above: least probability of a reported event."""

    def __init__(self, engine: Engine, manifest: Manifest, *, report_above: float = REPORT_ABOVE) -> None:
        shape = ("n", 2, VOICE_BANDS, VOICE_FRAMES)
        if [(i.name, i.shape) for i in manifest.inputs] != [("sound", shape)] or OTHER not in manifest.labels:
            raise ConfigError(
                f"sound model {manifest.id}: it has the inputs {[(i.name, i.shape) for i in manifest.inputs]} "
                f"and the labels {manifest.labels}; expected one input 'sound' {shape} and '{OTHER}' among the labels. "
                f"Make one with: {COMMAND} train sound"
            )
        self._engine, self._temperature, self._report_above = engine, manifest.temperature, report_above
        self.labels = manifest.labels
        self._frames: list[Frame] = []
        self._last = NO_DECISION
        self.reason = NO_DECISION.reason

    @property
    def probs(self) -> Floats | None:
        """(labels,) the network's last output, whether or not an event is reported; None: it did not run."""
        return self._last.probs

    @property
    def decided_ns(self) -> int:
        """End of the sound that the last decision is about."""
        return self._last.due_ns

    def update(self, frames: Sequence[Frame] | None, anchor_ns: int) -> tuple[Sound, ...]:
        """frames: "pcm_f32" at 16 kHz in the order of capture, as `policy: window` selects them; frames that were
        passed before are skipped.

        Returns the reported events, likeliest first; ("other", probability of none of them) for a sound that is no
        reported event; ("silence", 1.0) without sound; nothing where there is no usable audio. `reason` states why no
        event is returned, "" where one is.
        """
        if frames and not has_known_rate(frames[-1]):
            self._last = Decision(anchor_ns, (), None, f"not at {VOICE_RATE_HZ // 1000} kHz")
        elif frames:
            end_ns = self._buffer(frames)
            due_ns = end_ns // DECIDE_NS * DECIDE_NS
            if due_ns > self._last.due_ns:
                self._last = self._classify(due_ns)
        if anchor_ns - self._last.due_ns > HOLD_NS + DECIDE_NS:
            self._last = Decision(self._last.due_ns, (), None, "no sound")
        self.reason = self._last.reason
        return self._last.sounds

    def _buffer(self, frames: Sequence[Frame]) -> int:
        """Buffer what a window needs. Returns when the sound ends."""
        last = self._frames[-1] if self._frames else None
        if last is not None and frames[-1].capture_ns < last.capture_ns - WINDOW_NS:
            self._frames.clear()  # the stream started again
            self._last, last = NO_DECISION, None
        self._frames += [f for f in frames if last is None or f.capture_ns > last.capture_ns]
        end_ns = self._frames[-1].end_ns
        self._frames = [f for f in self._frames if f.end_ns > end_ns - WINDOW_NS - DECIDE_NS]
        return end_ns

    def _classify(self, due_ns: int) -> Decision:
        samples, valid = audio_window(tuple(self._frames), due_ns, before_ns=WINDOW_NS, sample_rate_hz=VOICE_RATE_HZ)
        mel, valid_columns = log_mel(samples), complete_columns(valid)
        if valid_columns.sum() < MIN_COLUMNS - 3:  # the first three columns after a gap look back into it
            return Decision(due_ns, (), None, f"only {valid_columns.sum() * COLUMN_NS / NS:.1f} s of sound so far")
        level_db = loudness_db(mel)[valid_columns]
        if silent(level_db):
            return Decision(due_ns, (Sound(SILENCE, 1.0),), None, f"silence: {loudest_db(level_db):.0f} dB")
        logits = self._engine.run({"sound": voice_columns(mel, valid_columns)[None]})["logits"][0]
        probs = np.asarray(softmax(logits, temperature=self._temperature), np.float32)
        events = sorted(
            (Sound(label, float(p)) for label, p in zip(self.labels, probs, strict=True) if label != OTHER),
            key=lambda sound: -sound.prob,
        )
        if events[0].prob < self._report_above:
            reason = f"no event is likely enough: most like {events[0].label}, {events[0].prob:.0%}"
            return Decision(due_ns, (Sound(OTHER, 1 - events[0].prob),), probs, reason)
        # The probabilities are of one sound at a time, so a second event beside a sure one would be a guess.
        return Decision(due_ns, (events[0],), probs, "")


def has_known_rate(frame: Frame) -> bool:
    rate_hz = len(frame.data) * NS / frame.duration_ns if frame.duration_ns else VOICE_RATE_HZ
    return abs(rate_hz / VOICE_RATE_HZ - 1) < RATE_TOLERANCE


def load_detector(
    engines: Engines, *, model: str = MODEL.stem, report_above: float = REPORT_ABOVE
) -> tuple[SoundEventDetector, Manifest]:
    """model: a file of the models folder, without .onnx, or a path."""
    path = model_path(model)
    if not path.is_file():
        raise AssetError(f"{path}: no such model. Train it with: {COMMAND} train sound")
    manifest = engines.manifest(path)
    engine = engines.load(path, manifest.name, {"sound": (1, 2, VOICE_BANDS, VOICE_FRAMES)})
    return SoundEventDetector(engine, manifest, report_above=report_above), manifest
