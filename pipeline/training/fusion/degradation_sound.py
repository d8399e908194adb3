"""Opinions and weights of the live voice with noisy, late and missing sound.

Every sixth RAVDESS clip passes voice activity detection and the voice classifier as from a microphone. Noise is added
to the samples. An outage or a delay only changes which moments of the clip count: sound that is 80 ms late at an anchor
is the sound of 80 ms before, and after an outage the opinion is as old as the outage, until the set holds no sound. The
shipped model was trained on these actors, so only the differences between conditions are meaningful, not the level.

Example:
    clips, by_condition = opinions_by_condition(folder, model)
    log_probs, weight = by_condition["noise, speech 0 dB above it"]              # (n, 7), (n,)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline import assets
from pipeline.clock import NS
from pipeline.frame import Frame
from pipeline.inference.choose_backend import load
from pipeline.inference.manifest import Manifest
from pipeline.perception.expression.voice import VoiceClassifier
from pipeline.perception.expression.voice_activity import VoiceActivity
from pipeline.training.data.clip_sets import CHUNK, SOUND_WINDOW_NS, clips, sound
from pipeline.training.data.faces import FACE_CLASSES

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

EVERY = 6
LOUD = 0.9  # quantile of a clip's 20 ms levels that its speech is measured by
NOISES_DB, OUTAGES_MS, SHIFTS_MS = (20, 10, 0), (500, 2000, 5000), (-160, -80, -40, 40, 80, 160)


class Moment(NamedTuple):
    """end_ns: of the sound so far, from the clip's beginning."""

    end_ns: int
    log_probs: Floats
    weight: float


def opinions_by_condition(folder: Path, model: Path) -> tuple[Ints, dict[str, tuple[Floats, Floats]]]:
    """Which RAVDESS clips, in the order of their names, and condition → (n, 7) log-probabilities, (n,) weight."""
    named = clips(folder / "speech" / "ravdess", "ravdess")
    chosen = np.arange(0, len(named), EVERY)
    by_condition: dict[str, tuple[Floats, Floats]] = {}

    def store(condition: str, at: int, opinion: tuple[Floats, float]) -> None:
        empty = (np.zeros((len(chosen), len(FACE_CLASSES)), np.float32), np.zeros(len(chosen), np.float32))
        log_probs, weight = by_condition.setdefault(condition, empty)
        log_probs[at], weight[at] = opinion

    engine, manifest = load(model, backend="onnxruntime"), Manifest.read(model)
    silero = load(assets.path("silero-vad"), backend="onnxruntime")
    for at, clip in enumerate(chosen):
        samples = sound(named[clip].path)

        def opinions_of(samples: Floats) -> list[Moment]:
            return moments(samples, VoiceClassifier(engine, manifest, FACE_CLASSES), VoiceActivity(silero))

        # The last moment leaves room for sound that is early.
        last_ns = len(samples) * NS // 16_000 + min(SHIFTS_MS) * 1_000_000
        clean = opinions_of(samples)
        store("clean", at, opinion_until(clean, last_ns))
        for above_db in NOISES_DB:
            store(
                f"noise, speech {above_db} dB above it",
                at,
                opinion_until(opinions_of(noisy(samples, above_db, seed=int(clip))), last_ns),
            )
        for ms in OUTAGES_MS:
            no_sound = (np.full(len(FACE_CLASSES), -np.log(len(FACE_CLASSES)), np.float32), 0.0)
            outage = opinion_until(clean, last_ns - ms * 1_000_000) if ms * 1_000_000 < SOUND_WINDOW_NS else no_sound
            store(f"sound out for the last {ms / 1000:g} s", at, outage)
        for ms in SHIFTS_MS:
            store(
                f"sound {abs(ms)} ms {'late' if ms > 0 else 'early'}",
                at,
                opinion_until(clean, last_ns - ms * 1_000_000),
            )
    return chosen, by_condition


def moments(samples: Floats, voice: VoiceClassifier, activity: VoiceActivity) -> list[Moment]:
    """The opinion of the voice after every 20 ms of a clip, where there is one."""
    chunk_ns, moments_so_far = CHUNK * NS // 16_000, []
    for seq in range(len(samples) // CHUNK):
        frame = Frame("microphone", seq, seq * chunk_ns, "pcm_f32", samples[seq * CHUNK : (seq + 1) * CHUNK], chunk_ns)
        evidence = voice.update([frame], speaking=activity.update([frame]))
        if evidence.log_probs is not None and evidence.weight > 0:
            moments_so_far.append(Moment(frame.end_ns, evidence.log_probs, evidence.weight))
    return moments_so_far


def opinion_until(moments_so_far: list[Moment], last_ns: int) -> tuple[Floats, float]:
    """(7,) mean log-probabilities and mean weight of the moments up to then; weight 0 where there is none."""
    usable = [moment for moment in moments_so_far if moment.end_ns <= last_ns]
    if not usable:
        return np.full(len(FACE_CLASSES), -np.log(len(FACE_CLASSES)), np.float32), 0.0
    mean = np.mean([moment.log_probs for moment in usable], axis=0)
    return np.asarray(mean - np.log(np.exp(mean).sum()), np.float32), float(
        np.mean([moment.weight for moment in usable])
    )


def noisy(samples: Floats, above_db: float, *, seed: int) -> Floats:
    """Add pink noise such that the loudest tenth of the clip is `above_db` above it."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft(random.normal(0, 1, len(samples)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(samples))
    whole = len(samples) // CHUNK * CHUNK
    speech_power = float(np.quantile((samples[:whole].reshape(-1, CHUNK) ** 2).mean(axis=1), LOUD))
    return np.asarray(
        (samples + noise * np.sqrt(speech_power / 10 ** (above_db / 10) / (noise**2).mean())).clip(-1, 1), np.float32
    )
