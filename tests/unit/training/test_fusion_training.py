"""Decision fusion: human votes where available, and the adapter from encoders to the network trained on votes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")

from emotion_sets import cases  # noqa: E402

from pipeline.errors import ConfigError  # noqa: E402
from pipeline.inference.backends.onnxruntime import Onnxruntime  # noqa: E402
from pipeline.inference.manifest import Manifest, TensorInfo  # noqa: E402
from pipeline.perception.expression.fusion import Fusion  # noqa: E402
from pipeline.training.data.faces import FACE_CLASSES  # noqa: E402
from pipeline.training.data.votes import VOTE_CLASSES, Votes, folds, load_votes  # noqa: E402
from pipeline.training.evaluation.report import write  # noqa: E402
from pipeline.training.evaluation.scores import markdown, score  # noqa: E402
from pipeline.training.fusion import evaluate_votes  # noqa: E402
from pipeline.training.fusion import train as fusion  # noqa: E402
from pipeline.training.fusion.fit import Recipe, fit, predict  # noqa: E402
from pipeline.training.fusion.fusion_adapter import FusionAdapter, export_adapter  # noqa: E402


def opinions(labels: np.ndarray, *, right: float, classes: int, seed: int) -> np.ndarray:
    """Calibrated log-probabilities that are right in about `right` of the cases."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += right * 4
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits.astype(np.float32)


