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
from pipeline.training.export.onnx_export import export_network
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
    of_folds: list[tuple[Floats, Ints]],
    strangers: list[tuple[Floats, Ints]],
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

    # No figure rests on labels that its temperature was fitted to.
    scaled = [logits / temperature([other for other in of_folds if other[1] is not clip]) for logits, clip in of_folds]
    logits, clip = np.concatenate(scaled), np.concatenate([clip for _, clip in of_folds])
    events, table = clips.labels != SPEECH, {}
    fresh = ~np.isin(fold, CHOSEN_ON)
    for what, which in (
        ("ESC-10, four folds", events),
        ("ESC-10, fold 4, which chose nothing", events & fresh),
        ("speech is none of them (EmoDB)", ~events),
    ):
        table[what] = scored(clips, logits, clip, np.flatnonzero(which), seed=seed)
    print(markdown(table))
    shipped = temperature(of_folds)
    probs, label = softmax(logits.astype(np.float64)), clips.labels[clip]
    best, which = probs[:, :SPEECH].max(1), probs[:, :SPEECH].argmax(1)
    told, event = best >= REPORT_ABOVE, label != SPEECH
    strange = (
        np.concatenate(
            [softmax(said.astype(np.float64), temperature=shipped)[:, :SPEECH].max(1) for said, _ in strangers]
        )
        >= REPORT_ABOVE
    )
    figures = {
        "windows_reported": float(told[event].mean()),
        "reported_right": float((which == label)[told & event].mean()),
        "speech_windows_reported": float(told[~event].mean()),
        "unknown_sound_windows_reported": float(strange.mean()),
    }
    print(
        f"reported where an event is at least {REPORT_ABOVE:.0%} sure: {figures['windows_reported']:.1%} of the windows with one, "
        f"{figures['reported_right']:.1%} of these rightly; {figures['speech_windows_reported']:.2%} of the windows with unheard "
        f"speakers; {figures['unknown_sound_windows_reported']:.1%} of those with a class that the network never heard of"
    )
    for (said, _), name in zip(strangers, LABELS, strict=False):
        probs = softmax(said.astype(np.float64), temperature=shipped)
        loud = probs[:, :SPEECH].max(1) >= REPORT_ABOVE
        taken = np.bincount(probs[loud, :SPEECH].argmax(1), minlength=SPEECH)
        print(f"  never heard {name}: {loud.mean():.0%} reported, mostly as {LABELS[int(taken.argmax())]}")
    write(table, runs / "scores.json", title="Sound events, clips never heard")
    np.savez(
        runs / "out_of_fold.npz",
        logits=logits,
        clip=clip,
        label=clips.labels,
        recording=clips.speakers,
        name=clips.names,
    )
    export_sound(net, out)
    short = {"ESC-10, four folds": "esc10", "ESC-10, fold 4, which chose nothing": "esc10_fold4"}
    metrics = {
        f"{name}_{per}_{measure}": round(float(getattr(table[what][per], measure)), 4)
        for what, name in short.items()
        for per in ("clip", "window")
        for measure in ("accuracy", "uar", "ece")
    }
    manifest(shipped, net, command, metrics | {name: round(value, 4) for name, value in figures.items()}).write(out)
    print(f"{out}: temperature {shipped:.2f}", flush=True)


def scored(clips: Speech, logits: npt.NDArray[np.floating], clip: Ints, rows: Ints, *, seed: int) -> dict[str, Scores]:
    """A clip's answer is the mean log-probability over its windows.

    Intervals are over the recordings that clips were cut from.
    """
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
                "sound", ("n", 2, VOICE_BANDS, VOICE_FRAMES), "float32", "features.voice_tensor of the last 3 s"
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
    windows = torch.rand(3, 2, VOICE_BANDS, VOICE_FRAMES, generator=torch.Generator().manual_seed(0))
    windows[:, 1] = 1
    windows[0, :, :, :200] = 0  # not heard
    export_network(copy.deepcopy(net).eval(), path, "sound", windows)
