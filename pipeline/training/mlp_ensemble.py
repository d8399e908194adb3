"""How a panel of perceptrons is trained on what windows measure: the one loop of voices and sounds.

    net = Panel(x.shape[1], len(labels))
    loss = fit_panel(net, x, target, lambda logits, batch: wrong(logits, target[batch]), steps=40, epochs=10)

A fixed schedule to the end, no epoch is chosen. Draws from torch's own generator, which the caller seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

BATCH = 128
PEAK_LR = 2e-3
WEIGHT_DECAY = 0.3


class Panel(nn.Module):
    """Perceptrons on one view of the window. Mean logits are mean log-probabilities, but for what softmax takes out."""

    def __init__(self, measures: int, labels: int, *, members: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(measures))
        self.register_buffer("spread", torch.ones(measures))
        self.members = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.2), nn.Linear(measures, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
            for _ in range(members)
        )
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.ModuleList(nn.Linear(hidden, labels) for _ in range(members))

    def forward(self, measures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, measures) -> (B, labels), (B, 512)"""
        embedding = self.embed(measures)  # members × (B, 128)
        return self.answers(embedding).mean(0), torch.cat(embedding, 1)

    def embed(self, measures: Tensor) -> list[Tensor]:
        """(B, measures) -> of each member (B, 128)"""
        x = ((measures - self.middle) / self.spread).clamp(-4, 4)
        return [member(x) for member in self.members]

    def answers(self, embedding: list[Tensor]) -> Tensor:
        """(members, B, labels) logits"""
        return torch.stack([head(self.dropout(x)) for head, x in zip(self.heads, embedding, strict=True)])


def fit_panel(
    net: Panel, x: Tensor, target: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], *, steps: int, epochs: int
) -> float:
    """x: (N, measures). target: (N,) labels, each drawn equally often, however many there are of it. loss_of: (members, B, labels)
    logits and the (B,) rows they are about → the loss. Leaves net in evaluation; returns the mean loss of the last epoch."""
    net.middle.copy_(x.mean(0))
    net.spread.copy_(x.std(0) + 1e-4)
    rare = 1 / torch.bincount(target)[target].float()
    # Norms and biases are not decayed: pulling a scale towards zero regularises nothing.
    decayed = [p for p in net.parameters() if p.dim() > 1]
    kept = [p for p in net.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]
    )
    losses = []
    net.train()
    for epoch in range(epochs):
        order = torch.multinomial(rare, steps * BATCH, replacement=True)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = PEAK_LR * (1 - (epoch * steps + step) / (epochs * steps))
            batch = order[step * BATCH : (step + 1) * BATCH]
            logits = net.answers(net.embed(x[batch]))  # (members, B, labels)
            loss = loss_of(logits, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    net.eval()
    return float(np.mean(losses[-steps:]))
