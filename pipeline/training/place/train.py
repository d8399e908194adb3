"""Trains the place network on the fifteen-scene set, from the pictures to the shipped ONNX file, top to bottom.

Example:
    python run_pipeline.py train place --epochs 4 --seed 7            # may be stopped; continue with --resume

In five folds, a network is trained on four fifths of the pictures by a fixed recipe and predicts the rest. These
predictions give the figures and the temperature. The shipped network is trained by the same recipe on all pictures.
Nothing is selected on a reported fold, and the Intel pictures are evaluated once, at the end.

One processor core is enough, because the first fourteen blocks keep their ImageNet weights: their outputs for each
picture and a few augmented copies are computed once (by ONNX Runtime, three times as fast as torch), and only the rest
is trained.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.inference.backends.onnxruntime import Onnxruntime
from pipeline.preprocessing import PLACE_PX, place_tensor
from pipeline.training.data.folder import data_folder
from pipeline.training.evaluation.classifier_figures import figures, fit_temperature
from pipeline.training.place.data import FOLDS, PLACES, Places, folds, load_places, vary
from pipeline.training.place.evaluate import PLACE_MODEL, intel_figures
from pipeline.training.place.export import export_early, export_place, manifest_of
from pipeline.training.place.net import PlaceNet, rooted, start_net

BATCH = 32
PEAK_LR, WARMUP = 1e-4, 0.1
WEIGHT_DECAY = 0.02
EMA_DECAY = 0.97  # averages over about one epoch
HEAD_RIDGE = 1e-2  # of the logistic regression that initialises the head
PLAIN_SHARE = 0.5  # share of the pictures without augmentation
TUNED_SHARE = 0.5  # weight of the tuned weights, against the initial ones, in the shipped network
VIEWS = 5  # of each picture: the original, and four augmented


def early_views(
    places: Places, net: PlaceNet, folder: Path, *, seed: int, views: int = VIEWS
) -> list[npt.NDArray[np.float16]]:
    """[view] -> (n, 192, 8, 8) float16: output of the frozen blocks; view 0 is the original picture, the others are
    augmented.

    Each is cached in `folder` for resumed runs.
    """
    views_of_all, began_s, engine = [], time.monotonic(), None
    for view in range(views):
        path = folder / f"early-{seed}-{view}-{len(places)}-{PLACE_PX}.npy"
        if not path.is_file():
            if engine is None:
                export_early(net, folder / "early.onnx")
                engine = Onnxruntime(folder / "early.onnx", threads=1)
            random = np.random.default_rng([seed, view])
            images = [image if view == 0 else vary(image, random) for image in places.images]
            outputs = [
                engine.run({"place": place_tensor(image)[None]})["early"][0].astype(np.float16) for image in images
            ]
            checkpoint = path.with_suffix(".new.npy")
            np.save(checkpoint, np.stack(outputs))
            checkpoint.replace(path)
            print(
                f"place: view {view + 1}/{views} of {len(places)} pictures, {time.monotonic() - began_s:.0f} s",
                flush=True,
            )
        views_of_all.append(np.asarray(np.load(path)))
    return views_of_all


def start_head(net: PlaceNet, embeddings: Tensor, labels: Tensor) -> None:
    """Initialise the head by logistic regression on the embeddings of the start weights.

    Fine-tuning from a good head changes the layers below less, and keeps more of what they know of other pictures
    (Kumar 2022).
    """
    embeddings = rooted(embeddings)
    mean, scale = embeddings.mean(0), embeddings.std()
    x = (embeddings - mean) / scale  # (n, 3840)
    weight, bias = (
        torch.zeros(len(net.head.bias), x.shape[1], requires_grad=True),
        torch.zeros(len(net.head.bias), requires_grad=True),
    )
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + HEAD_RIDGE * (weight**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        net.head.weight.copy_(weight / scale)
        net.head.bias.copy_(bias - weight @ mean / scale)


def fine_tune(
    net: PlaceNet,
    early: Sequence[npt.NDArray[np.float16]],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
    name: str,
) -> PlaceNet:
    """Train the late blocks on `rows` for a fixed number of epochs.

    Returns the network half way between its initial and its averaged tuned weights: as accurate on pictures like these,
    and more accurate on degraded ones (Wortsman 2022).

    early: [view] -> (n, 192, 8, 8). The norms keep ImageNet's statistics, which rest on far more pictures than a batch
    of 32.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout uses the global generator
    net = net.eval().to(memory_format=torch.channels_last)
    net.dropout.train()
    trained = [p for name, p in net.named_parameters() if not name.startswith(net.frozen)]
    average = copy.deepcopy(net)
    initial = [p.detach().clone() for p in trained]
    averaged = [p for name, p in average.named_parameters() if not name.startswith(net.frozen)]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=PEAK_LR,
    )
    steps, began_s = len(rows) // BATCH, time.monotonic()
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR, total_steps=epochs * steps, pct_start=WARMUP, cycle_momentum=False
    )
    views = torch.stack(
        [torch.randperm(len(early), generator=generator) for _ in range(len(labels))]
    )  # (n, views): an order of its own for each picture
    for epoch in range(epochs):
        losses = []
        order = torch.from_numpy(rows)[torch.randperm(len(rows), generator=generator)]
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            plain = torch.rand(len(batch), generator=generator) < PLAIN_SHARE
            view = torch.where(plain, 0, views[batch, epoch % len(early)])
            x = torch.from_numpy(
                np.stack([early[v][i] for v, i in zip(view, batch, strict=True)]).astype(np.float32)
            )  # (B, 192, 8, 8)
            logits, _ = net.late(x.contiguous(memory_format=torch.channels_last))  # (B, 15)
            loss = F.cross_entropy(logits, torch.from_numpy(labels)[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            done = epoch * steps + step
            with torch.no_grad():
                for slow, fast in zip(averaged, trained, strict=True):
                    slow.lerp_(fast, 1 - min(EMA_DECAY, (1 + done) / (10 + done)))
            losses.append(loss.item())
        epoch_s = (time.monotonic() - began_s) / (epoch + 1)
        print(
            f"{name}: epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}  {epoch_s:.0f} s an epoch, "
            f"{epoch_s * (epochs - epoch - 1) / 60:.0f} min left",
            flush=True,
        )
    with torch.no_grad():
        for end, begin in zip(averaged, initial, strict=True):
            end.lerp_(begin, 1 - TUNED_SHARE)
    return average.eval()


@torch.no_grad()
def predict(net: PlaceNet, early: npt.NDArray[np.float16]) -> tuple[Tensor, Tensor]:
    """early: (n, 192, 8, 8). Returns logits (n, 15) and embeddings (n, 3840)."""
    net = net.eval().to(memory_format=torch.channels_last)
    outputs = [
        net.late(torch.from_numpy(early[i : i + 64].astype(np.float32)).contiguous(memory_format=torch.channels_last))
        for i in range(0, len(early), 64)
    ]
    return torch.cat([logits for logits, _ in outputs]), torch.cat([embedding for _, embedding in outputs])


def train(
    *,
    data: Path | None = None,
    out: Path = PLACE_MODEL,
    epochs: int = 4,
    seed: int = 7,
    resume: bool = False,
    runs: Path = Path("runs/place"),
) -> None:
    """Train and test five folds, then train the shipped network on all pictures and export it.

    Args:
        data: The folder of the training data.
        out: The ONNX file.
        epochs: Of every network; the schedule is fixed.
        seed: Of the folds, the augmentation and the training.
        resume: Reuse finished folds in `runs`.
        runs: Folder of the outputs of the frozen blocks, fold-N.npz (logits of the test rows) and all.pt.
    """
    torch.set_num_threads(1)
    runs.mkdir(parents=True, exist_ok=True)
    folder = data_folder(data)
    places = load_places(folder / "scenes" / "fifteen", PLACES)
    start = start_net(len(PLACES))
    early = early_views(places, start, runs, seed=seed)
    embeddings = predict(start, early[0])[1]  # (n, 3840), before any training
    command = f"python run_pipeline.py train place --epochs {epochs} --seed {seed}"

    def trained(rows: npt.NDArray[np.int64], number: int, name: str) -> PlaceNet:
        net = copy.deepcopy(start)
        start_head(net, embeddings[rows], torch.from_numpy(places.labels[rows]))
        return fine_tune(net, early, places.labels, rows, epochs=epochs, seed=seed * 100 + number, name=name)

    logits = np.zeros((len(places), len(PLACES)), np.float32)
    fold_of = np.zeros(len(places), np.int64)
    for number, (rows, test_rows) in enumerate(folds(places, seed=seed)):
        stored = runs / f"fold-{number}.npz"
        if resume and stored.is_file() and str(np.load(stored)["command"]) == command:
            logits[test_rows] = np.load(stored)["logits"]
        else:
            logits[test_rows] = predict(trained(rows, number, f"fold {number + 1}/{FOLDS}"), early[0][test_rows])[
                0
            ].numpy()
            np.savez(stored, logits=logits[test_rows], command=command)
        fold_of[test_rows] = number
        right = (logits[test_rows].argmax(1) == places.labels[test_rows]).mean()
        print(f"fold {number + 1}/{FOLDS}: {right:.1%} of {len(test_rows)} test pictures", flush=True)
    metrics = cross_validated(logits, places.labels, fold_of)
    print("place, out of fold: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)

    checkpoint = runs / "all.pt"
    if (
        resume
        and checkpoint.is_file()
        and (stored_net := torch.load(checkpoint, weights_only=True))["command"] == command
    ):
        net = copy.deepcopy(start)
        net.load_state_dict(stored_net["net"])
    else:
        net = trained(np.arange(len(places)), FOLDS, "all pictures")
        torch.save({"net": net.state_dict(), "command": command}, checkpoint)
    export_place(net, out)
    manifest = manifest_of(net, fit_temperature(logits, places.labels), command, metrics)
    manifest.write(out)
    if (folder / "scenes" / "intel").is_dir():
        metrics |= intel_figures(out, folder)
        manifest.write(out)
    (runs / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"{out}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)


def cross_validated(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], fold_of: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Figures of (n, 15) out-of-fold logits.

    The calibration error uses, for each fold, the temperature of the other four.
    """
    scaled = np.zeros_like(logits)
    for fold in np.unique(fold_of):
        others = fold_of != fold
        scaled[~others] = logits[~others] / fit_temperature(logits[others], labels[others])
    views_of_all = {f"cv_{name}": value for name, value in figures(scaled, labels, temperature=1.0).items()}
    right = scaled.argmax(1) == labels
    each = [float(right[fold_of == fold].mean()) for fold in np.unique(fold_of)]
    views_of_all |= {"cv_fold_lowest": min(each), "cv_fold_highest": max(each), "cv_fold_1": each[0]}
    return views_of_all | {f"cv_recall_{name}": float(right[labels == i].mean()) for i, name in enumerate(PLACES)}
