"""Types shared by the fusion network and its families, and small building blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

TINY = 1e-6


class Modality(NamedTuple):
    """One input of the fusion.

    width: numbers per token. tokens: 1 for an embedding or an opinion, more for a feature stream. opinion: the numbers
    are log-probabilities of the labels, which the decision-level families use directly.
    """

    name: str
    width: int
    tokens: int = 1
    opinion: bool = False


class NetShape(Protocol):
    """The sizes that a family reads from the network it belongs to."""

    modalities: tuple[Modality, ...]
    labels: int
    width: int
    hidden: tuple[int, ...]
    heads: int
    layers: int
    dropout: float


@dataclass
class State:
    """Input of the families; lists run over the modalities. Absent content is zero already, or translated."""

    raw: list[Tensor]  # (B, D) features, mean over the tokens there are
    tokens: list[Tensor]  # (B, T, W)
    weight: list[Tensor]  # (B, T) of a token
    offset_s: list[Tensor]  # (B, T)
    embedding: list[Tensor]  # (B, W) input of the family
    own: list[Tensor]  # (B, W) of the modality itself, untranslated
    presence: list[Tensor]  # (B, 1) as in the input
    counted: list[Tensor]  # (B, 1) presence, or 1 for a translated embedding
    opinions: list[Tensor]  # (B, labels)
    coordinates: list[Tensor]  # (B, C) unit length

    def flags(self) -> Tensor:
        return torch.cat(self.presence, 1)  # (B, M)


def perceptron(width_in: int, hidden: Sequence[int], width_out: int, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout)]
        width_in = width
    return nn.Sequential(*layers, nn.Linear(width_in, width_out))


def pooled(tokens: Tensor, weight: Tensor) -> Tensor:
    """Mean over the present tokens; 0 without any. tokens: (B, T, W), weight: (B, T) -> (B, W)."""
    return (tokens * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=TINY)
