"""Every fusion family: interactions between modalities, masks, and equality of ONNX and torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")

from pipeline.training.fusion.families import FAMILIES  # noqa: E402
from pipeline.training.fusion.fit import Examples, Recipe, export_fusion, fit, predict  # noqa: E402
from pipeline.training.fusion.nets import FusionNet  # noqa: E402
from pipeline.training.fusion.state import Modality  # noqa: E402

THREE = (Modality("face", 6), Modality("voice", 5), Modality("pulse", 2, tokens=4))
OVER_DECISIONS = {"average", "weighted", "voting", "product", "stacked"}
OVER_FEATURES = sorted(set(FAMILIES) - OVER_DECISIONS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pair(count: int, *, interacting: bool, seed: int = 0, noise: float = 0.0) -> Examples:
    """Two modalities, each a noisy view of one of four symbols. interacting: the label is the sum of the two symbols,
    mod 4, so that one alone says nothing at all; else both are noisy views of the label.
    """
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 4, count), random.integers(0, 4, count)
    labels = (first + second) % 4 if interacting else first
    shown = (first, second) if interacting else (first, first)
    views = np.random.default_rng(99).normal(0, 1, (2, 4, 6))
    noise = noise or (0.3 if interacting else 1.5)
    face, voice = (views[i][s] + random.normal(0, noise, (count, 6)) for i, s in enumerate(shown))
    return Examples.of((Modality("face", 6), Modality("voice", 6)), (face, voice), labels)


def accuracy(net: FusionNet, examples: Examples) -> float:
    return float((predict(net, examples).argmax(1) == examples.labels.numpy()).mean())


def untrained(family: str, **options: object) -> FusionNet:
    torch.manual_seed(5)
    return FusionNet(THREE, 4, family=family, width=16, **options).eval()


def random_inputs(count: int, seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(count, m.tokens, m.width, generator=generator) for m in THREE]
    return features, torch.randn(count, 6, generator=generator)


@pytest.mark.parametrize("family", OVER_FEATURES)
def test_family_over_features_learns_an_interaction_that_no_modality_carries(family: str) -> None:
    torch.manual_seed(5)
    net = FusionNet(pair(1, interacting=True).modalities, 4, family=family, layers=1)
    epochs = 30 if family == "coordinated" else 14  # a space made for what is alike is slow to learn what only differs
    fit(net, pair(1200, interacting=True), Recipe(epochs=epochs, rate=8e-3), seed=1)
    test = pair(1000, interacting=True, seed=7)
    assert accuracy(net, test) > 0.85
    assert max(accuracy(net, test.with_only("face")), accuracy(net, test.with_only("voice"))) < 0.35


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_two_noisy_views_are_worth_more_than_one(family: str) -> None:
    torch.manual_seed(5)
    net = FusionNet(pair(1, interacting=False).modalities, 4, family=family, layers=1)
    fit(net, pair(1000, interacting=False), Recipe(epochs=8, rate=5e-3), seed=1)
    test = pair(2000, interacting=False, seed=7)
    alone = max(accuracy(net, test.with_only("face")), accuracy(net, test.with_only("voice")))
    assert alone > 0.6
    # A vote of two has no majority: it can be as good as the surer one, and no family over two may be worse.
    assert accuracy(net, test) > alone + (0.0 if family == "voting" else 0.04)


@pytest.mark.parametrize("translate", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_content_of_an_absent_modality_cannot_change_anything(family: str, translate: bool) -> None:
    net = untrained(family, translate=translate, coordinate=True)
    features, offset_s = random_inputs(8)
    present = torch.ones(8, 6)
    present[:, 1] = 0  # the voice
    present[:, 3] = 0  # and one of the pulse's four samples
    other = [x.clone() for x in features]
    other[1][:] = float("nan")
    other[2][:, 1] = 1e9
    with torch.no_grad():
        before, after = net(features, present, offset_s), net(other, present, offset_s)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_present_gives_finite_logits(family: str) -> None:
    features, offset_s = random_inputs(3)
    with torch.no_grad():
        fused = untrained(family)(features, torch.zeros(3, 6), offset_s)
    assert torch.isfinite(fused.logits).all() and torch.allclose(fused.logits[0], fused.logits[1])


@pytest.mark.parametrize("translate", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_onnx_equals_torch(family: str, translate: bool, tmp_path: Path) -> None:
    net = untrained(family, translate=translate, coordinate=translate, hidden=(16, 16))
    export_fusion(net, tmp_path / "fusion.onnx")  # raises above 1e-4
    assert (tmp_path / "fusion.onnx").is_file() and not (tmp_path / "fusion.onnx.unchecked").exists()


def test_three_modalities_give_six_cross_attention_blocks() -> None:
    assert len(untrained("cross").family.blocks) == 6


def test_transformer_uses_capture_times() -> None:
    """Two events in any order: only their capture times say which came first."""
    events = (Modality("events", 2, tokens=2), Modality("nothing", 1))

    def sequence_of_events(count: int, seed: int) -> Examples:
        random = np.random.default_rng(seed)
        swapped = random.random(count) < 0.5
        content = np.where(swapped[:, None, None], np.eye(2)[::-1], np.eye(2))
        times = np.sort(random.uniform(-0.8, 0.0, (count, 2)), axis=1)
        flipped = random.random(count) < 0.5  # the order on the wire is not the order in the world
        times = np.where(flipped[:, None], times[:, ::-1], times)
        offset_s = np.concatenate([times, np.zeros((count, 1))], axis=1)
        return Examples.of(
            events, (content, np.zeros((count, 1))), (swapped ^ flipped).astype(np.int64), offset_s=offset_s
        )

    figures = {}
    for family in ("transformer", "attention"):
        net = FusionNet(events, 2, family=family)
        fit(net, sequence_of_events(1200, 0), Recipe(epochs=15, rate=5e-3, drop=0.0, own=0.0), seed=1)
        figures[family] = accuracy(net, sequence_of_events(500, 1))
    assert figures["transformer"] > 0.9 and figures["attention"] < 0.6


def test_coordinated_space_separates_matching_from_other_pairs() -> None:
    torch.manual_seed(5)
    net = FusionNet(pair(1, interacting=False).modalities, 4, family="coordinated")
    fit(net, pair(1000, interacting=False, noise=0.8), Recipe(epochs=8, rate=5e-3), seed=1)
    test = pair(1000, interacting=False, seed=7, noise=0.8)
    face, voice = test.features
    partner = torch.from_numpy(np.random.default_rng(0).permutation(len(test)))
    with torch.no_grad():
        agreement = net((face, voice[partner]), test.present, test.offset_s).agreement[:, 0].numpy()
    same = (test.labels == test.labels[partner]).numpy()
    pairs = agreement[same][:, None] > agreement[~same][None]
    assert pairs.mean() > 0.7  # AUC


def test_translation_learns_the_missing_embedding_from_those_present() -> None:
    torch.manual_seed(5)
    net = FusionNet(pair(1, interacting=False).modalities, 4, family="concat", translate=True)
    fit(net, pair(1000, interacting=False, noise=0.8), Recipe(epochs=8, rate=5e-3), seed=1)
    test = pair(1000, interacting=False, seed=7, noise=0.8)
    with torch.no_grad():
        state = net.encode(test.features, test.present, test.offset_s)
        guess, own = net.translations(state.own, state.presence)[1], state.own[1]
    unexplained = float(((guess - own) ** 2).mean() / own.var(0).mean())
    assert unexplained < 0.9
    assert accuracy(net, test.with_only("face")) > 0.55


def test_unknown_family_and_three_hidden_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="family 'crosss' of early"):
        FusionNet(THREE, 4, family="crosss")
    with pytest.raises(ValueError, match="found 3"):
        FusionNet(THREE, 4, hidden=(8, 8, 8))
