"""Trains the sound-event network, from the clips to the shipped ONNX file, top to bottom.

    python run_pipeline.py train sound --epochs 16 --seed 7        # twenty minutes on one busy thread
    python run_pipeline.py evaluate sound                          # the shipped file, through the live task

What the network sees of a window is fixed (sound_net.SoundAnalysis), so windows are drawn and measured once for all, and small
perceptrons are trained on them. One network ships. For each of ESC-10's folds another hears the rest, and what these say of
the fold they never heard gives the figures and the temperature; for each class one more never hears it, and shows what happens
to sounds that the labels do not name. Fixed schedule, no epoch is chosen. The recipe (how strong the augmentation is, epochs,
decay) was chosen by cross-validation within folds 1 to 3; fold 4 chose nothing and is reported by itself.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.inference.manifest import Manifest, TensorInfo
from pipeline.perception.sound_events import MODEL, REPORT_ABOVE
from pipeline.preprocessing import VOICE_BANDS, VOICE_FRAMES, voice_columns
from pipeline.probabilities import softmax
from pipeline.training.data.folder import data_folder
from pipeline.training.data.speech import Speech
from pipeline.training.evaluation.classifier_figures import fit_temperature
from pipeline.training.evaluation.report import write
from pipeline.training.evaluation.scores import Scores, markdown, score
from pipeline.training.export.onnx_export import export_sound
from pipeline.training.mlp_ensemble import BATCH, fit_panel
from pipeline.training.nets import Panel
from pipeline.training.sound.clips import FOLDS, LABELS, fold_of, load_sounds
from pipeline.training.sound.net import SoundAnalysis, SoundNet
from pipeline.training.voice.voice_export import clip_means
from pipeline.training.voice.windows import Mishaps, draw

COPIES = 12  # windows drawn of each clip
LABEL_SMOOTHING = 0.1
MEMBERS = 6
CHOSEN_ON = (1, 2, 3)
# Further than a voice's: a helicopter is near or far, in a valley or a street, and comes through any microphone.
MISHAPS = Mishaps(
    pace=(0.85, 1.18),
    warp=(0.88, 1.13),
    tilt_db=8.0,
    bumps_db=4.0,
    noisy=0.4,
    noise_db=(10.0, 40.0),
    room=0.3,
    short=0.2,
)
SPEECH = len(LABELS) - 1  # the label that means "none of these"

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
LICENCE = (
    "weights Apache-2.0; trained on ESC-10 (CC BY 3.0, K. J. Piczak, clips of Freesound.org's users) and EmoDB (CC0)"
)


def train(
    *, data: Path | None = None, out: Path = MODEL, epochs: int = 16, seed: int = 7, runs: Path = Path("runs/sound")
) -> None:
    """Draw and measure windows, train every network, print the figures and ship `out`. runs: the folder of the clips as they
    were read, scores.json and out_of_fold.npz. Raises ConfigError when the data is missing."""
    torch.set_num_threads(1)
    clips = load_sounds(data_folder(data), cache=runs)
    fold = np.array([fold_of(recording) for recording in clips.speakers])
    if set(range(1, FOLDS + 1)) - set(fold[clips.labels != SPEECH].tolist()):
        raise ConfigError(
            f"sound: the clips are of the folds {sorted(set(fold.tolist()))}; all of 1 to {FOLDS} are needed."
        )
    analysis = SoundAnalysis()
    drawn = torch.stack(
        [measured(clips, analysis, seed * 1009 + copy) for copy in range(COPIES)]
    )  # (copies, n, measures)
    asked = windows_asked(clips, analysis)  # (windows, measures)

    def ask(train_rows: npt.NDArray[np.bool_], test_rows: npt.NDArray[np.bool_], what: str) -> tuple[Floats, Ints]:
        began_s = time.monotonic()
        panel = fit(drawn, clips.labels, np.flatnonzero(train_rows), epochs=epochs, seed=seed)
        inside = np.isin(clips.due_clip, np.flatnonzero(test_rows))
        print(f"sound: {what}, {train_rows.sum()} clips, {time.monotonic() - began_s:.0f} s", flush=True)
        return np.asarray(answer(panel, asked[inside])), clips.due_clip[inside]

    of_folds = [ask(fold != k, fold == k, f"without fold {k}") for k in range(1, FOLDS + 1)]
    strangers = []
    for label in range(SPEECH):
        # Beside the class it never hears, it is asked about nothing: what it says of the others is in the folds' figures.
        strangers.append(ask(clips.labels != label, clips.labels == label, f"without {LABELS[label]}"))
    net = SoundNet(analysis, fit(drawn, clips.labels, np.arange(len(clips)), epochs=epochs, seed=seed)).eval()
    command = f"python run_pipeline.py train sound --epochs {epochs} --seed {seed}"
    ship(clips, fold, of_folds, strangers, net, out, runs, command=command, seed=seed)


@torch.no_grad()
def measured(clips: Speech, analysis: SoundAnalysis, seed: int) -> Tensor:
    """(n, measures): one window of each clip, as it might have sounded elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([analysis(draw(clips, rows, generator, MISHAPS)) for rows in torch.arange(len(clips)).split(64)])


@torch.no_grad()
def windows_asked(clips: Speech, analysis: SoundAnalysis) -> Tensor:
    """(windows, measures): what the live task would ask about the clips as they are."""

    def window(index: int) -> Floats:
        mel = clips.columns(int(clips.due_clip[index]), int(clips.due[index]), VOICE_FRAMES)
        return voice_columns(mel, np.ones(mel.shape[1], bool))  # (2, 64, 300)

    return torch.cat(
        [
            analysis(torch.from_numpy(np.stack([window(int(i)) for i in rows])))
            for rows in torch.arange(len(clips.due)).split(64)
        ]
    )


def fit(drawn: Tensor, labels: Ints, rows: Ints, *, epochs: int, seed: int) -> Panel:
    """drawn: (copies, n, measures). Train on the clips `rows`, each label equally often."""
    torch.manual_seed(seed)
    net = Panel(drawn.shape[2], len(LABELS), members=MEMBERS)
    x = drawn[:, torch.from_numpy(rows)].flatten(0, 1)  # (N, measures)
    target = torch.from_numpy(labels[rows]).repeat(drawn.shape[0])  # (N,)
    wanted = (1 - LABEL_SMOOTHING) * F.one_hot(target, len(LABELS)) + LABEL_SMOOTHING / len(LABELS)
    steps = max(1, int((target != SPEECH).sum()) * 11 // 10 // BATCH)  # an epoch hears every event's window about once
    fit_panel(
        net,
        x,
        target,
        lambda logits, batch: -(wanted[batch] * torch.log_softmax(logits, -1)).sum(-1).mean(),
        steps=steps,
        epochs=epochs,
    )
    return net


@torch.no_grad()
def answer(net: Panel, measures: Tensor) -> Floats:
    """(windows, labels) logits"""
    return np.asarray(net(measures)[0].numpy())


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
    """A clip's answer is the mean log-probability over its windows. Intervals are over the recordings that clips were cut from."""
    inside = np.isin(clip, rows)
    return {
        "clip": score(clip_means(logits, clip, rows), clips.labels[rows], clips.speakers[rows], seed=seed),
        "window": score(
            logits[inside].astype(np.float32), clips.labels[clip[inside]], clips.speakers[clip[inside]], seed=seed
        ),
    }


def manifest(temperature: float, net: SoundNet, command: str, metrics: dict[str, float]) -> Manifest:
    embedding = sum(head.in_features for head in net.panel.heads if isinstance(head, torch.nn.Linear))
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
