"""Fusion families: the ways to combine modalities, selected by name, each with the same State as input.

Decisions: average, weighted, voting, product, stacked. Features: early, concat, sum, attention, cross, transformer,
joint, coordinated. Both: hybrid. A new family is a class with combine(), added to FAMILIES.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from pipeline.training.fusion.state import TINY, NetShape, State, perceptron, pooled

MASKED = -1e4  # attention score of a masked token: its exponential is exactly 0 in float32
TIME_HZ = tuple(0.25 * 2**i for i in range(6))  # 0.25 to 8 Hz: from seconds down to single pictures
COORDINATES = 16
VOTE_SHARPNESS = 20.0  # steep enough for a vote, and still differentiable


def time_encoding(offset_s: Tensor) -> Tensor:
    """(B, T) seconds -> (B, T, 12): sine and cosine, so that near offsets have similar encodings."""
    turns = torch.stack([2 * math.pi * hz * offset_s for hz in TIME_HZ], -1)
    return torch.cat([torch.sin(turns), torch.cos(turns)], -1)


def subsets(count: int) -> list[tuple[bool, ...]]:
    """Every set of modalities but the empty one."""
    return [tuple(bool(bits >> i & 1) for i in range(count)) for bits in range(1, 2**count)]


def membership(presence: Sequence[Tensor], members: Sequence[tuple[bool, ...]]) -> list[Tensor]:
    """Weight of each set of modalities: 1 for the one that is present; in between where presence is fractional."""
    shares = []
    for member in members:
        share = torch.ones_like(presence[0])
        for inside, p in zip(member, presence, strict=True):
            share = share * (p if inside else 1 - p)
        shares.append(share)
    return shares


class Attention(nn.Module):
    """Cross-attention and a feed-forward part, with shortcuts. A learnt null key is always present, so that a query
    without any other key has a value.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.null_key = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.norm_q, self.norm_k, self.norm_f = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.forward_part = perceptron(width, (2 * width,), width)

    def forward(self, queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        """queries: (B, Q, W), keys: (B, K, W), weight: (B, K) from 0 to 1. Returns (B, Q, W)."""
        keys = torch.cat([keys, self.null_key.expand(keys.shape[0], -1, -1)], 1)  # (B, K + 1, W)
        weight = torch.cat([weight, torch.ones_like(weight[:, :1])], 1)
        bias = torch.where(weight > 0, torch.log(weight.clamp(min=TINY)), torch.full_like(weight, MASKED))
        normed = self.norm_k(keys)
        q, k, v = (
            self._split(self.query(self.norm_q(queries))),
            self._split(self.key(normed)),
            self._split(self.value(normed)),
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + bias[:, None, None]  # (B, heads, Q, K + 1)
        attended = (torch.softmax(scores, 3) @ v).transpose(1, 2).flatten(2)  # (B, Q, W)
        x = queries + self.out(attended)
        return x + self.forward_part(self.norm_f(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, W / heads)


class Family(nn.Module):
    """combine() gives logits (B, labels) and the joint representation (B, Z)."""

    def __init__(self, net: NetShape) -> None:
        super().__init__()
        self.count, self.labels, self.width = len(net.modalities), net.labels, net.width

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Representing(Family):
    """represent() makes one vector; a head of one or two hidden layers decides from it."""

    def __init__(self, net: NetShape, width_in: int) -> None:
        super().__init__(net)
        self.head = perceptron(width_in, net.hidden, net.labels, net.dropout)

    def represent(self, s: State) -> Tensor:
        raise NotImplementedError

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        z = self.represent(s)
        return self.head(z), z


class Early(Representing):
    """Concatenated features."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net, sum(m.width for m in net.modalities) + len(net.modalities))

    def represent(self, s: State) -> Tensor:
        return torch.cat([*s.raw, s.flags()], 1)


class Concat(Representing):
    def __init__(self, net: NetShape) -> None:
        super().__init__(net, len(net.modalities) * (net.width + 1))

    def represent(self, s: State) -> Tensor:
        return torch.cat([*s.embedding, s.flags()], 1)


class Sum(Representing):
    def __init__(self, net: NetShape) -> None:
        super().__init__(net, net.width + len(net.modalities))

    def represent(self, s: State) -> Tensor:
        return torch.cat([torch.stack(s.embedding).sum(0), s.flags()], 1)


class Joint(Concat):
    """One code from which the features of every modality, also of absent ones, are reconstructed (Ngiam et al.

    2011).
    """

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.code = perceptron(len(net.modalities) * (net.width + 1), (2 * net.width,), net.width)
        self.head = perceptron(net.width, net.hidden, net.labels, net.dropout)
        self.reconstruct = nn.ModuleList(perceptron(net.width, (net.width,), m.width) for m in net.modalities)

    def represent(self, s: State) -> Tensor:
        return torch.tanh(self.code(super().represent(s)))


class Coordinated(Representing):
    """Each modality is projected into a common space, where matching ones are close; a head classifies their mean."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net, COORDINATES + len(net.modalities))

    def represent(self, s: State) -> Tensor:
        mean_coordinate = sum(c * p for c, p in zip(s.coordinates, s.presence, strict=True))
        assert isinstance(mean_coordinate, Tensor)
        return torch.cat([mean_coordinate, s.flags()], 1)


class SelfAttention(Representing):
    """One token for each modality, and a query token (CLS) that the head classifies."""

    timed = False

    def __init__(self, net: NetShape) -> None:
        super().__init__(net, net.width)
        self.modality_embedding = nn.Parameter(torch.randn(len(net.modalities), net.width) * 0.1)
        self.query_token = nn.Parameter(torch.randn(1, 1, net.width) * 0.1)
        self.time = nn.Linear(2 * len(TIME_HZ), net.width)
        self.layers = nn.ModuleList(Attention(net.width, net.heads) for _ in range(net.layers))

    def represent(self, s: State) -> Tensor:
        if self.timed:
            pieces = [
                t + k + self.time(time_encoding(o))
                for t, k, o in zip(s.tokens, self.modality_embedding, s.offset_s, strict=True)
            ]
            weight = torch.cat(s.weight, 1)
        else:
            pieces = [(e + k)[:, None] for e, k in zip(s.embedding, self.modality_embedding, strict=True)]
            weight = torch.cat(s.counted, 1)
        x = torch.cat([self.query_token.expand(weight.shape[0], -1, -1), *pieces], 1)  # (B, 1 + tokens, W)
        weight = torch.cat([torch.ones_like(weight[:, :1]), weight], 1)
        for layer in self.layers:
            x = layer(x, x, weight)
        return x[:, 0]


class Transformer(SelfAttention):
    """All tokens of all modalities, with encodings of their capture times."""

    timed = True


class Cross(Representing):
    """Cross-attention for each ordered pair of modalities (Tsai et al. 2019)."""

    def __init__(self, net: NetShape) -> None:
        self.pairs = list(permutations(range(len(net.modalities)), 2))
        super().__init__(net, (len(net.modalities) + len(self.pairs)) * net.width + len(net.modalities))
        self.blocks = nn.ModuleList(Attention(net.width, net.heads) for _ in self.pairs)

    def represent(self, s: State) -> Tensor:
        attended_tokens = []
        for (query_modality, at), block in zip(self.pairs, self.blocks, strict=True):
            attended = block(s.tokens[query_modality], s.tokens[at], s.weight[at])
            attended_tokens.append(pooled(attended, s.weight[query_modality]) * s.counted[query_modality])
        return torch.cat([*s.embedding, *attended_tokens, s.flags()], 1)


class Average(Family):
    """Mean of the modalities' probabilities, weighted by presence."""

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        weights = self.weighting(torch.stack(s.presence))  # (M, B, 1)
        probs = torch.stack([self.to_probs(logits) for logits in s.opinions])  # (M, B, labels)
        total = weights.sum(0)
        mean = (weights * probs).sum(0) / total.clamp(min=TINY)
        mean = torch.where(total > 0, mean, torch.full_like(mean, 1 / self.labels))
        return torch.log(mean.clamp(min=TINY)), mean

    def weighting(self, presence: Tensor) -> Tensor:
        return presence

    def to_probs(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, 1)


class Weighted(Average):
    """The average with a learnt weight for each modality."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.log_weight = nn.Parameter(torch.zeros(len(net.modalities), 1, 1))

    def weighting(self, presence: Tensor) -> Tensor:
        return presence * torch.exp(self.log_weight)


class Voting(Average):
    """Majority vote; ties are decided by confidence."""

    def to_probs(self, logits: Tensor) -> Tensor:
        probs = torch.softmax(logits, 1)
        vote = torch.softmax(VOTE_SHARPNESS * (logits - logits.amax(1, keepdim=True)), 1)
        return 0.95 * vote + 0.05 * probs


class Product(Family):
    """Product of independent opinions: log-probabilities add up, minus the prior that each already contains."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.prior = nn.Parameter(torch.zeros(net.labels))

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        prior = torch.log_softmax(self.prior, 0)
        added = [p * (torch.log_softmax(o, 1) - prior) for p, o in zip(s.presence, s.opinions, strict=True)]
        logits = prior + torch.stack(added).sum(0)
        return logits, logits


class Stacked(Family):
    """Logistic regression over the modalities' log-probabilities, with separate weights for every set of present
    modalities.
    """

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.subsets = subsets(self.count)
        self.weights = nn.ModuleList(nn.Linear(self.count * net.labels, net.labels) for _ in self.subsets)
        for member, linear in zip(self.subsets, self.weights, strict=True):
            with torch.no_grad():
                linear.weight.copy_(torch.eye(net.labels).repeat(1, self.count) / sum(member))  # the geometric mean
                linear.bias.zero_()

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        log_probs = [p * torch.log_softmax(o, 1) for p, o in zip(s.presence, s.opinions, strict=True)]
        x = torch.cat(log_probs, 1)  # (B, M × labels)
        logits = torch.zeros_like(log_probs[0])
        for weight, linear in zip(membership(s.presence, self.subsets), self.weights, strict=True):
            logits = logits + weight * linear(x)
        return logits, x


class Hybrid(Family):
    """Sum of the logits of early fusion (concatenated embeddings) and of late fusion (stacked)."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.early, self.late = Concat(net), Stacked(net)

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        early, z = self.early.combine(s)
        return early + self.late.combine(s)[0], z


FAMILIES: dict[str, type[Family]] = {
    "early": Early,
    "concat": Concat,
    "sum": Sum,
    "hybrid": Hybrid,
    "average": Average,
    "weighted": Weighted,
    "voting": Voting,
    "product": Product,
    "stacked": Stacked,
    "attention": SelfAttention,
    "cross": Cross,
    "transformer": Transformer,
    "joint": Joint,
    "coordinated": Coordinated,
}
