"""The fusion of face and voice that needs no training, and when two opinions disagree."""

from __future__ import annotations

import numpy as np
import pytest
from emotion_sets import cases

from pipeline.perception.expression.fusion import Fusion, disagree


def test_average_weighs_by_presence_and_one_alone_is_untouched() -> None:
    face, voice = np.log(np.float32([[0.8, 0.2]])), np.log(np.float32([[0.2, 0.8]]))
    fusion = Fusion(("calm", "tense"))

    def fused(face_weight: float, voice_weight: float) -> np.ndarray:
        probs = fusion.fuse(cases(fusion, face, voice, np.float32([[face_weight, voice_weight]]))).probs
        assert probs is not None
        return probs

    assert fused(1, 1) == pytest.approx(np.float32([[0.5, 0.5]]))
    assert fused(1, 0.25) == pytest.approx(np.float32([[0.68, 0.32]]))
    assert np.array_equal(fused(0, 1), np.exp(voice))


def test_no_evidence_is_no_answer() -> None:
    fusion = Fusion(("calm", "tense"))
    nothing = np.log(np.float32([[0.5, 0.5]]))
    fused = fusion.fuse(cases(fusion, nothing, nothing, np.float32([[0, 0]])))
    assert fused.probs is None and fused.agreement is None and [o.weight for o in fused.opinions] == [0, 0]


def test_opinions_disagree_only_where_each_is_sure_of_another_label() -> None:
    assert disagree(np.float32([0.8, 0.2]), np.float32([0.2, 0.8]))
    assert not disagree(np.float32([0.8, 0.2]), np.float32([0.55, 0.45]))
