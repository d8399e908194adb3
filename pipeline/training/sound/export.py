"""The sound-event network becomes the ONNX file that ships: its figures, its temperature and its manifest."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.perception.sound_events import MODEL, REPORT_ABOVE
from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES
from pipeline.probabilities import softmax
from pipeline.training.data.speech import Speech
from pipeline.training.evaluation.classifier_figures import fit_temperature
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, clip_means, markdown, score
from pipeline.training.export.onnx_export import export_network, sample_sound_windows
from pipeline.training.sound.clips import LABELS
from pipeline.training.sound.net import SoundNet

SPEECH = len(LABELS) - 1  # the label that means "none of these"
CHOSEN_ON = (1, 2, 3)
LICENCE = (
    "weights Apache-2.0; trained on ESC-10 (CC BY 3.0, K. J. Piczak, clips of Freesound.org's users) and EmoDB (CC0)"
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def ship(
    clips: Speech,
    fold: Ints,
    fold_predictions: list[tuple[Floats, Ints]],
    left_out: list[tuple[Floats, Ints]],
    net: SoundNet,
    out: Path,
    runs: Path,
    *,
    command: str,
    seed: int,
) -> None:
    """Print and write the figures; export the network with them in its manifest."""

    def temperature(of: list[tuple[Floats, Ints]]) -> float:
        return fit_temperature(np.concatenate([a for a, _ in of]), clips.labels[np.concatenate([c for _, c in of])])

    # No figure uses labels that its temperature was fitted to.
    scaled = [
        logits / temperature([other for other in fold_predictions if other[1] is not clip])
        for logits, clip in fold_predictions
    ]
    logits, clip = np.concatenate(scaled), np.concatenate([clip for _, clip in fold_predictions])
    events, table = clips.labels != SPEECH, {}
    unused_for_choice = ~np.isin(fold, CHOSEN_ON)
    for what, which in (
        ("ESC-10, four folds", events),
        ("ESC-10, fold 4, not used for any choice", events & unused_for_choice),
        ("speech is none of them (EmoDB)", ~events),
    ):
        table[what] = scored(clips, logits, clip, np.flatnonzero(which), seed=seed)
    print(markdown(table))
    shipped = temperature(fold_predictions)
    probs, label = softmax(logits.astype(np.float64)), clips.labels[clip]
    best, which = probs[:, :SPEECH].max(1), probs[:, :SPEECH].argmax(1)
    reported, event = best >= REPORT_ABOVE, label != SPEECH
    unknown_reported = (
        np.concatenate(
            [
                softmax(fold_logits.astype(np.float64), temperature=shipped)[:, :SPEECH].max(1)
                for fold_logits, _ in left_out
            ]
        )
        >= REPORT_ABOVE
    )
    figures = {
        "windows_reported": float(reported[event].mean()),
        "reported_right": float((which == label)[reported & event].mean()),
        "speech_windows_reported": float(reported[~event].mean()),
        "unknown_sound_windows_reported": float(unknown_reported.mean()),
    }
    print(
        f"reported where an event is at least {REPORT_ABOVE:.0%} sure: "
        f"{figures['windows_reported']:.1%} of the windows with one, {figures['reported_right']:.1%} of these rightly; "
        f"{figures['speech_windows_reported']:.2%} of the windows with unseen speakers; "
        f"{figures['unknown_sound_windows_reported']:.1%} of those of a class outside the training data"
    )
    for (fold_logits, _), name in zip(left_out, LABELS, strict=False):
        probs = softmax(fold_logits.astype(np.float64), temperature=shipped)
        loud = probs[:, :SPEECH].max(1) >= REPORT_ABOVE
        taken = np.bincount(probs[loud, :SPEECH].argmax(1), minlength=SPEECH)
        print(f"  trained without {name}: {loud.mean():.0%} reported, mostly as {LABELS[int(taken.argmax())]}")
    write(table, runs / "scores.json", title="Sound events, unseen clips")
    np.savez(
        runs / "out_of_fold.npz",
        logits=logits,
        clip=clip,
        label=clips.labels,
        recording=clips.speakers,
        name=clips.names,
    )
    export_sound(net, out)
    short = {"ESC-10, four folds": "esc10", "ESC-10, fold 4, not used for any choice": "esc10_fold4"}
    metrics = {
        f"{name}_{per}_{measure}": round(float(getattr(table[what][per], measure)), 4)
        for what, name in short.items()
        for per in ("clip", "window")
        for measure in ("accuracy", "uar", "ece")
    }
    manifest(shipped, net, command, metrics | {name: round(value, 4) for name, value in figures.items()}).write(out)
    print(f"{out}: temperature {shipped:.2f}", flush=True)


def scored(clips: Speech, logits: npt.NDArray[np.floating], clip: Ints, rows: Ints, *, seed: int) -> dict[str, Scores]:
    """Scores by clip (mean log-probability over its windows) and by window; intervals are over recordings."""
    inside = np.isin(clip, rows)
    return {
        "clip": score(clip_means(logits, clip, rows), clips.labels[rows], clips.speakers[rows], seed=seed),
        "window": score(
            logits[inside].astype(np.float32), clips.labels[clip[inside]], clips.speakers[clip[inside]], seed=seed
        ),
    }


def manifest(temperature: float, net: SoundNet, command: str, metrics: dict[str, float]) -> Manifest:
    embedding = sum(head.in_features for head in net.ensemble.heads if isinstance(head, torch.nn.Linear))
    return Manifest(
        name=MODEL.stem,
        task="sounds",
        inputs=(
            TensorInfo(
                "sound", ("n", 2, VOICE_BANDS, VOICE_FRAMES), "float32", "preprocessing.voice_tensor of the last 3 s"
            ),
        ),
        outputs=(
            TensorInfo("logits", ("n", len(LABELS)), "float32", "divide by the temperature, then softmax"),
            TensorInfo("embedding", ("n", embedding), "float32", "what the logits are a linear map of"),
        ),
        labels=LABELS,
        temperature=temperature,
        training_data="ESC-10 folds 1 to 4, EmoDB",
        licence=LICENCE,
        made_by=command,
        windows_ms={"sound": VOICE_FRAMES * 10},
        metrics=metrics,
    )


def export_sound(net: SoundNet, path: Path) -> None:
    """Write `sound` (n, 2, 64, 300) -> `logits` (n, labels), `embedding` (n, 128 a member), float32.

    Raises as export_face does.
    """
    export_network(copy.deepcopy(net).eval(), path, "sound", sample_sound_windows())
