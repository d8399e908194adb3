"""Networks that fuse any set of modalities: every family has one name, one interface and one presence mask.

    decision-level families    average weighted voting product stacked    (each modality predicts, then they are
    combined)
    feature-level families     early concat sum hybrid attention cross transformer joint coordinated

Example:
    modalities = (Modality("face", 256), Modality("voice", 128), Modality("pulse", 1, tokens=8))
    net = FusionNet(modalities, labels=7, family="cross")
    fused = net((face, voice, pulse), present, offset_s)      # (B, T, D) each, (B, tokens), (B, tokens) -> Fused

`present` is a weight from 0 (absent) to 1 (present, good quality) for each token. The content of an absent token, also
NaN, has no effect on any output. `offset_s` is a token's capture time minus the anchor's; only the transformer uses it.
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
    opinions: Tensor  # (B, modalities, labels): logits of each modality alone; meaningless for an absent one
    embedding: Tensor  # (B, width of the joint representation)
    agreement: Tensor  # (B, pairs) cosine of the coordinated embeddings; 0 where one of the two is absent


class FusionNet(nn.Module):
    """Any family of fusion over any modalities.

    Args:
        modalities: The inputs, in order.
        labels: Number of classes.
        family: A key of FAMILIES.
        width: Size of the embedding of each modality; a multiple of heads.
        hidden: Sizes of the one or two hidden layers of the head.
        heads: Attention heads.
        layers: Attention layers.
        dropout: In the head, during training.
        translate: Predict the embedding of an absent modality from those present, instead of zeros.
        coordinate: Output the agreement in any family.
    """

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
        self.opinion_heads = nn.ModuleList(perceptron(width, (), labels) for _ in modalities)
        self.place = nn.ModuleList(nn.Linear(width, COORDINATES) for _ in modalities)
        others = (len(modalities) - 1) * (width + 1)
        self.translators = nn.ModuleList(
            perceptron(others, (2 * width,), width) for _ in modalities if others and translate
        )
        self.coordinates = coordinate or family == "coordinated"
        self.family = FAMILIES[family](self)

    def encode(self, features: Sequence[Tensor], present: Tensor, offset_s: Tensor) -> State:
        sizes = [m.tokens for m in self.modalities]
        weight, offsets = list(present.split(sizes, 1)), list(offset_s.split(sizes, 1))
        raw, tokens, own, presence = [], [], [], []
        for x, w, project in zip(features, weight, self.project, strict=True):
            x = torch.where(w[..., None] > 0, x, torch.zeros_like(x))  # (B, T, D); NaN × 0 would still be NaN
            token = project(x) * (w > 0)[..., None]
            present_now = w.amax(1, keepdim=True)
            raw.append(pooled(x, w))  # an opinion stays unscaled; its weight is in `presence`
            tokens.append(token)
            own.append(pooled(token, w) * present_now)
            presence.append(present_now)
        opinions = [
            x if m.opinion else head(h)
            for m, x, head, h in zip(self.modalities, raw, self.opinion_heads, own, strict=True)
        ]
        coordinates = [F.normalize(place(h), dim=1) for place, h in zip(self.place, own, strict=True)]
        inputs, counted = own, presence
        if len(self.translators):
            absent, any_present = [p == 0 for p in presence], torch.cat(presence, 1).amax(1, keepdim=True)
            translated = self.translations(own, presence)
            inputs = [torch.where(a, g * any_present, h) for a, g, h in zip(absent, translated, own, strict=True)]
            counted = [torch.where(a, any_present, p) for a, p in zip(absent, presence, strict=True)]
            tokens = [
                torch.where(a[..., None], s[:, None].expand_as(t), t)
                for a, s, t in zip(absent, inputs, tokens, strict=True)
            ]
            weight = [torch.where(a, any_present.expand_as(w), w) for a, w in zip(absent, weight, strict=True)]
        return State(raw, tokens, weight, offsets, inputs, own, presence, counted, opinions, coordinates)

    def translations(self, own: Sequence[Tensor], presence: Sequence[Tensor]) -> list[Tensor]:
        """Each modality's embedding, predicted from the others."""
        with_presence = [torch.cat([h, p], 1) for h, p in zip(own, presence, strict=True)]
        return [
            translate(torch.cat([t for j, t in enumerate(with_presence) if j != i], 1))
            for i, translate in enumerate(self.translators)
        ]

    def decide(self, s: State) -> Fused:
        logits, z = self.family.combine(s)
        agreements = [
            (s.coordinates[i] * s.coordinates[j]).sum(1, keepdim=True) * (s.presence[i] * s.presence[j] > 0)
            for i, j in self.pairs
            if self.coordinates
        ]
        return Fused(logits, torch.stack(s.opinions, 1), z, torch.cat(agreements, 1) if agreements else logits[:, :0])

    def forward(self, features: Sequence[Tensor], present: Tensor, offset_s: Tensor) -> Fused:
        return self.decide(self.encode(features, present, offset_s))
