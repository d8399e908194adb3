"""The ways to combine modalities: what FusionNet calls by name, each taking the same State.

Decisions: average, weighted, voting, product, stacked. Features: early, concat, sum, attention, cross, transformer, joint,
coordinated. Both: hybrid. A new family is a class with combine(), added to FAMILIES.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from pipeline.training.fusion.state import TINY, NetShape, State, perceptron, pooled

NEVER = -1e4  # added to an attention score: its exponential is exactly 0 in float32
TIME_HZ = tuple(0.25 * 2**i for i in range(6))  # 0.25 to 8 Hz: from whole seconds down to single pictures
COORDINATES = 16
VOTE_SHARPNESS = 20.0  # steep enough to be a vote, and still a number that can be exported


def clock(offset_s: Tensor) -> Tensor:
    """(B, T) seconds -> (B, T, 12): sine and cosine, so that any offset has a place and near ones are alike."""
    turns = torch.stack([2 * math.pi * hz * offset_s for hz in TIME_HZ], -1)
    return torch.cat([torch.sin(turns), torch.cos(turns)], -1)


def subsets(count: int) -> list[tuple[bool, ...]]:
    """Every set of modalities but the empty one."""
    return [tuple(bool(bits >> i & 1) for i in range(count)) for bits in range(1, 2**count)]


def membership(presence: Sequence[Tensor], members: Sequence[tuple[bool, ...]]) -> list[Tensor]:
    """How much each set is the one that is present: 1 for the very one, and in between where presence is a weight."""
    shares = []
    for member in members:
        share = torch.ones_like(presence[0])
        for inside, p in zip(member, presence, strict=True):
            share = share * (p if inside else 1 - p)
        shares.append(share)
    return shares


class Attention(nn.Module):
    """Queries look at keys, one residual block with its feed-forward part. A learnt nothing-key is always there, so that a
    query with nobody to look at has an answer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.nothing = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.norm_q, self.norm_k, self.norm_f = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.forward_part = perceptron(width, (2 * width,), width)

    def forward(self, queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        """queries: (B, Q, W), keys: (B, K, W), weight: (B, K) from 0 to 1. Returns (B, Q, W)."""
        keys = torch.cat([keys, self.nothing.expand(keys.shape[0], -1, -1)], 1)  # (B, K + 1, W)
        weight = torch.cat([weight, torch.ones_like(weight[:, :1])], 1)
        bias = torch.where(weight > 0, torch.log(weight.clamp(min=TINY)), torch.full_like(weight, NEVER))
        normed = self.norm_k(keys)
        q, k, v = (
            self._split(self.query(self.norm_q(queries))),
            self._split(self.key(normed)),
            self._split(self.value(normed)),
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + bias[:, None, None]  # (B, heads, Q, K + 1)
        seen = (torch.softmax(scores, 3) @ v).transpose(1, 2).flatten(2)  # (B, Q, W)
        x = queries + self.out(seen)
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
    """The features themselves, side by side."""

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
    """One code from which every modality's features can be told again, the absent ones' too (Ngiam et al. 2011)."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.code = perceptron(len(net.modalities) * (net.width + 1), (2 * net.width,), net.width)
        self.head = perceptron(net.width, net.hidden, net.labels, net.dropout)
        self.tell = nn.ModuleList(perceptron(net.width, (net.width,), m.width) for m in net.modalities)

    def represent(self, s: State) -> Tensor:
        return torch.tanh(self.code(super().represent(s)))


class Coordinated(Representing):
    """Each modality projected into one space, where what belongs together lies together; their mean decides."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net, COORDINATES + len(net.modalities))

    def represent(self, s: State) -> Tensor:
        placed = sum(c * p for c, p in zip(s.coordinates, s.presence, strict=True))
        assert isinstance(placed, Tensor)
        return torch.cat([placed, s.flags()], 1)


class SelfAttention(Representing):
    """One token a modality; an extra token asks them all and decides."""

    timed = False

    def __init__(self, net: NetShape) -> None:
        super().__init__(net, net.width)
        self.kind = nn.Parameter(torch.randn(len(net.modalities), net.width) * 0.1)
        self.asking = nn.Parameter(torch.randn(1, 1, net.width) * 0.1)
        self.time = nn.Linear(2 * len(TIME_HZ), net.width)
        self.layers = nn.ModuleList(Attention(net.width, net.heads) for _ in range(net.layers))

    def represent(self, s: State) -> Tensor:
        if self.timed:
            pieces = [t + k + self.time(clock(o)) for t, k, o in zip(s.tokens, self.kind, s.offset_s, strict=True)]
            weight = torch.cat(s.weight, 1)
        else:
            pieces = [(e + k)[:, None] for e, k in zip(s.embedding, self.kind, strict=True)]
            weight = torch.cat(s.counted, 1)
        x = torch.cat([self.asking.expand(weight.shape[0], -1, -1), *pieces], 1)  # (B, 1 + tokens, W)
        weight = torch.cat([torch.ones_like(weight[:, :1]), weight], 1)
        for layer in self.layers:
            x = layer(x, x, weight)
        return x[:, 0]


class Transformer(SelfAttention):
    """All tokens of all modalities, placed by their real capture times."""

    timed = True


class Cross(Representing):
    """One block per ordered pair: the tokens of one modality look at those of another (Tsai et al. 2019)."""

    def __init__(self, net: NetShape) -> None:
        self.pairs = list(permutations(range(len(net.modalities)), 2))
        super().__init__(net, (len(net.modalities) + len(self.pairs)) * net.width + len(net.modalities))
        self.blocks = nn.ModuleList(Attention(net.width, net.heads) for _ in self.pairs)

    def represent(self, s: State) -> Tensor:
        looked = []
        for (looking, at), block in zip(self.pairs, self.blocks, strict=True):
            seen = block(s.tokens[looking], s.tokens[at], s.weight[at])
            looked.append(pooled(seen, s.weight[looking]) * s.counted[looking])
        return torch.cat([*s.embedding, *looked, s.flags()], 1)


class Average(Family):
    """Mean of the modalities' probabilities, each counting as much as it is present."""

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        weights = self.weigh(torch.stack(s.presence))  # (M, B, 1)
        says = torch.stack([self.say(logits) for logits in s.opinions])  # (M, B, labels)
        total = weights.sum(0)
        mean = (weights * says).sum(0) / total.clamp(min=TINY)
        mean = torch.where(total > 0, mean, torch.full_like(mean, 1 / self.labels))
        return torch.log(mean.clamp(min=TINY)), mean

    def weigh(self, presence: Tensor) -> Tensor:
        return presence

    def say(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, 1)


class Weighted(Average):
    """The same with a learnt weight a modality."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.trust = nn.Parameter(torch.zeros(len(net.modalities), 1, 1))

    def weigh(self, presence: Tensor) -> Tensor:
        return presence * torch.exp(self.trust)


class Voting(Average):
    """Each modality has one vote; equal votes are broken by how sure they were."""

    def say(self, logits: Tensor) -> Tensor:
        sure = torch.softmax(logits, 1)
        vote = torch.softmax(VOTE_SHARPNESS * (logits - logits.amax(1, keepdim=True)), 1)
        return 0.95 * vote + 0.05 * sure


class Product(Family):
    """Independent witnesses: log-probabilities add up, less the prior that each of them already counts."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.prior = nn.Parameter(torch.zeros(net.labels))

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        prior = torch.log_softmax(self.prior, 0)
        added = [p * (torch.log_softmax(o, 1) - prior) for p, o in zip(s.presence, s.opinions, strict=True)]
        logits = prior + torch.stack(added).sum(0)
        return logits, logits


class Stacked(Family):
    """Logistic regression over the modalities' log-probabilities and over who is there: for every set of the others that
    are present, each modality's opinion has its own weights."""

    def __init__(self, net: NetShape) -> None:
        super().__init__(net)
        self.subsets = subsets(self.count)
        self.weights = nn.ModuleList(nn.Linear(self.count * net.labels, net.labels) for _ in self.subsets)
        for member, linear in zip(self.subsets, self.weights, strict=True):
            with torch.no_grad():
                linear.weight.copy_(torch.eye(net.labels).repeat(1, self.count) / sum(member))  # the geometric mean
                linear.bias.zero_()

    def combine(self, s: State) -> tuple[Tensor, Tensor]:
        says = [p * torch.log_softmax(o, 1) for p, o in zip(s.presence, s.opinions, strict=True)]
        x = torch.cat(says, 1)  # (B, M × labels)
        logits = torch.zeros_like(says[0])
        for chance, linear in zip(membership(s.presence, self.subsets), self.weights, strict=True):
            logits = logits + chance * linear(x)
        return logits, x


class Hybrid(Family):
    """Early and late at once: the decision from the joined embeddings, and the stacked one, added up."""

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
