"""Trains the face-expression network on FER2013, from the data to the shipped ONNX file, top to bottom.

Example:
    python run_pipeline.py train face --epochs 50 --seed 7           # may be stopped; continue with --resume
    # from a shipped model
    python run_pipeline.py train face --start models/face-expression.onnx --epochs 24 --lr 0.04
    python run_pipeline.py train face --ship                         # no training: export the best epoch so far

A tenth of the training faces is held back for validation, near-duplicates kept together: it selects the epoch
and fits the temperature. The official PublicTest is evaluated once, at the end, and selects nothing.

Several workers train on their own parts of the faces and average their weights every few steps (local SGD, Stich 2019):
on a busy machine they wait less for each other than the threads of one worker would.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.installation import COMMAND
from pipeline.preprocessing import FACE_PX, face_tensor
from pipeline.training.data.faces import Faces, load_faces, near_duplicate_groups, split_by_group
from pipeline.training.data.folder import data_folder
from pipeline.training.face.evaluate import FACE_MODEL
from pipeline.training.face.export import export_best
from pipeline.training.face.load_checkpoint import face_net_from
from pipeline.training.face.net import FaceNet, MirroredFaceNet

BATCH = 128
PEAK_LR = 0.1
STEPS_BETWEEN_AVERAGES = 8
WEIGHT_DECAY = 5e-4
WARMUP = 0.06  # of all steps
LABEL_SMOOTHING = 0.1  # FER2013's labels are wrong in about one picture in ten
EMA_DECAY = 0.997  # averages over the last two epochs or so
HELD_BACK = 0.1


def augment(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Random changes that keep the expression: framing, light, focus, an occlusion.

    grey: (B, 48, 48) float32, 0 to 255. Returns the same shape and range. One grid_sample warps the whole batch.
    """
    batch = len(grey)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch).uniform_(low, high, generator=generator)

    angle, scale, stretch = uniform(-0.2, 0.2), uniform(0.88, 1.1), uniform(0.95, 1.05)  # ±11°
    mirror = (torch.rand(batch, generator=generator) < 0.5).float() * 2 - 1
    shear = uniform(-0.06, 0.06)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    row_x = torch.stack([mirror * cos * stretch, shear - sin, uniform(-0.12, 0.12)], dim=1)  # ±3 px
    row_y = torch.stack([mirror * sin, cos / stretch, uniform(-0.12, 0.12)], dim=1)
    source_from_target = torch.stack([row_x, row_y], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(source_from_target, [batch, 1, FACE_PX, FACE_PX], align_corners=False)
    face = F.grid_sample(grey[:, None], grid, padding_mode="border", align_corners=False)  # (B, 1, 48, 48)

    blurred = F.avg_pool2d(face, 3, 1, 1, count_include_pad=False)
    face = torch.where(uniform(0, 1)[:, None, None, None] < 0.1, blurred, face)
    gamma = torch.exp(uniform(-0.3, 0.3))[:, None, None, None]
    face = 255 * (face / 255).clamp(1e-3, 1) ** gamma

    # In a quarter of the faces a rectangle of the mean grey hides up to a sixth.
    height, width = uniform(8, 20), uniform(8, 20)
    top, left = uniform(-4, FACE_PX - 4), uniform(-4, FACE_PX - 4)
    hidden = (uniform(0, 1) < 0.25).float()
    pixel = torch.arange(FACE_PX, dtype=torch.float32)
    inside_y = (pixel >= top[:, None]) & (pixel < (top + height * hidden)[:, None])  # (B, 48)
    inside_x = (pixel >= left[:, None]) & (pixel < (left + width * hidden)[:, None])
    covered = inside_y[:, :, None] & inside_x[:, None, :]  # (B, 48, 48)
    face = face[:, 0]
    return torch.where(covered, face.mean(dim=(1, 2), keepdim=True), face)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero. progress: 0 to 1 over all steps."""
    if progress < WARMUP:
        return peak * progress / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


@torch.no_grad()
def update_average(average: FaceNet, net: FaceNet, step: int, decay: float) -> None:
    """Update the exponential moving average of the weights and of the running statistics of the batch norms."""
    decay = min(decay, (1 + step) / (10 + step))  # early on, the average must forget the random start
    for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def bf16_is_fast() -> bool:
    """True where the processor has bfloat16 instructions (twice as fast as float32); else it is emulated, slowly."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text()


@torch.no_grad()
def average_over_workers(*nets: FaceNet) -> None:
    """Replace the networks of every worker by their mean.

    In one message, because its latency costs more than its size.
    """
    tensors = [value for net in nets for value in net.state_dict().values() if value.dtype.is_floating_point]
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for tensor, mean in zip(tensors, joined.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


@torch.no_grad()
def correct_count(net: FaceNet, faces: Faces) -> int:
    mirrored, correct = MirroredFaceNet(net).eval(), 0
    for start in range(0, len(faces), 256):
        x = torch.from_numpy(face_tensor(faces.images[start : start + 256]))  # (B, 1, 48, 48)
        logits = mirrored(x.contiguous(memory_format=torch.channels_last))[0]  # (B, 7)
        correct += int((logits.argmax(1) == torch.from_numpy(faces.labels[start : start + 256])).sum())
    return correct


@dataclass(frozen=True)
class Schedule:
    """The settings of a training run. start: a shipped ONNX file to continue from, instead of random weights."""

    epochs: int
    seed: int
    peak_lr: float
    start: Path | None
    resume: bool
    runs: Path
    workers: int


def train(
    *,
    data: Path | None = None,
    out: Path = FACE_MODEL,
    epochs: int = 50,
    seed: int = 7,
    resume: bool = False,
    runs: Path = Path("runs/face"),
    start: Path | None = None,
    lr: float = PEAK_LR,
    workers: int = 1,
    ship: bool = False,
) -> None:
    """Train, select the epoch with the best validation accuracy, export it to `out` and measure it.

    Args:
        data: The folder of the training data.
        out: The ONNX file.
        epochs: Length of the schedule.
        seed: Of the validation split, the initial weights and the augmentation.
        resume: Continue from last.pt in `runs`, also with another number of epochs.
        runs: Folder of last.pt, best.pt and log.jsonl.
        start: A shipped ONNX file to continue from, instead of random weights.
        lr: The peak learning rate of the schedule.
        workers: Processes that share the faces.
        ship: Train nothing, export the best epoch so far.

    Raises ConfigError when the data is missing or a checkpoint belongs to another seed.
    """
    folder = data_folder(data)
    faces = load_faces(folder, "train48")
    train_rows, val_rows = split_by_group(near_duplicate_groups(faces.images), fraction=HELD_BACK, seed=seed)
    train_faces, val_faces = faces.take(train_rows), faces.take(val_rows)
    if len(train_faces) // workers < BATCH:
        raise ConfigError(
            f"{folder}: {len(train_faces)} faces to train on, fewer than one batch of {BATCH} for each of "
            f"{workers} workers. Give more data."
        )
    print(f"face: {len(train_faces)} training faces, {len(val_faces)} for validation", flush=True)

    best = runs / "best.pt"
    if ship:
        if not best.is_file():
            raise ConfigError(f"{best}: no trained network to export. Train first: {COMMAND} train face")
    else:
        runs.mkdir(parents=True, exist_ok=True)
        schedule = Schedule(epochs, seed, lr, start, resume, runs, workers)
        if workers == 1:
            learn(0, schedule, train_faces, val_faces)
        else:
            (runs / "meeting").unlink(missing_ok=True)
            processes.spawn(learn, args=(schedule, train_faces, val_faces), nprocs=workers)
    export_best(best, val_faces, seed, folder, out)


def learn(rank: int, schedule: Schedule, train_faces: Faces, val_faces: Faces) -> None:
    """The train_faces of one worker. Worker 0 writes the checkpoints and the log."""
    epochs, seed, runs, workers = schedule.epochs, schedule.seed, schedule.runs, schedule.workers
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{(runs / 'meeting').resolve()}", rank=rank, world_size=workers
        )
    steps = len(train_faces) // workers // BATCH
    decay = EMA_DECAY**workers  # one step of a worker stands for one step of each

    torch.manual_seed(seed)
    net = FaceNet() if schedule.start is None else face_net_from(schedule.start, train_faces.images)
    net = net.to(memory_format=torch.channels_last)  # two to three times as fast as the default on a processor
    average = FaceNet().to(memory_format=torch.channels_last)
    average.load_state_dict(net.state_dict())
    # No weight decay for norms and biases: pulling a scale towards zero does not regularise.
    decayed = [p for p in net.parameters() if p.dim() > 1]
    not_decayed = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": not_decayed, "weight_decay": 0.0}],
        lr=schedule.peak_lr,
        momentum=0.9,
        nesterov=True,
    )

    last, best, log = runs / "last.pt", runs / "best.pt", runs / "log.jsonl"
    first_epoch, best_accuracy = 0, 0.0
    if schedule.resume and last.is_file():
        stored = torch.load(last, weights_only=True)
        if stored["seed"] != seed:
            raise ConfigError(
                f"{last}: trained with seed {stored['seed']}, with another validation split. "
                f"Resume with --seed {stored['seed']}, or start again without --resume."
            )
        net.load_state_dict(stored["net"])
        average.load_state_dict(stored["average"])
        optimiser.load_state_dict(stored["optimiser"])
        first_epoch, best_accuracy = stored["epoch"] + 1, stored["best_accuracy"]
        print(f"face: resuming after epoch {first_epoch}", flush=True)
    elif rank == 0:
        log.unlink(missing_ok=True)

    images, labels = torch.from_numpy(train_faces.images), torch.from_numpy(train_faces.labels)
    worker_faces = val_faces.take(np.arange(rank, len(val_faces), workers))
    bf16, began_s = bf16_is_fast(), time.monotonic()
    for epoch in range(first_epoch, epochs):
        net.train()
        # One generator for each epoch and worker, so that a resumed run equals an uninterrupted one.
        epoch_seed = seed * 100_003 + epoch
        order = torch.randperm(len(train_faces), generator=torch.Generator().manual_seed(epoch_seed))[rank::workers]
        generator = torch.Generator().manual_seed(epoch_seed * 64 + rank)
        torch.manual_seed(epoch_seed * 64 + rank)  # dropout draws from the global one
        losses = []
        for step in range(steps):
            step_number = epoch * steps + step
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step_number / (epochs * steps), schedule.peak_lr)
            batch = order[step * BATCH : (step + 1) * BATCH]
            x = torch.from_numpy(face_tensor(augment(images[batch].float(), generator).numpy()))  # (B, 1, 48, 48)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                logits = net(x.contiguous(memory_format=torch.channels_last))[0].float()  # (B, 7)
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if workers > 1 and step % STEPS_BETWEEN_AVERAGES == 0:
                average_over_workers(net)
            update_average(average, net, step_number, decay)
            losses.append(loss.item())

        if workers > 1:
            average_over_workers(net, average)
        correct = torch.tensor([correct_count(average, worker_faces)])
        if workers > 1:
            dist.all_reduce(correct)
        accuracy = float(correct) / len(val_faces)
        if rank > 0:
            continue
        if accuracy > best_accuracy:
            best_accuracy = accuracy
            torch.save(
                {"average": average.state_dict(), "epoch": epoch, "seed": seed, "command": command(schedule)}, best
            )
        temporary = last.with_suffix(".new")
        torch.save(
            {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "epoch": epoch,
                "best_accuracy": best_accuracy,
                "seed": seed,
            },
            temporary,
        )
        temporary.replace(last)  # atomic: a killed run leaves the checkpoint of the epoch before
        epoch_s = (time.monotonic() - began_s) / (epoch - first_epoch + 1)
        with log.open("a") as lines:
            lines.write(
                json.dumps(
                    {
                        "epoch": epoch,
                        "loss": float(np.mean(losses)),
                        "held_back_accuracy": accuracy,
                        "lr": optimiser.param_groups[0]["lr"],
                        "epoch_s": epoch_s,
                    }
                )
                + "\n"
            )
        print(
            f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}  validation {accuracy:.2%}  "
            f"best {best_accuracy:.2%}  {epoch_s:.0f} s an epoch, {epoch_s * (epochs - epoch - 1) / 60:.0f} min left",
            flush=True,
        )
    if workers > 1:
        dist.destroy_process_group()


def command(schedule: Schedule) -> str:
    """The command that repeats this train_faces."""
    words = [
        f"python run_pipeline.py train face --epochs {schedule.epochs} --seed {schedule.seed} --lr {schedule.peak_lr:g}"
    ]
    if schedule.start is not None:
        words.append(f"--start {schedule.start}")
    if schedule.workers > 1:
        words.append(f"--workers {schedule.workers}")
    return " ".join(words)
