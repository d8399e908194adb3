"""Trains any fusion network: the loop, the losses, prediction and export.

Each batch is used twice: complete, and with modalities dropped at random. The network learns to predict from both, each
modality learns to predict alone, and by distillation the prediction without some modalities follows the complete one.

Example:
    net = FusionNet((Modality("face", 6), Modality("voice", 6)), labels=6, family="attention")
    fit(net, examples.take(rows), Recipe(epochs=40), seed=1)
    logits = predict(net, examples.take(test_rows).with_only("face"))     # (n, 6) float32
    export_fusion(net, Path("models/fusion.onnx"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.export.onnx_export import largest_gap, write_checked
from pipeline.training.fusion.families import Joint
from pipeline.training.fusion.nets import Fused, FusionNet
from pipeline.training.fusion.state import Modality, State

CONTRAST_TEMPERATURE = 0.2


@dataclass(frozen=True)
class Examples:
    """Examples for a fusion network. features: per modality (n, tokens, width) float32. present, offset_s: (n, all
    tokens) float32. labels: (n,).
    """

    modalities: tuple[Modality, ...]
    features: tuple[Tensor, ...]
    present: Tensor
    offset_s: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(
        cls,
        modalities: Sequence[Modality],
        features: Sequence[npt.NDArray[np.floating]],
        labels: npt.NDArray[np.int64],
        present: npt.NDArray[np.floating] | None = None,
        offset_s: npt.NDArray[np.floating] | None = None,
    ) -> Examples:
        """features: (n, width), or (n, tokens, width). By default everything is present, at the time of the anchor."""
        tensors = tuple(
            torch.from_numpy(np.asarray(x, np.float32).reshape(len(labels), m.tokens, m.width))
            for m, x in zip(modalities, features, strict=True)
        )
        shape = (len(labels), sum(m.tokens for m in modalities))
        here = np.ones(shape, np.float32) if present is None else np.asarray(present, np.float32)
        when = np.zeros(shape, np.float32) if offset_s is None else np.asarray(offset_s, np.float32)
        return cls(tuple(modalities), tensors, torch.from_numpy(here), torch.from_numpy(when), torch.from_numpy(labels))

    def take(self, rows: npt.NDArray[np.int64] | Tensor) -> Examples:
        at = torch.as_tensor(rows)
        return replace(
            self,
            features=tuple(x[at] for x in self.features),
            present=self.present[at],
            offset_s=self.offset_s[at],
            labels=self.labels[at],
        )

    def with_only(self, *names: str) -> Examples:
        """All other modalities absent."""
        keep = torch.cat([torch.full((m.tokens,), float(m.name in names)) for m in self.modalities])
        return replace(self, present=self.present * keep)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the training.

    drop: probability that a modality is dropped (never all). own: weight of the loss of each modality alone. distil: of
    the distillation from all modalities to some. contrast: of the contrastive loss in the coordinated space. translate,
    reconstruct: of the translated embeddings, and of the features reconstructed from the joint code.
    """

    epochs: int = 30
    batch: int = 128
    rate: float = 3e-3
    decay: float = 1e-3
    drop: float = 0.3
    own: float = 0.3
    distil: float = 0.3
    contrast: float = 0.3
    translate: float = 0.3
    reconstruct: float = 0.1


def fit(net: FusionNet, examples: Examples, recipe: Recipe, *, seed: int) -> None:
    """AdamW, one-cycle; deterministic for a seed on one thread. Leaves the network in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    size = min(recipe.batch, len(examples))
    steps = recipe.epochs * (len(examples) // size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps)
    net.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(examples), generator=generator)
        for start in range(0, len(examples) - size + 1, size):
            loss = losses(net, examples.take(order[start : start + size]), recipe, generator)
            if not loss.requires_grad:
                break  # a rule without parameters: nothing to train
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


def losses(net: FusionNet, batch: Examples, recipe: Recipe, generator: torch.Generator) -> Tensor:
    y = batch.labels
    state = net.encode(batch.features, batch.present, batch.offset_s)
    full = net.decide(state)
    loss = F.cross_entropy(full.logits, y) + recipe.own * unimodal_loss(full, state, y)
    if recipe.drop > 0 and len(net.modalities) > 1:
        present = batch.present * modality_dropout(net.modalities, len(batch), recipe.drop, generator)
        partial = net(batch.features, present, batch.offset_s)
        teacher = torch.softmax(full.logits.detach(), 1)
        loss = loss + F.cross_entropy(partial.logits, y) + recipe.distil * F.cross_entropy(partial.logits, teacher)
    if net.coordinates:
        loss = loss + recipe.contrast * contrastive_loss(net, state, y)
    if len(net.translators):
        guesses = net.translations(state.own, state.presence)
        for guess, own, p in zip(guesses, state.own, state.presence, strict=True):
            loss = loss + recipe.translate * (p * (guess - own.detach()) ** 2).mean()
    if isinstance(net.family, Joint):
        for reconstruct, raw, p in zip(net.family.reconstruct, state.raw, state.presence, strict=True):
            loss = loss + recipe.reconstruct * (p * (reconstruct(full.embedding) - raw) ** 2).mean()
    return loss


def unimodal_loss(fused: Fused, state: State, y: Tensor) -> Tensor:
    """Each modality's own loss, over those that are present."""
    each = F.cross_entropy(fused.opinions.flatten(0, 1), y.repeat_interleave(fused.opinions.shape[1]), reduction="none")
    there = (state.flags() > 0).float().flatten()
    return (each * there).sum() / there.sum().clamp(min=1)


