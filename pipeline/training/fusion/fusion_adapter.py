"""Adapts the fusion that was trained on people's votes to the outputs of our encoders, as one small network.

The probabilities of an encoder, rescaled for each class, take the place of the votes of ten people; what was learnt
from real votes about contradicting faces and voices then applies to them. Only the rescaling is fitted on encoder
outputs. Surprise was not among the choices of the voters: its log-odds are weighted and added separately, and the six
other labels share the rest.

Example:
    adapter = FusionAdapter(core, labels=FACE_CLASSES)
    adapter.fit(face_log_probs, voice_log_probs, labels)      # (n, 7), (n, 7), (n,)
    logits = adapter(face[:, None], voice[:, None], present)  # present (n, 2): one absent → the opinion of the other
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.data.votes import PRIOR_VOTES, VOTE_CLASSES
from pipeline.training.export.onnx_export import largest_gap, write_checked
from pipeline.training.fusion.families import membership, subsets
from pipeline.training.fusion.nets import FusionNet
from pipeline.training.fusion.state import TINY

VOTERS = 10.0
UNVOTED = "surprise"
STEPS, RATE = 300, 0.05
# Towards the initial values: pseudo-pairs make the two senses more independent than those of one person are, and free
# scales would undo what was learnt from the votes.
REGULARISATION = 0.005


def opinions_of(face: np.ndarray, voice: np.ndarray) -> tuple[list[Tensor], Tensor, Tensor]:
    """(n, 7) each -> inputs of a FusionNet over the two: both present, at the same time."""
    opinions = [torch.from_numpy(opinion).float()[:, None] for opinion in (face, voice)]
    return opinions, torch.ones(len(face), 2), torch.zeros(len(face), 2)


class FusionAdapter(nn.Module):
    """Encoder outputs → votes → the frozen core → labels.

    Args:
        core: A network over VOTE_CLASSES with the modalities face and voice; it is not changed.
        labels: Of the encoders, including surprise.

    `coordinated` may hold a network over the two opinions whose agreement is exported too.
    """

    coordinated: FusionNet | None

    def __init__(self, core: FusionNet, labels: Sequence[str]) -> None:
        super().__init__()
        self.core = core.eval().requires_grad_(False)
        self.six = [list(labels).index(label) for label in VOTE_CLASSES]
        self.unvoted = list(labels).index(UNVOTED)
        self.order = [[*VOTE_CLASSES, UNVOTED].index(label) for label in labels]
        self.scale = nn.Parameter(torch.ones(2, len(VOTE_CLASSES)))
        self.shift = nn.Parameter(torch.zeros(2, len(VOTE_CLASSES)))
        self.odds = nn.Parameter(torch.tensor([0.7, 0.7]))
        self.odds_shift = nn.Parameter(torch.tensor(0.0))
        self.coordinated = None

    def together(self, face: Tensor, voice: Tensor) -> Tensor:
        """(n, 7) log-probabilities each -> (n, 7) log-probabilities of both."""
        votes, odds = [], self.odds_shift
        for i, opinion in enumerate((face, voice)):
            probs = torch.softmax(self.scale[i] * opinion[:, self.six] + self.shift[i], 1)
            counted = (VOTERS * probs + PRIOR_VOTES) / (VOTERS + PRIOR_VOTES * len(VOTE_CLASSES))
            votes.append(torch.log(counted)[:, None])  # (n, 1, 6)
            prob = torch.exp(opinion[:, self.unvoted]).clamp(1e-5, 1 - 1e-5)
            odds = odds + self.odds[i] * (torch.log(prob) - torch.log(1 - prob))
        here = torch.ones_like(face[:, :2])
        six = torch.log_softmax(self.core(votes, here, torch.zeros_like(here)).logits, 1)
        joined = torch.cat([six + F.logsigmoid(-odds)[:, None], F.logsigmoid(odds)[:, None]], 1)
        return joined[:, self.order]

    def forward(self, face: Tensor, voice: Tensor, present: Tensor) -> Tensor:
        """face, voice: (n, 1, 7), present: (n, 2). A weight between 0 and 1 is the probability that the modality is
        present.
        """
        present = present.clamp(0, 1)
        face = torch.where(present[:, :1] > 0, face[:, 0], torch.zeros_like(face[:, 0]))
        voice = torch.where(present[:, 1:] > 0, voice[:, 0], torch.zeros_like(voice[:, 0]))
        log_probs: dict[tuple[bool, ...], Tensor] = {
            (True, False): face,
            (False, True): voice,
            (True, True): self.together(face, voice),
        }
        members = subsets(2)
        chances = membership([present[:, :1], present[:, 1:]], members)
        mixed = torch.zeros_like(face)
        for member, chance in zip(members, chances, strict=True):
            mixed = mixed + chance * torch.softmax(log_probs[member], 1)
        return torch.log((mixed / torch.stack(chances).sum(0).clamp(min=TINY)).clamp(min=TINY))

    def fit(self, face: np.ndarray, voice: np.ndarray, labels: np.ndarray) -> None:
        """Fit the 27 parameters in full batches, deterministically. Both modalities present; an absent one needs no
        adapter.
        """
        f, v, y = torch.from_numpy(face).float(), torch.from_numpy(voice).float(), torch.from_numpy(labels)
        weight = 1 / torch.bincount(y, minlength=f.shape[1]).clamp(min=1).float()
        optimiser = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=RATE)
        for _ in range(STEPS):
            distance = ((self.scale - 1) ** 2).mean() + (self.shift**2).mean()
            loss = F.nll_loss(self.together(f, v), y, weight) + REGULARISATION * distance
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    @torch.no_grad()
    def predict(self, face: np.ndarray, voice: np.ndarray, present: np.ndarray) -> np.ndarray:
        inputs = (
            torch.from_numpy(face).float()[:, None],
            torch.from_numpy(voice).float()[:, None],
            torch.from_numpy(present).float(),
        )
        return np.asarray(self(*inputs).numpy())


class _Exported(nn.Module):
    """The exported outputs: the logits and, where there is a network for it, the agreement."""

    def __init__(self, adapter: FusionAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, face: Tensor, voice: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        logits = self.adapter(face, voice, present)
        if self.adapter.coordinated is None:
            return (logits,)
        both = (present > 0).float()
        return logits, self.adapter.coordinated([face, voice], both, torch.zeros_like(both)).agreement


def export_adapter(adapter: FusionAdapter, path: Path, labels: int) -> None:
    """Write `face`, `voice` (n, 1, labels), `present` (n, 2) -> `logits` (n, labels) and, where there is one,
    `agreement` (n, 1). Raises RuntimeError, and leaves no file, when ONNX Runtime and torch differ by more than 1e-4
    (probabilities).
    """
    net = _Exported(adapter).eval()
    generator = torch.Generator().manual_seed(0)
    face, voice = (torch.log_softmax(2 * torch.randn(32, 1, labels, generator=generator), 2) for _ in range(2))
    present = torch.tensor([0.0, 0.3, 1.0])[torch.randint(3, (32, 2), generator=generator)]
    inputs, outputs = (
        ["face", "voice", "present"],
        ["logits", *(["agreement"] if adapter.coordinated is not None else [])],
    )

    @torch.no_grad()
    def difference(file: Path) -> float:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        exported = session.run(outputs, {"face": face.numpy(), "voice": voice.numpy(), "present": present.numpy()})
        return largest_gap([out.exp() for out in net(face, voice, present)], [np.exp(out) for out in exported])

    write_checked(net, (face, voice, present), path, inputs, outputs, difference)
