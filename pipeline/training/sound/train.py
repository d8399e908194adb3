"""Trains the sound-event network, from the clips to the shipped ONNX file, top to bottom.

Example:
    python run_pipeline.py train sound --epochs 16 --seed 7        # twenty minutes on one busy thread
    python run_pipeline.py evaluate sound                          # the shipped file, in the live detector

The features of a window are fixed (net.SoundAnalysis), so windows are drawn and analysed once, and MLP ensembles are
trained on them. One network ships. For each of ESC-10's folds another is trained on the rest; its predictions for the
fold give the figures and the temperature. For each class one more is trained without it, and shows how unknown sounds
are reported. The schedule is fixed and no epoch is selected. Hyperparameters (augmentation, epochs, decay) were chosen
by cross-validation within folds 1 to 3; fold 4 was not used for any choice and is reported separately.
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
from pipeline.perception.sound_events import MODEL
from pipeline.preprocessing import VOICE_FRAMES, voice_columns
from pipeline.training.data.folder import data_folder
from pipeline.training.data.sound_augmentation import Augmentation, draw
from pipeline.training.data.speech import Speech
from pipeline.training.mlp_ensemble import BATCH, MlpEnsemble, fit_ensemble
from pipeline.training.sound.clips import FOLDS, LABELS, fold_of, load_sounds
from pipeline.training.sound.export import SPEECH, ship
from pipeline.training.sound.net import SoundAnalysis, SoundNet

COPIES = 12  # windows augmented of each clip
LABEL_SMOOTHING = 0.1
MEMBERS = 6
# Stronger than for voices: a helicopter is near or far, in a valley or a street, through any microphone.
AUGMENTATION = Augmentation(
    pace=(0.85, 1.18),
    warp=(0.88, 1.13),
    tilt_db=8.0,
    bumps_db=4.0,
    noisy=0.4,
    noise_db=(10.0, 40.0),
    room=0.3,
    short=0.2,
)
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def train(
    *, data: Path | None = None, out: Path = MODEL, epochs: int = 16, seed: int = 7, runs: Path = Path("runs/sound")
) -> None:
    """Compute features, train every network, print the figures and export `out`.

    Args:
        data: The folder of the training data.
        out: The ONNX file.
        epochs: Of every network; the schedule is fixed.
        seed: Of the augmentation and of the training.
        runs: Folder of the cached clips, scores.json and out_of_fold.npz.

    Raises ConfigError when the data is missing.
    """
    torch.set_num_threads(1)
    clips = load_sounds(data_folder(data), cache=runs)
    fold = np.array([fold_of(recording) for recording in clips.speakers])
    if set(range(1, FOLDS + 1)) - set(fold[clips.labels != SPEECH].tolist()):
        raise ConfigError(
            f"sound: the clips are of the folds {sorted(set(fold.tolist()))}; all of 1 to {FOLDS} are needed."
        )
    analysis = SoundAnalysis()
    augmented = torch.stack(
        [augmented_features(clips, analysis, seed * 1009 + copy) for copy in range(COPIES)]
    )  # (copies, n, features)
    live_features = decision_windows(clips, analysis)  # (windows, features)

    def train_and_predict(
        train_rows: npt.NDArray[np.bool_], test_rows: npt.NDArray[np.bool_], what: str
    ) -> tuple[Floats, Ints]:
        began_s = time.monotonic()
        ensemble = fit(augmented, clips.labels, np.flatnonzero(train_rows), epochs=epochs, seed=seed)
        inside = np.isin(clips.due_clip, np.flatnonzero(test_rows))
        print(f"sound: {what}, {train_rows.sum()} clips, {time.monotonic() - began_s:.0f} s", flush=True)
        return np.asarray(predict(ensemble, live_features[inside])), clips.due_clip[inside]

    fold_predictions = [train_and_predict(fold != k, fold == k, f"without fold {k}") for k in range(1, FOLDS + 1)]
    left_out = []
    for label in range(SPEECH):
        # It is tested on the class that it was trained without; the folds' figures cover the others.
        left_out.append(train_and_predict(clips.labels != label, clips.labels == label, f"without {LABELS[label]}"))
    net = SoundNet(analysis, fit(augmented, clips.labels, np.arange(len(clips)), epochs=epochs, seed=seed)).eval()
    command = f"python run_pipeline.py train sound --epochs {epochs} --seed {seed}"
    ship(clips, fold, fold_predictions, left_out, net, out, runs, command=command, seed=seed)


@torch.no_grad()
def augmented_features(clips: Speech, analysis: SoundAnalysis, seed: int) -> Tensor:
    """(n, features): one augmented window of each clip."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [analysis(draw(clips, rows, generator, AUGMENTATION)) for rows in torch.arange(len(clips)).split(64)]
    )


@torch.no_grad()
def decision_windows(clips: Speech, analysis: SoundAnalysis) -> Tensor:
    """(windows, features): the windows of the live task on the clips without augmentation."""

    def window(index: int) -> Floats:
        mel = clips.columns(int(clips.due_clip[index]), int(clips.due[index]), VOICE_FRAMES)
        return voice_columns(mel, np.ones(mel.shape[1], bool))  # (2, 64, 300)

    return torch.cat(
        [
            analysis(torch.from_numpy(np.stack([window(int(i)) for i in rows])))
            for rows in torch.arange(len(clips.due)).split(64)
        ]
    )


def fit(augmented: Tensor, labels: Ints, rows: Ints, *, epochs: int, seed: int) -> MlpEnsemble:
    """Train on the clips `rows` of (copies, n, features), with each label equally often."""
    torch.manual_seed(seed)
    net = MlpEnsemble(augmented.shape[2], len(LABELS), members=MEMBERS)
    x = augmented[:, torch.from_numpy(rows)].flatten(0, 1)  # (N, features)
    target = torch.from_numpy(labels[rows]).repeat(augmented.shape[0])  # (N,)
    smoothed = (1 - LABEL_SMOOTHING) * F.one_hot(target, len(LABELS)) + LABEL_SMOOTHING / len(LABELS)
    steps = max(1, int((target != SPEECH).sum()) * 11 // 10 // BATCH)  # an epoch has about one window of each event
    fit_ensemble(
        net,
        x,
        target,
        lambda logits, batch: -(smoothed[batch] * torch.log_softmax(logits, -1)).sum(-1).mean(),
        steps=steps,
        epochs=epochs,
    )
    return net


@torch.no_grad()
def predict(net: MlpEnsemble, features: Tensor) -> Floats:
    """(windows, labels) logits"""
    return np.asarray(net(features)[0].numpy())