def modality_dropout(
    modalities: Sequence[Modality], count: int, probability: float, generator: torch.Generator
) -> Tensor:
    """(count, all tokens) of 0 and 1: whole modalities are dropped, but at least one in each row remains."""
    keep = torch.rand(count, len(modalities), generator=generator) >= probability  # (B, M)
    always_present = torch.randint(len(modalities), (count,), generator=generator)
    keep[torch.arange(count), always_present] = True
    return torch.cat([keep[:, i : i + 1].expand(-1, m.tokens) for i, m in enumerate(modalities)], 1).float()


def contrastive_loss(net: FusionNet, state: State, y: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) across modalities: pairs of one label are closer than others."""
    same_label = (y[:, None] == y[None]).float()
    total = torch.zeros(())
    for i, j in net.pairs:
        both = (state.presence[i] * state.presence[j] > 0).float()  # (B, 1)
        near = state.coordinates[i] @ state.coordinates[j].T / CONTRAST_TEMPERATURE  # (B, B)
        positives = same_label * both.T
        for scores, positive_pairs in ((near, positives), (near.T, positives)):
            scores = scores + torch.where(both.T > 0, 0.0, -1e4)
            log_likelihood = (positive_pairs * torch.log_softmax(scores, 1)).sum(1, keepdim=True) / positive_pairs.sum(
                1, keepdim=True
            ).clamp(min=1)
            total = total - (both * log_likelihood).sum() / both.sum().clamp(min=1)
    return total / max(1, 2 * len(net.pairs))


@torch.no_grad()
def predict(net: FusionNet, examples: Examples) -> npt.NDArray[np.float32]:
    """(n, labels) logits."""
    net.eval()
    return np.asarray(net(examples.features, examples.present, examples.offset_s).logits.numpy())


def export_fusion(net: FusionNet, path: Path) -> None:
    """Write the modalities by name (n, tokens, width), `present` and `offset_s` (n, all tokens) -> `logits`,
    `opinions`, `embedding` and, where there is one, `agreement`; float32, n free.

    An input that the family does not read (`offset_s` of most) is no input of the file. Raises RuntimeError, and leaves
    no file, when ONNX Runtime's answers differ from torch's by more than 1e-4.
    """
    net.eval()
    inputs = [*(m.name for m in net.modalities), "present", "offset_s"]
    outputs = ["logits", "opinions", "embedding", *(["agreement"] if net.coordinates and net.pairs else [])]
    flat = _Flat(net, len(outputs)).eval()
    write_checked(flat, _samples(net, 2), path, inputs, outputs, lambda file: largest_difference(net, file))


@torch.no_grad()
def largest_difference(net: FusionNet, path: Path) -> float:
    """Between torch and ONNX Runtime over all outputs, with modalities present, absent and in between."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    samples = _samples(net, 16)
    inputs = dict(zip([*(m.name for m in net.modalities), "present", "offset_s"], samples, strict=True))
    read = {value.name for value in session.get_inputs()}
    theirs = session.run(outputs, {name: x.numpy() for name, x in inputs.items() if name in read})
    ours = _Flat(net, len(outputs))(*samples)
    return largest_gap(ours, theirs)


class _Flat(torch.nn.Module):
    """ONNX needs every tensor as an argument of its own."""

    def __init__(self, net: FusionNet, outputs: int) -> None:
        super().__init__()
        self.net, self.outputs = net, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(tensors[:-2], tensors[-2], tensors[-1]))[: self.outputs]


def _samples(net: FusionNet, count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(count, m.tokens, m.width, generator=generator) for m in net.modalities]
    tokens = sum(m.tokens for m in net.modalities)
    present = torch.tensor([0.0, 0.4, 1.0])[torch.randint(3, (count, tokens), generator=generator)]
    return (*features, present, torch.randn(count, tokens, generator=generator))
