"""What happens around, by ear: a sound-event network over the last three seconds of the microphone, twice a second.

Owns when it listens, when there is nothing to listen to, and below which confidence nothing is reported; the network owns what
a bark sounds like. State advances by the frames' own times alone, so that a replay hears what the live run heard.

    ears = Ears(engine, manifest)
    ears.hear(aligned.frames.get("microphone"), aligned.anchor_ns)     # (Sound("dog_bark", 0.93),)
    ears.reason                                                         # why nothing was heard: "silence: -84 dB"

    sounds: {use: infer, task: sounds, inputs: [align]}                 # as a task; the microphone picked by `policy: window`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.clock import NS
from pipeline.errors import AssetError, ConfigError
from pipeline.frame import AlignedSet, Frame, Prediction
from pipeline.inference.engine import Engine
from pipeline.inference.manifest import Manifest
from pipeline.perception.model_loader import Engines
from pipeline.preprocessing import (
    VOICE_BANDS,
    VOICE_FRAMES,
    VOICE_HOP,
    VOICE_RATE_HZ,
    audio_window,
    heard_columns,
    log_mel,
    voice_columns,
)
from pipeline.scene_state import Sound, Surroundings
from pipeline.task import Task

Floats = npt.NDArray[np.float32]

MODEL = assets.MODELS / "sound-events.onnx"
OTHER = "other"  # a sound, and none that the network was asked to know
SILENCE = "silence"

COLUMN_NS = VOICE_HOP * NS // VOICE_RATE_HZ
WINDOW_NS = VOICE_FRAMES * COLUMN_NS
DECIDE_COLUMNS, MIN_COLUMNS = 50, 100  # twice a second, from a second of sound on
DECIDE_NS = DECIDE_COLUMNS * COLUMN_NS
HOLD_NS = 2 * DECIDE_NS  # an answer that no sound has come after is no longer about now
# Mean power of a band in the loudest tenth of the window, a full-scale sine being 0 dB. White noise of -50 dB full scale lies
# here: a quiet room through any microphone is below, and all but the end of ESC-10's faintest clips above.
SILENT_DB = -70.0
# Below it, nothing is reported: chosen within folds 1 to 3, where 96 % of what was reported was right.
REPORT_ABOVE = 0.7
RATE_TOLERANCE = 0.02  # chunks are stamped by a fitted clock, so their length is not exact


def loudness_db(mel: npt.NDArray[np.floating]) -> Floats:
    """(64, t) of features.log_mel -> (t,): mean power of a column's bands."""
    return np.asarray(10 * np.log10(np.exp(mel.astype(np.float32)).mean(axis=0) + 1e-10), np.float32)


