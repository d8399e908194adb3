"""Networks that fuse any set of modalities, every family under one name, one interface and one presence mask.

    families over decisions    average weighted voting product stacked           (each modality decides, then they are joined)
    families over features     early concat sum hybrid attention cross transformer joint coordinated

    net = FusionNet((Modality("face", 256), Modality("voice", 128), Modality("pulse", 1, tokens=8)), labels=7, family="cross")
    fused = net((face, voice, pulse), present, offset_s)      # (B, T, D) each, (B, tokens), (B, tokens) -> Fused

`present` is a weight from 0 (absent) to 1 (there, and good) per token. What an absent token holds, NaN included, cannot
change any output. `offset_s` is a token's capture time minus the anchor's; the transformer reads it, the others do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.fusion.families import COORDINATES, FAMILIES
from pipeline.training.fusion.state import Modality, State, perceptron, pooled


class Fused(NamedTuple):
    logits: Tensor  # (B, labels)
    opinions: Tensor  # (B, modalities, labels): logits of each modality alone; of an absent one they say nothing
    embedding: Tensor  # (B, width of the joint representation)
    agreement: Tensor  # (B, pairs) cosine of the coordinated embeddings; 0 where one of the two is absent


class FusionNet(nn.Module):
    """hidden: one or two layers of the head. layers, heads: of the attention families. translate: an absent modality's
    embedding is guessed from those present, instead of left zero. coordinate: tell the agreement in any family."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        labels: int,
        *,
        family: str = "concat",
        width: int = 32,
        hidden: Sequence[int] = (32,),
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        translate: bool = False,
        coordinate: bool = False,
    ) -> None:
        super().__init__()
        if family not in FAMILIES or not modalities or len(hidden) not in (1, 2) or width % heads:
            raise ValueError(
                f"family '{family}' of {', '.join(FAMILIES)}; at least one modality; one or two hidden layers "
                f"(found {len(hidden)}); width {width} a multiple of heads {heads}"
            )
        self.modalities, self.labels, self.width, self.hidden = tuple(modalities), labels, width, tuple(hidden)
        self.heads, self.layers, self.dropout, self.name = heads, layers, dropout, family
        self.pairs = list(combinations(range(len(modalities)), 2))
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(m.width, width), nn.GELU(), nn.Linear(width, width)) for m in modalities
        )
        self.opine = nn.ModuleList(perceptron(width, (), labels) for _ in modalities)
        self.place = nn.ModuleList(nn.Linear(width, COORDINATES) for _ in modalities)
        others = (len(modalities) - 1) * (width + 1)
        self.guess = nn.ModuleList(perceptron(others, (2 * width,), width) for _ in modalities if others and translate)
        self.coordinates = coordinate or family == "coordinated"
        self.family = FAMILIES[family](self)

    def encode(self, features: Sequence[Tensor], present: Tensor, offset_s: Tensor) -> State:
        sizes = [m.tokens for m in self.modalities]
        weight, offsets = list(present.split(sizes, 1)), list(offset_s.split(sizes, 1))
        raw, tokens, own, presence = [], [], [], []
        for x, w, project in zip(features, weight, self.project, strict=True):
            x = torch.where(w[..., None] > 0, x, torch.zeros_like(x))  # (B, T, D); NaN × 0 would still be NaN
            token = project(x) * (w > 0)[..., None]
            there = w.amax(1, keepdim=True)
            raw.append(pooled(x, w))  # an opinion stays the opinion it is; how much it counts is in `presence`
            tokens.append(token)
            own.append(pooled(token, w) * there)
            presence.append(there)
        opinions = [
            x if m.opinion else opine(h) for m, x, opine, h in zip(self.modalities, raw, self.opine, own, strict=True)
        ]
        placed = [F.normalize(place(h), dim=1) for place, h in zip(self.place, own, strict=True)]
        seen, counted = own, presence
        if len(self.guess):
            absent, anybody = [p == 0 for p in presence], torch.cat(presence, 1).amax(1, keepdim=True)
            guesses = self.translations(own, presence)
            seen = [torch.where(a, g * anybody, h) for a, g, h in zip(absent, guesses, own, strict=True)]
            counted = [torch.where(a, anybody, p) for a, p in zip(absent, presence, strict=True)]
            tokens = [
                torch.where(a[..., None], s[:, None].expand_as(t), t)
                for a, s, t in zip(absent, seen, tokens, strict=True)
            ]
            weight = [torch.where(a, anybody.expand_as(w), w) for a, w in zip(absent, weight, strict=True)]
        return State(raw, tokens, weight, offsets, seen, own, presence, counted, opinions, placed)

    def translations(self, own: Sequence[Tensor], presence: Sequence[Tensor]) -> list[Tensor]:
        """Each modality's embedding as the others would guess it."""
        told = [torch.cat([h, p], 1) for h, p in zip(own, presence, strict=True)]
        return [guess(torch.cat([t for j, t in enumerate(told) if j != i], 1)) for i, guess in enumerate(self.guess)]

    def decide(self, s: State) -> Fused:
        logits, z = self.family.combine(s)
        fits = [
            (s.coordinates[i] * s.coordinates[j]).sum(1, keepdim=True) * (s.presence[i] * s.presence[j] > 0)
            for i, j in self.pairs
            if self.coordinates
        ]
        return Fused(logits, torch.stack(s.opinions, 1), z, torch.cat(fits, 1) if fits else logits[:, :0])

    def forward(self, features: Sequence[Tensor], present: Tensor, offset_s: Tensor) -> Fused:
        return self.decide(self.encode(features, present, offset_s))
