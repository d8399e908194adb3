"""What the emotion task costs on the demo clip, part by part, on one thread.

    python -m benchmarks.emotion [--model models/face-expression.onnx] [--json out.json]

CPU is the thread's own time, so another program slows the wall time only. `predict` is all of it together; its
parts are timed apart, on the same pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline import assets
from pipeline.frame import AlignedSet, Frame, Receipt
from pipeline.inference.load import load
from pipeline.installation import model_path
from pipeline.perception.expression.faces import FaceDetector, FaceTracker
from pipeline.perception.expression.voice_activity import VoiceActivity
from pipeline.perception.inputs import picture
from pipeline.preprocessing import face_crop, face_tensor
from pipeline.tasks.emotion import Emotion

CHUNK, CHUNK_NS, RATE_HZ, WINDOW_NS = 320, 20_000_000, 16_000, 1_000_000_000


class Stopwatch:
    """Named durations, of the thread's CPU and of the wall."""

    def __init__(self) -> None:
        self.laps: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
        yield
        self.laps.setdefault(name, []).append((time.thread_time_ns() - cpu_ns, time.perf_counter_ns() - wall_ns))

    def figures(self, frames: int) -> dict[str, dict[str, float]]:
        rows = {}
        for name, laps in self.laps.items():
            cpu_ms, wall_ms = np.array(laps).T / 1e6
            rows[name] = {
                "calls": len(laps),
                "cpu_ms_a_call": round(float(cpu_ms.mean()), 3),
                "cpu_ms_a_frame": round(float(cpu_ms.sum()) / frames, 3),
                "wall_ms_p50": round(float(np.percentile(wall_ms, 50)), 3),
                "wall_ms_p95": round(float(np.percentile(wall_ms, 95)), 3),
            }
        return rows


class Watched:
    """A detector whose two ways of looking are timed."""

    def __init__(self, detector: FaceDetector, watch: Stopwatch) -> None:
        self._detector, self._watch = detector, watch

    def whole(self, image: Any) -> Any:
        with self._watch.lap("  search the whole picture"):
            return self._detector.whole(image)

    def windows(self, image: Any, windows: Any) -> Any:
        if not windows:
            return []
        with self._watch.lap("  look in the window of a known face"):
            return self._detector.windows(image, windows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="face-expression", help="a file of the models folder, or a path")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args()

    frames = clip_frames(assets.path("demo-clip"))
    sound = [Frame("microphone", i, i * CHUNK_NS, "pcm_f32", noise(i), CHUNK_NS) for i in range(int(20e9 / CHUNK_NS))]
    watch = Stopwatch()
    with_face, labels = whole_task(chosen.model, frames, sound, watch)
    parts(chosen.model, frames, sound, watch)

    figures: dict[str, Any] = {
        "frames": len(frames),
        "frames_with_a_face": with_face,
        "happy_before_8_s": share(labels, lambda at_s: at_s < 8),
        "happy_from_12_to_19_s": share(labels, lambda at_s: 12 <= at_s < 19),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "parts": watch.figures(len(frames)),
    }
    print(f"{'':38}{'calls':>6}{'CPU ms/call':>13}{'CPU ms/frame':>14}{'wall p50':>10}{'p95':>8}")
    for name, row in figures["parts"].items():
        print(
            f"{name:38}{row['calls']:6.0f}{row['cpu_ms_a_call']:13.2f}{row['cpu_ms_a_frame']:14.2f}"
            f"{row['wall_ms_p50']:10.2f}{row['wall_ms_p95']:8.2f}"
        )
    print(
        f"faces in {with_face} of {len(frames)} frames; happy: {figures['happy_before_8_s']:.1%} before 8 s, "
        f"{figures['happy_from_12_to_19_s']:.1%} from 12 to 19 s"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def clip_frames(path: Path) -> list[Frame]:
    with av.open(str(path)) as clip:
        decoded = [(round(float(f.time or 0) * 1e9), f.to_ndarray(format="bgr24")) for f in clip.decode(video=0)]
    return [
        Frame("camera", seq, at_ns, "bgr8", np.asarray(image, np.uint8)) for seq, (at_ns, image) in enumerate(decoded)
    ]


def noise(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 0.01, CHUNK).astype(np.float32)


def last_second(sound: list[Frame], anchor_ns: int) -> tuple[Frame, ...]:
    return tuple(sound[max(0, (anchor_ns - WINDOW_NS) // CHUNK_NS) : anchor_ns // CHUNK_NS])


def whole_task(
    model: str, frames: list[Frame], sound: list[Frame], watch: Stopwatch
) -> tuple[int, list[tuple[float, str]]]:
    """Runs the task as the pipeline does. Returns the number of frames with a face, and (second, label) of each of them."""
    task = Emotion(model=model)
    task.open("auto")
    labels = []
    for frame in frames:
        heard = last_second(sound, frame.capture_ns)
        streams = {"camera": (frame,)} | ({"microphone": heard} if heard else {})
        receipts = tuple(Receipt(stream, "exact") for stream in streams)
        aligned = AlignedSet("camera", frame.capture_ns, streams, receipts)
        with watch.lap("predict"):
            prediction = task.predict(aligned)
        if prediction.label:
            labels.append((frame.capture_ns / 1e9, prediction.label))
    return len(labels), labels


def parts(model: str, frames: list[Frame], sound: list[Frame], watch: Stopwatch) -> None:
    path = model_path(model)
    classifier = load(path)
    tracker = FaceTracker(Watched(FaceDetector(load(assets.path("centerface"))), watch))
    voice = VoiceActivity(load(assets.path("silero-vad")))
    for frame in frames:
        with watch.lap("is the picture dark"):
            picture(frame)
        with watch.lap("detect and track"):
            tracks = tracker.update(frame.data, frame.capture_ns)
        if tracks:
            with watch.lap("crop"):
                crops = [face_crop(frame.data, track.face.box_px, track.face.landmarks_px) for track in tracks]
                faces = face_tensor(np.stack(crops))
            with watch.lap("classify"):
                classifier.run({"face": faces})
        with watch.lap("voice activity"):
            voice.update(last_second(sound, frame.capture_ns))


def share(labels: list[tuple[float, str]], within: Callable[[float], bool]) -> float:
    chosen = [label for at_s, label in labels if within(at_s)]
    return chosen.count("happy") / len(chosen) if chosen else float("nan")


if __name__ == "__main__":
    main()