def loudest_db(level_db: Floats) -> float:
    """Of the loudest tenth of the columns; -100 where there are none."""
    return float(np.sort(level_db)[-max(1, len(level_db) // 10) :].mean()) if len(level_db) else -100.0


def silent(level_db: Floats) -> bool:
    return loudest_db(level_db) < SILENT_DB


@dataclass(frozen=True)
class Listened:
    """At due_ns. probs: (labels,) calibrated, or None where the network was not asked. reason: why no event is reported."""

    due_ns: int
    sounds: tuple[Sound, ...]
    probs: Floats | None
    reason: str


NEVER = Listened(-(1 << 62), (), None, "no sound")


class Ears:
    """report_above: how sure it must be of an event to report it."""

    def __init__(self, engine: Engine, manifest: Manifest, *, report_above: float = REPORT_ABOVE) -> None:
        shape = ("n", 2, VOICE_BANDS, VOICE_FRAMES)
        if [(i.name, i.shape) for i in manifest.inputs] != [("sound", shape)] or OTHER not in manifest.labels:
            raise ConfigError(
                f"sound model {manifest.id}: it has the inputs {[(i.name, i.shape) for i in manifest.inputs]} and the labels "
                f"{manifest.labels}; expected one input 'sound' {shape} and '{OTHER}' among the labels. "
                "Make one with: python run_pipeline.py train sound"
            )
        self._engine, self._temperature, self._report_above = engine, manifest.temperature, report_above
        self.labels = manifest.labels
        self._frames: list[Frame] = []
        self._last = NEVER
        self.reason = NEVER.reason

    @property
    def probs(self) -> Floats | None:
        """(labels,) what the network said last, whether or not it is sure enough; None: it was not asked."""
        return self._last.probs

    @property
    def decided_ns(self) -> int:
        """Up to when the sound was judged last."""
        return self._last.due_ns

    def hear(self, frames: Sequence[Frame] | None, anchor_ns: int) -> tuple[Sound, ...]:
        """frames: "pcm_f32" at 16 kHz in the order of capture, as `policy: window` picks them; those already heard are passed over.

        Returns the events that are likely enough, likeliest first; ("other", how likely it is none of them) where there is
        a sound and none is; ("silence", 1.0) where there is no sound; nothing where it could not listen. `reason` says why
        no event is returned, "" where one is.
        """
        if frames and not has_known_rate(frames[-1]):
            self._last = Listened(anchor_ns, (), None, f"not at {VOICE_RATE_HZ // 1000} kHz")
        elif frames:
            end_ns = self._keep(frames)
            due_ns = end_ns // DECIDE_NS * DECIDE_NS
            if due_ns > self._last.due_ns:
                self._last = self._listen(due_ns)
        if anchor_ns - self._last.due_ns > HOLD_NS + DECIDE_NS:
            self._last = Listened(self._last.due_ns, (), None, "no sound")
        self.reason = self._last.reason
        return self._last.sounds

    def _keep(self, frames: Sequence[Frame]) -> int:
        """Remember what a window needs. Returns when the sound ends."""
        last = self._frames[-1] if self._frames else None
        if last is not None and frames[-1].capture_ns < last.capture_ns - WINDOW_NS:
            self._frames.clear()  # the stream began anew
            self._last, last = NEVER, None
        self._frames += [f for f in frames if last is None or f.capture_ns > last.capture_ns]
        end_ns = self._frames[-1].end_ns
        self._frames = [f for f in self._frames if f.end_ns > end_ns - WINDOW_NS - DECIDE_NS]
        return end_ns

    def _listen(self, due_ns: int) -> Listened:
        samples, there = audio_window(tuple(self._frames), due_ns, before_ns=WINDOW_NS, sample_rate_hz=VOICE_RATE_HZ)
        mel, heard = log_mel(samples), heard_columns(there)
        if heard.sum() < MIN_COLUMNS - 3:  # the first three columns after a gap look back into it
            return Listened(due_ns, (), None, f"only {heard.sum() * COLUMN_NS / NS:.1f} s of sound so far")
        level_db = loudness_db(mel)[heard]
        if silent(level_db):
            return Listened(due_ns, (Sound(SILENCE, 1.0),), None, f"silence: {loudest_db(level_db):.0f} dB")
        logits = self._engine.run({"sound": voice_columns(mel, heard)[None]})["logits"][0] / self._temperature
        exp = np.exp(logits - logits.max())
        probs = np.asarray(exp / exp.sum(), np.float32)
        events = sorted(
            (Sound(label, float(p)) for label, p in zip(self.labels, probs, strict=True) if label != OTHER),
            key=lambda sound: -sound.prob,
        )
        if events[0].prob < self._report_above:
            reason = f"nothing it knows for sure: most like {events[0].label}, {events[0].prob:.0%}"
            return Listened(due_ns, (Sound(OTHER, 1 - events[0].prob),), probs, reason)
        # A second event beside a sure one would be a guess: the probabilities are of one sound at a time.
        return Listened(due_ns, (events[0],), probs, "")


def has_known_rate(frame: Frame) -> bool:
    rate_hz = len(frame.data) * NS / frame.duration_ns if frame.duration_ns else VOICE_RATE_HZ
    return abs(rate_hz / VOICE_RATE_HZ - 1) < RATE_TOLERANCE


def open_ears(
    engines: Engines, *, model: str = MODEL.stem, report_above: float = REPORT_ABOVE
) -> tuple[Ears, Manifest]:
    """model: a file of the models folder, without .onnx, or a path."""
    path = Path(model) if model.endswith(".onnx") else assets.MODELS / f"{model}.onnx"
    if not path.is_file():
        raise AssetError(f"{path}: no such model. Train it with: python run_pipeline.py train sound")
    manifest = engines.manifest(path)
    engine = engines.load(path, manifest.name, {"sound": (1, 2, VOICE_BANDS, VOICE_FRAMES)})
    return Ears(engine, manifest, report_above=report_above), manifest


class Sounds(Task):
    """model: a file of the models folder, without .onnx, or a path. stream: the microphone's name; the first stream of sound in
    the set when left empty. report_above: the label is "other" where no event is as likely as this."""

    def __init__(
        self, *, model: str = MODEL.stem, stream: str = "", report_above: float = REPORT_ABOVE, threads: int = 1
    ) -> None:
        if not 0 < report_above < 1 or threads < 1:
            raise ValueError("report_above must lie between 0 and 1, threads be at least 1")
        self._wanted, self._stream, self._report_above, self._threads = model, stream, report_above, threads

    def open(self, backend: str) -> None:
        engines = self.open_engines(backend, threads=self._threads)
        self._ears, manifest = open_ears(engines, model=self._wanted, report_above=self._report_above)
        self.labels, self.model = (*manifest.labels, SILENCE), manifest.id

    def predict(self, aligned: AlignedSet) -> Prediction:
        stream, frames = sound_of(aligned, self._stream)
        sounds = self._ears.hear(frames, aligned.anchor_ns)
        refused = {stream: self._ears.reason} if frames and self._ears.reason.startswith("not at") else None
        answer = self.prediction(aligned, self._all(sounds), used=(stream,) if sounds and frames else (), bad=refused)
        return msgspec.structs.replace(
            answer, label=sounds[0].label if sounds else None, surroundings=Surroundings(sounds=sounds)
        )

    def _all(self, sounds: tuple[Sound, ...]) -> Floats | None:
        """(labels and silence,) probabilities; None: it could not listen."""
        if not sounds:
            return None
        if self._ears.probs is None:
            return np.asarray(np.arange(len(self.labels)) == len(self.labels) - 1, np.float32)
        return np.asarray(np.append(self._ears.probs, 0), np.float32)


def sound_of(aligned: AlignedSet, stream: str = "") -> tuple[str, tuple[Frame, ...] | None]:
    """(name, frames) of the microphone: the stream called so, or the first that carries sound."""
    if stream:
        return stream, aligned.frames.get(stream)
    for name, frames in aligned.frames.items():
        if frames and frames[0].encoding == "pcm_f32":
            return name, frames
    return "", None
