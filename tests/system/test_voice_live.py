"""A voice in the whole live pipeline: a RAVDESS clip beside the demo clip's face, and senses that drop out in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live_runs import FailingCamera, receipt_state, run_to_end, wait_for_prediction
from running import running

from pipeline.assets import MODELS

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("demo_models"),
    pytest.mark.skipif(
        not (MODELS / "voice-expression.onnx").is_file() or not (MODELS / "fusion-expression.onnx").is_file(),
        reason="no voice or no fusion model: python run_pipeline.py train voice, then train fusion",
    ),
]
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def clip(data_dir: Path) -> Path:
    """An actor, angry and loud; the sentence ends in a second of silence, so a looped clip has pauses."""
    path = data_dir / "speech" / "ravdess" / "03-01-05-02-01-01-15.flac"
    if not path.is_file():
        pytest.skip(f"needs RAVDESS: no {path}")
    return path


LIVE = """
nodes:
  camera:     {{use: camera, device: "asset:demo-clip"}}
  microphone: {{use: microphone, device: "{clip}", loop: true}}
  align:
    use: align
    inputs: [camera, microphone]
    anchor: camera
    max_wait_ms: 60
    sync: {{microphone: {{policy: window, before_ms: 1000}}}}
  emotion:    {{use: infer, inputs: [{{from: align, queue: 2}}], process: align}}
"""


@pytest.mark.paced
def test_voice_of_a_real_clip_moves_the_answer_its_way_and_both_senses_are_used(tmp_path: Path, clip: Path) -> None:
    config = tmp_path / "live.yaml"
    config.write_text(LIVE.format(clip=clip))
    predictions, summary = run_to_end("run", config, "--for", "7s", out=tmp_path / "out.jsonl")
    assert summary["unaccounted"] == {}
    both = [p for p in predictions if p["used"] == ["camera", "microphone"] and p["subjects"]]
    assert len(both) > 50, "the voice takes part while somebody speaks"
    spoken = [p for p in predictions if p.get("speaking") and p["subjects"]]
    assert sum(p in both for p in spoken) > 0.5 * len(spoken)

    voice = {label: np.mean([opinion(p, "voice")["probs"][label] for p in both]) for label in both[0]["probs"]}
    face = {label: np.mean([opinion(p, "face")["probs"][label] for p in both]) for label in voice}
    fused = {label: np.mean([p["probs"][label] for p in both]) for label in voice}
    strongest = max(voice, key=lambda label: voice[label] - face[label])
    assert voice[strongest] > face[strongest] + 0.1, "the voice's label is another than the face's"
    assert fused[strongest] > face[strongest]
    assert all("voice-expression@" in p["model"] and "fusion-expression@" in p["model"] for p in both)


def opinion(prediction: dict[str, Any], modality: str) -> dict[str, Any]:
    return next(o for o in prediction["opinions"] if o["modality"] == modality)


FAILING = """
nodes:
  camera:     {{use: camera, device: "{url}"}}
  microphone: {{use: "voices:Speech", samples: "{samples}", unplugged: "{unplugged}"}}
  align:
    use: align
    inputs: [camera, microphone]
    anchor: camera
    max_wait_ms: 60
    sync: {{microphone: {{policy: window, before_ms: 1000}}}}
  emotion:    {{use: infer, inputs: [{{from: align, queue: 2}}], process: align}}
"""


@pytest.mark.paced
def test_camera_then_microphone_drop_out_and_both_come_back(
    folder: Path,
    clip: Path,
    lens: FailingCamera,
) -> None:
    with av.open(str(clip)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE_HZ)
        sound = np.concatenate(
            [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        )
    np.save(folder / "samples.npy", sound[RATE_HZ // 2 : -RATE_HZ])  # fewer pauses: the steps below wait for speech
    unplugged, config, out = folder / "unplugged", folder / "failing.yaml", folder / "out.jsonl"
    config.write_text(FAILING.format(url=lens.url, samples=folder / "samples.npy", unplugged=unplugged))
    with running(
        folder, "run", str(config), "--no-dashboard", "--out", str(out)
    ) as live:  # each step waits for the predictions to show it
        wait_for_prediction(
            out, lambda p: p["used"] == ["camera", "microphone"] and p["subjects"], timeout_s=40
        )  # start-up included
        lens.picture = None
        wait_for_prediction(out, lambda p: p["missing"] == ["camera"] and p["used"] == ["microphone"] and p["label"])
        lens.picture = lens.face
        wait_for_prediction(out, lambda p: p["used"] == ["camera", "microphone"] and p["subjects"])
        unplugged.touch()
        wait_for_prediction(out, lambda p: p["missing"] == ["microphone"] and p["used"] == ["camera"] and p["label"])
        unplugged.unlink()
        wait_for_prediction(out, lambda p: p["used"] == ["camera", "microphone"] and p["subjects"])
        live.interrupt()
        assert live.wait() == 0, live.err
    *predictions, summary = map(json.loads, out.read_text().splitlines())
    assert summary["unaccounted"] == {}
    deaf = [p for p in predictions if p["missing"] == ["microphone"]]
    blind = [p for p in predictions if p["missing"] == ["camera"]]
    assert all(receipt_state(p, "camera") == "exact" for p in deaf) and {receipt_state(p, "camera") for p in blind} <= {
        "silent",
        "absent",
        "late",
    }
    assert all(abs(sum(p["probs"].values()) - 1) < 1e-3 for p in predictions)
    stamps = [p["capture_ns"] for p in predictions]
    assert stamps == sorted(set(stamps))
    assert summary["summary"] is True
