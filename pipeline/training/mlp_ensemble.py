"""An ensemble of MLPs on fixed features, and its training loop, shared by the voice and sound networks.

Example:
    net = MlpEnsemble(x.shape[1], len(labels))
    loss = fit_ensemble(net, x, target, loss_of, steps=40, epochs=10)

A fixed schedule; no epoch is selected. Random numbers come from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

BATCH = 128
PEAK_LR = 2e-3
WEIGHT_DECAY = 0.3


class MlpEnsemble(nn.Module):
    """MLPs trained side by side, whose logits are averaged: up to a constant, the mean of their log-probabilities.

    Args:
        features: Number of features. They are standardised inside, by statistics that fit_ensemble sets.
        labels: Number of classes.
        members: Number of MLPs.
        hidden: Units of their one hidden layer.
    """

    def __init__(self, features: int, labels: int, *, members: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.members = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.2), nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
            for _ in range(members)
        )
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.ModuleList(nn.Linear(hidden, labels) for _ in range(members))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, features) -> (B, labels), (B, 512)"""
        embedding = self.embed(features)  # members × (B, 128)
        return self.logits_of(embedding).mean(0), torch.cat(embedding, 1)

    def embed(self, features: Tensor) -> list[Tensor]:
        """(B, features) -> (B, 128) for each member"""
        x = ((features - self.middle) / self.spread).clamp(-4, 4)
        return [member(x) for member in self.members]

    def logits_of(self, embedding: list[Tensor]) -> Tensor:
        """(members, B, labels) logits"""
        return torch.stack([head(self.dropout(x)) for head, x in zip(self.heads, embedding, strict=True)])


def fit_ensemble(
    net: MlpEnsemble, x: Tensor, target: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], *, steps: int, epochs: int
) -> float:
    """Train `net` with AdamW and a linearly falling learning rate. Leaves it in evaluation mode.

    Args:
        net: The ensemble; its standardisation is set from x.
        x: (N, features).
        target: (N,) labels. Classes are drawn equally often, whatever their counts.
        loss_of: (members, B, labels) logits and their (B,) rows → the loss.
        steps: Batches in an epoch.
        epochs: Number of epochs.

    Returns the mean loss of the last epoch.
    """
    net.middle.copy_(x.mean(0))
    net.spread.copy_(x.std(0) + 1e-4)
    weight = 1 / torch.bincount(target)[target].float()
    # No weight decay for norms and biases: pulling a scale towards zero does not regularise.
    decayed = [p for p in net.parameters() if p.dim() > 1]
    not_decayed = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": not_decayed, "weight_decay": 0.0}]
    )
    losses = []
    net.train()
    for epoch in range(epochs):
        order = torch.multinomial(weight, steps * BATCH, replacement=True)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = PEAK_LR * (1 - (epoch * steps + step) / (epochs * steps))
            batch = order[step * BATCH : (step + 1) * BATCH]
            logits = net.logits_of(net.embed(x[batch]))  # (members, B, labels)
            loss = loss_of(logits, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    net.eval()
    return float(np.mean(losses[-steps:]))