def drawn_votes(count: int = 600) -> Votes:
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, count)
    senses = {"voice": 0.3, "face": 0.5, "both": 0.6}
    counts = {
        sense: np.stack([random.multinomial(10, p) for p in np.exp(opinions(labels, right=r, classes=6, seed=i))])
        for i, (sense, r) in enumerate(senses.items())
    }
    return Votes({k: v.astype(np.float32) for k, v in counts.items()}, labels, np.arange(count) // 20)


@pytest.fixture(scope="module")
def adapter() -> FusionAdapter:
    torch.set_num_threads(1)
    votes = drawn_votes()
    core = evaluate_votes.network("hybrid", seed=1)
    fit(core, evaluate_votes.examples(votes), Recipe(epochs=6, batch=64, rate=1e-2, distil=0.0), seed=1)
    adapter = FusionAdapter(core, FACE_CLASSES)
    labels = np.random.default_rng(1).integers(0, 7, 1500)
    adapter.fit(opinions(labels, right=0.5, classes=7, seed=5), opinions(labels, right=0.4, classes=7, seed=6), labels)
    return adapter


def test_fusion_is_better_than_each_modality_also_for_surprise(adapter: FusionAdapter) -> None:
    labels = np.random.default_rng(2).integers(0, 7, 3000)
    face, voice = opinions(labels, right=0.5, classes=7, seed=7), opinions(labels, right=0.4, classes=7, seed=8)
    fused = adapter.predict(face, voice, np.ones((3000, 2), np.float32)).argmax(1)
    alone = max((face.argmax(1) == labels).mean(), (voice.argmax(1) == labels).mean())
    assert (fused == labels).mean() > alone + 0.05
    surprised = labels == FACE_CLASSES.index("surprise")
    assert (fused[surprised] == labels[surprised]).mean() > (face.argmax(1)[surprised] == labels[surprised]).mean()


def test_absent_modality_leaves_the_opinion_of_the_other_and_a_weight_interpolates(adapter: FusionAdapter) -> None:
    labels = np.zeros(4, np.int64)
    face, voice = opinions(labels, right=0.5, classes=7, seed=3), opinions(labels + 3, right=0.9, classes=7, seed=4)

    def probs(face_weight: float, voice_weight: float) -> np.ndarray:
        return np.exp(adapter.predict(face, voice, np.tile(np.float32([face_weight, voice_weight]), (4, 1))))

    assert probs(1, 0) == pytest.approx(np.exp(face), abs=1e-5) and probs(0, 1) == pytest.approx(
        np.exp(voice), abs=1e-5
    )
    assert probs(1, 0.25) == pytest.approx(0.75 * np.exp(face) + 0.25 * probs(1, 1), abs=1e-5)
    torn = np.full_like(voice, np.nan)
    assert np.exp(adapter.predict(face, torn, np.tile(np.float32([1, 0]), (4, 1)))) == pytest.approx(
        np.exp(face), abs=1e-5
    )


def test_exported_bridge_is_what_the_live_fusion_takes(adapter: FusionAdapter, tmp_path: Path) -> None:
    path = tmp_path / "fusion.onnx"
    export_adapter(adapter, path, 7)  # raises above 1e-4
    opinion = [TensorInfo(name, ("n", 1, 7), "float32", "") for name in ("face", "voice")]
    Manifest(
        name="fusion",
        task="emotion",
        inputs=(*opinion, TensorInfo("present", ("n", 2), "float32", "")),
        outputs=(TensorInfo("logits", ("n", 7), "float32", ""),),
        labels=FACE_CLASSES,
        temperature=1.0,
        training_data="drawn",
        licence="Apache-2.0",
        made_by="this test",
    ).write(path)
    live = Fusion.of_model(Onnxruntime(path, threads=1), Manifest.read(path), FACE_CLASSES, {})
    face, voice = (opinions(np.arange(5), right=0.5, classes=7, seed=i) for i in (1, 2))
    present = np.float32([[1, 1], [1, 0], [0, 1], [0.5, 0.2], [0.05, 1]])
    assert live.fuse(cases(live, face, voice, present)).probs == pytest.approx(
        np.exp(adapter.predict(face, voice, present)), abs=1e-4
    )
    with pytest.raises(ConfigError, match="as the face model has them"):
        Fusion.of_model(Onnxruntime(path, threads=1), Manifest.read(path), FACE_CLASSES[::-1], {})


def test_bridge_with_a_coordinated_network_exports_the_agreement(adapter: FusionAdapter, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 800)
    speakers = np.array([f"actor {i % 10}" for i in range(800)])
    pairs = fusion.pseudo_pairs(
        opinions(labels, right=0.7, classes=7, seed=1),
        labels,
        opinions(labels[:100], right=0.7, classes=7, seed=2),
        labels[:100],
        speakers[:100],
        seed=1,
    )
    assert fusion.agreement_auc(pairs, seed=1) > fusion.MIN_AGREEMENT_AUC
    with_agreement = FusionAdapter(adapter.core, FACE_CLASSES)
    with_agreement.coordinated = fusion.trained_on_pairs("coordinated", pairs, seed=1)
    export_adapter(with_agreement, tmp_path / "fusion.onnx", 7)
    opinion = [TensorInfo(name, ("n", 1, 7), "float32", "") for name in ("face", "voice")]
    outputs = (TensorInfo("logits", ("n", 7), "float32", ""), TensorInfo("agreement", ("n", 1), "float32", ""))
    Manifest(
        name="fusion",
        task="emotion",
        inputs=(*opinion, TensorInfo("present", ("n", 2), "float32", "")),
        outputs=outputs,
        labels=FACE_CLASSES,
        temperature=1.0,
        training_data="drawn",
        licence="Apache-2.0",
        made_by="this test",
    ).write(tmp_path / "fusion.onnx")
    path = tmp_path / "fusion.onnx"
    live = Fusion.of_model(Onnxruntime(path, threads=1), Manifest.read(path), FACE_CLASSES, {})
    happy, sad = (
        opinions(np.array([FACE_CLASSES.index(label)]), right=2, classes=7, seed=3)[0] for label in ("happy", "sad")
    )
    both = np.ones((1, 2), np.float32)
    fits, differs = (live.fuse(cases(live, happy[None], voice[None], both)).agreement for voice in (happy, sad))
    assert fits is not None and differs is not None and 1 >= fits > differs + 0.3
    average = Fusion(FACE_CLASSES)
    assert average.fuse(cases(average, happy[None], sad[None], both)).agreement is None


def test_fusion_is_evaluated_on_actors_and_faces_not_used_for_fitting(
    adapter: FusionAdapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fusion, "PAIRED", Recipe(epochs=4, batch=128, rate=1e-2, distil=0.0))
    random = np.random.default_rng(0)
    face_labels, voice_labels = random.integers(0, 7, 400), random.integers(0, 7, 110)
    speakers = np.array([f"ravdess {i % 10:02}" for i in range(110)])
    pairs = fusion.pseudo_pairs(
        opinions(face_labels, right=0.5, classes=7, seed=1),
        face_labels,
        opinions(voice_labels, right=0.4, classes=7, seed=2),
        voice_labels,
        speakers,
        seed=1,
    )
    assert len(pairs.labels) == 880 and (face_labels[pairs.face_row] == pairs.labels).all()
    table = fusion.judge(pairs, adapter.core, seed=1)
    fused = table[fusion.ADAPTED]["both"]
    assert fused.accuracy > max(table["face alone"]["face"].accuracy, table["voice alone"]["voice"].accuracy)
    assert fused.count < 880 / 3  # held-out actors with held-out faces only
    assert "| face alone | face |" in markdown(table)
    write(table, tmp_path / "pairs.json", title="drawn <pairs>")
    assert json.loads((tmp_path / "pairs.json").read_text())["face alone"]["face"]["count"] == fused.count
    drawn = ElementTree.parse(tmp_path / "pairs.svg").getroot()
    assert sum(len(row) for row in table.values()) == len(drawn.findall(".//{*}title"))


def test_missing_outputs_of_an_encoder_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train voice"):
        fusion.voice_opinions(tmp_path / "out_of_fold.npz")
    with pytest.raises(ConfigError, match=r"CREMA-D.*--data"):
        load_votes(tmp_path)


def test_interval_is_wider_with_few_speakers() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 600)
    logits = opinions(labels, right=0.4, classes=3, seed=1)
    logits[:300] *= -1  # half of the speakers are always misclassified
    few = score(logits, labels, np.arange(600) // 100, seed=1)
    many = score(logits, labels, np.arange(600), seed=1)

    def width(s: object) -> float:
        low, high = s.interval["accuracy"]  # type: ignore[attr-defined]
        return high - low

    assert width(few) > 2 * width(many) and few.accuracy == many.accuracy
    assert few.interval["accuracy"][0] < few.accuracy < few.interval["accuracy"][1]


# --- the real votes


@pytest.fixture(scope="module")
def votes(data_dir: Path) -> Votes:
    return load_votes(data_dir)


def test_votes_are_those_that_were_published(votes: Votes) -> None:
    assert len(votes.labels) == 5885 and len(np.unique(votes.actors)) == 72
    voice, face = (float((votes.counts[s].argmax(1) == votes.labels).mean()) for s in ("voice", "face"))
    assert 0.43 < voice < 0.48 and 0.67 < face < 0.70 and VOTE_CLASSES[3] == "happy"


def test_one_network_serves_every_situation_on_unseen_actors(votes: Votes) -> None:
    """One fold of ten; the whole table is in docs/emotion.md."""
    torch.set_num_threads(1)
    all_votes = evaluate_votes.examples(votes)
    train, test = next(folds(votes.actors, count=3, seed=1))
    assert not set(votes.actors[train]) & set(votes.actors[test])
    net = evaluate_votes.network("hybrid", seed=1)
    fit(net, all_votes.take(train), evaluate_votes.RECIPE, seed=1)

    def accuracy(*senses: str) -> float:
        return float((predict(net, all_votes.take(test).with_only(*senses)).argmax(1) == votes.labels[test]).mean())

    def best(*senses: str) -> float:
        x = np.concatenate([votes.opinions(sense) for sense in senses], 1)
        return float(
            (evaluate_votes.logistic(x[train], votes.labels[train])(x[test]).argmax(1) == votes.labels[test]).mean()
        )

    assert accuracy("face", "voice") > best("face", "voice") - 0.01
    assert accuracy("face") > best("face") - 0.015 and accuracy("voice") > best("voice") - 0.015
