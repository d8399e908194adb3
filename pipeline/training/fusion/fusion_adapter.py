"""From our encoders' outputs to the fusion that people's votes taught, as one small network.

An encoder's probabilities, rescaled class by class, are taken for the votes of ten people; what was learnt from real
votes, about how far a voice may contradict a face, then holds for them. Only the rescaling is fitted on encoders'
outputs. Nobody
could vote for surprise: its log-odds are weighed and added up beside the votes, and the six others share what it
leaves.

    adapter = FusionAdapter(core, labels=FACE_CLASSES)
    adapter.fit(face_log_probs, voice_log_probs, labels)      # (n, 7), (n, 7), (n,)
    logits = adapter(face[:, None], voice[:, None], present)  # present (n, 2): one absent → the other's own opinion
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

PEOPLE = 10.0
ALONE = "surprise"
STEPS, RATE = 300, 0.05
# Towards what they start from: pseudo-pairs make the two senses more independent than one person's are, and with free
# scales the votes' lesson would be unlearnt.
PULL = 0.005


def opinions_of(face: np.ndarray, voice: np.ndarray) -> tuple[list[Tensor], Tensor, Tensor]:
    """(n, 7) each -> what a FusionNet over the two takes, both present and of the same moment."""
    told = [torch.from_numpy(opinion).float()[:, None] for opinion in (face, voice)]
    return told, torch.ones(len(face), 2), torch.zeros(len(face), 2)


class FusionAdapter(nn.Module):
    """core: over VOTE_CLASSES, modalities face and voice; it is not changed. labels: of the encoders, surprise
    included.
    coordinated: a network over the two opinions whose agreement is told as well; None: it is not."""

    coordinated: FusionNet | None

    def __init__(self, core: FusionNet, labels: Sequence[str]) -> None:
        super().__init__()
        self.core = core.eval().requires_grad_(False)
        self.six = [list(labels).index(label) for label in VOTE_CLASSES]
        self.alone = list(labels).index(ALONE)
        self.order = [[*VOTE_CLASSES, ALONE].index(label) for label in labels]
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
            counted = (PEOPLE * probs + PRIOR_VOTES) / (PEOPLE + PRIOR_VOTES * len(VOTE_CLASSES))
            votes.append(torch.log(counted)[:, None])  # (n, 1, 6)
            said = torch.exp(opinion[:, self.alone]).clamp(1e-5, 1 - 1e-5)
            odds = odds + self.odds[i] * (torch.log(said) - torch.log(1 - said))
        here = torch.ones_like(face[:, :2])
        six = torch.log_softmax(self.core(votes, here, torch.zeros_like(here)).logits, 1)
        joined = torch.cat([six + F.logsigmoid(-odds)[:, None], F.logsigmoid(odds)[:, None]], 1)
        return joined[:, self.order]

    def forward(self, face: Tensor, voice: Tensor, present: Tensor) -> Tensor:
        """face, voice: (n, 1, 7), present: (n, 2). A weight between 0 and 1 is so much chance that it is there."""
        present = present.clamp(0, 1)
        face = torch.where(present[:, :1] > 0, face[:, 0], torch.zeros_like(face[:, 0]))
        voice = torch.where(present[:, 1:] > 0, voice[:, 0], torch.zeros_like(voice[:, 0]))
        answers: dict[tuple[bool, ...], Tensor] = {
            (True, False): face,
            (False, True): voice,
            (True, True): self.together(face, voice),
        }
        members = subsets(2)
        chances = membership([present[:, :1], present[:, 1:]], members)
        mixed = torch.zeros_like(face)
        for member, chance in zip(members, chances, strict=True):
            mixed = mixed + chance * torch.softmax(answers[member], 1)
        return torch.log((mixed / torch.stack(chances).sum(0).clamp(min=TINY)).clamp(min=TINY))

    def fit(self, face: np.ndarray, voice: np.ndarray, labels: np.ndarray) -> None:
        """Twenty-seven numbers, full batches, no chance in it. Both present; what is absent needs no adapter."""
        f, v, y = torch.from_numpy(face).float(), torch.from_numpy(voice).float(), torch.from_numpy(labels)
        weight = 1 / torch.bincount(y, minlength=f.shape[1]).clamp(min=1).float()
        optimiser = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=RATE)
        for _ in range(STEPS):
            pulled = ((self.scale - 1) ** 2).mean() + (self.shift**2).mean()
            loss = F.nll_loss(self.together(f, v), y, weight) + PULL * pulled
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    @torch.no_grad()
    def answer(self, face: np.ndarray, voice: np.ndarray, present: np.ndarray) -> np.ndarray:
        inputs = (
            torch.from_numpy(face).float()[:, None],
            torch.from_numpy(voice).float()[:, None],
            torch.from_numpy(present).float(),
        )
        return np.asarray(self(*inputs).numpy())


class _Told(nn.Module):
    """What is exported: the answer and, where there is a network for it, the agreement."""

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
    told = _Told(adapter).eval()
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
        theirs = session.run(outputs, {"face": face.numpy(), "voice": voice.numpy(), "present": present.numpy()})
        return largest_gap([out.exp() for out in told(face, voice, present)], [np.exp(out) for out in theirs])

    write_checked(told, (face, voice, present), path, inputs, outputs, difference)
