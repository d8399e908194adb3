"""The web page as a person meets it: headless Chromium, made-up pictures and predictions, the real server between."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from browsing import Show, coloured, says
from running import wait_for

from nodes.dashboard import Dashboard
from pipeline.frame import Frame, Health, NodeHealth, NodeState, Prediction, Receipt, Subject, silence
from pipeline.node import Arrival

pytestmark = pytest.mark.system

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
MS = 1_000_000
ONE_FACE, TWO_FACES = (f"() => document.getElementById('boxes').dataset.faces === '{n}'" for n in (1, 2))


class Performance(Show):
    """A drawn face that goes from sad to happy, and a tone."""

    every_s = 0.04

    def __init__(self, port: int = 0) -> None:
        self.nodes: dict[str, tuple[NodeState, str]] = {
            name: ("running", "") for name in ("camera", "microphone", "infer")
        }
        super().__init__(Dashboard(port=port))

    def show(self, seq: int, now_ns: int) -> None:
        here = {name: state == "running" for name, (state, _) in self.nodes.items()}
        for source, message in (
            (
                "camera",
                self.picture(seq, now_ns) if here["camera"] else silence("camera", now_ns, self.nodes["camera"][1]),
            ),
            (
                "microphone",
                tone(seq, now_ns) if here["microphone"] else silence("microphone", now_ns, "no input device"),
            ),
            ("infer", self.prediction(seq, now_ns, here) if here["infer"] else None),
            ("health", self.health(now_ns) if seq % 5 == 0 else None),
        ):
            if message is not None:
                self.page.consume(Arrival(source, message, now_ns))

    def picture(self, seq: int, now_ns: int) -> Frame:
        image = np.full((360, 640, 3), 90, np.uint8)
        cv2.ellipse(image, (320, 180), (80, 105), 0, 0, 360, (150, 180, 220), -1)
        return Frame("camera", seq, now_ns, "bgr8", image)

    def prediction(self, seq: int, now_ns: int, here: dict[str, bool]) -> Prediction:
        happy = 0.5 + 0.4 * math.sin(seq / 12)
        probs = (0.01, 0.01, 0.02, happy, 0.93 - happy, 0.01, 0.02)
        microphone_receipt = Receipt("microphone", "exact", tuple(range(seq, seq + 50)), 1000 * MS, 3 * MS)
        return Prediction(
            task="emotion",
            capture_ns=now_ns,
            labels=LABELS,
            probs=np.array(probs, np.float32),
            label=LABELS[int(np.argmax(probs))] if here["camera"] else None,
            model="made-up@00000000",
            subjects=(Subject(7, (240.0, 75.0, 160.0, 210.0), probs),) if here["camera"] else (),
            used=tuple(name for name in ("camera", "microphone") if here[name]),
            missing=tuple(name for name in ("camera", "microphone") if not here[name]),
            receipts=(
                Receipt("camera", "exact", (seq,)) if here["camera"] else Receipt("camera", "silent"),
                microphone_receipt if here["microphone"] else Receipt("microphone", "silent", reason="no input device"),
            ),
            speaking=seq % 50 < 25 if here["microphone"] else None,
            timing_ns={"wait": 1 * MS, "infer": 8 * MS, "total": (20 + seq % 10) * MS},
        )

    def health(self, now_ns: int) -> Health:
        nodes = [
            NodeHealth(name, state, note, produced=5, received={"x": 1}) for name, (state, note) in self.nodes.items()
        ]
        nodes[-1] = NodeHealth("infer", *self.nodes["infer"], dropped={"camera": {"overload": 2}}, restarts=1)
        return Health(now_ns, tuple(nodes))


def tone(seq: int, now_ns: int) -> Frame:
    return Frame("microphone", seq, now_ns, "pcm_f32", np.full(640, 0.1 + 0.05 * (seq % 3), np.float32))


@pytest.fixture
def performance() -> Iterator[Performance]:
    running = Performance()
    running.start()
    yield running
    running.end()


@pytest.fixture
def page(performance: Performance, opened: Callable[..., Any]) -> Any:
    """The page, live."""
    return opened(performance.page.url, ONE_FACE)


def test_the_numbers_move_and_the_words_are_the_predictions(page: Any) -> None:
    for selector in ("#percent", ".bars li:nth-child(4) .number", "#level-words", "#nodes, #streams .receipt"):
        before = page.inner_text(selector)
        page.wait_for_function(
            "([s, t]) => document.querySelector(s).innerText !== t", arg=[selector, before], timeout=10_000
        )
    says(page, "#label", "happy")
    says(page, "#who", "Face 7")
    says(page, "#stream-camera", "exact frame")
    says(page, "#stream-microphone", "50 chunks, 3.0 ms after, complete")
    says(page, "#stream-camera", "2 frames dropped: 2 overload at infer")
    says(page, "#speaking", "speaking")
    says(page, "#prediction-rate", ".")
    assert 20 <= float(page.inner_text("#p50").split()[0]) <= float(page.inner_text("#p95").split()[0]) <= 30


def test_the_box_stands_around_the_face_of_the_picture(page: Any) -> None:
    assert coloured(page, "picture", 0.5, 0.5)
    for x, y in ((240, 180), (400, 180), (320, 75), (320, 285)):  # the middle of each edge
        assert coloured(page, "boxes", x / 640, y / 360)
    for x, y in ((320, 180), (100, 180), (560, 330)):  # inside and well outside
        assert not coloured(page, "boxes", x / 640, y / 360)
    assert "face 7" in page.get_attribute("#figure", "aria-label")


def test_the_past_shows_a_gap_where_nothing_was_predicted(page: Any, performance: Performance) -> None:
    lit = """() => { const c = document.getElementById("timeline"), row = [0, c.height * .3, c.width, 1];
        const d = c.getContext("2d").getImageData(...row).data;
        const colourful = (...rgb) => Math.max(...rgb) - Math.min(...rgb) > 90;
        let n = 0; for (let i = 0; i < d.length; i += 4) n += colourful(d[i], d[i + 1], d[i + 2]); return n; }"""
    page.wait_for_function(f"() => ({lit})() > 10", timeout=10_000)
    performance.nodes["infer"] = ("restarting", "the process ended (signal 9)")
    says(page, "#label", "No predictions")
    stopped = page.evaluate(lit)
    time.sleep(1.0)
    assert abs(page.evaluate(lit) - stopped) <= 4


def test_a_missing_microphone_is_shown_until_it_returns(page: Any, performance: Performance) -> None:
    assert page.is_hidden("#banner")
    performance.nodes["microphone"] = ("absent", "no input device; trying again in 4 s")
    says(page, "#banner", "microphone: absent — no input device; trying again in 4 s")
    says(page, "#sensor-microphone", "absent")
    says(page, "#stream-microphone .receipt", "silent: no input device")
    assert "no input device" in page.text_content("[aria-live]")
    assert page.inner_text("#label") in ("happy", "sad")  # the camera carries on
    performance.nodes["microphone"] = ("running", "")
    page.wait_for_function("() => document.getElementById('banner').hidden", timeout=10_000)


def test_a_node_that_restarts_is_named(page: Any, performance: Performance) -> None:
    performance.nodes["infer"] = ("restarting", "the process ended (signal 9); trying again in 2 s")
    says(page, "#banner", "infer: restarting — the process ended (signal 9)")
    says(page, "#node-infer", "restarting")


def test_a_silent_camera_leaves_no_picture_standing(page: Any, performance: Performance) -> None:
    performance.nodes["camera"] = ("silent", "unplugged")
    says(page, "#veil", "Camera: silent — unplugged")
    says(page, "#label", "No picture from camera")
    assert not coloured(page, "picture", 0.5, 0.5) and not coloured(page, "boxes", 320 / 640, 75 / 360)


def test_mute_and_stop_are_asked_of_the_launcher_also_from_the_keyboard(page: Any, performance: Performance) -> None:
    page.click("#sensor-camera")
    page.focus("#sensor-microphone")
    page.keyboard.press("Enter")
    page.focus("#stop")
    page.keyboard.press("Enter")
    says(page, "#stop", "Stopping")
    wait_for(lambda: len(performance.asked) == 3, "the page's orders")  # its words change before they arrive
    assert performance.asked == [("mute", "camera"), ("mute", "microphone"), ("stop", "")]
    performance.nodes["camera"] = ("muted", "")
    says(page, "#sensor-camera", "Unmute")
    assert page.get_attribute("#sensor-camera", "aria-pressed") == "true"


def test_a_recording_is_labelled_by_number_keys_and_a_replay_paused(page: Any, performance: Performance) -> None:
    page.keyboard.press("4")  # nothing is recorded: nobody is asked
    usual_health, facts = performance.health, {"recording": "rec.mcap · 12.3 MB · 4 s"}

    def health(now_ns: int) -> Health:
        return Health(now_ns, (*usual_health(now_ns).nodes, NodeHealth("record", "running", facts=dict(facts))))

    performance.health = health  # type: ignore[method-assign]
    says(page, "#recording", "REC rec.mcap · 12.3 MB · 4 s")
    assert page.is_hidden("#pause")
    page.keyboard.press("4")
    says(page, "#recording", "labelled happy")
    facts.clear()
    facts["replays"] = "rec.mcap"
    says(page, "#recording", "replaying rec.mcap")
    page.click("#pause")
    facts["replays"] = "rec.mcap (paused)"
    says(page, "#pause", "Resume")
    (label, argument), paused = performance.asked
    assert label == "label" and '"label":"happy"' in argument and paused == ("pause", "")


def test_the_past_can_be_read_out_with_the_arrow_keys(page: Any) -> None:
    page.focus("#timeline")
    page.keyboard.press("ArrowLeft")
    says(page, "#cursor-words", "1 s ago: ")
    says(page, "#spoken", "1 s ago: ")


def test_the_page_says_that_the_run_stopped_and_comes_back_with_it(page: Any, performance: Performance) -> None:
    port = int(performance.page.url.rstrip("/").rsplit(":", 1)[1])
    performance.end()
    says(page, "#banner", "Stopped")
    says(page, "#veil", "Stopped")
    assert page.is_disabled("#stop")
    again = Performance(port)
    again.start()
    says(page, "#status", "live")
    says(page, "#label", "sad")
    again.end()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [320, 390, 768, 1280, 1920])
def test_no_width_needs_sideways_scrolling(
    opened: Callable[..., Any], performance: Performance, width_px: int, scheme: str
) -> None:
    performance.nodes["microphone"] = ("silent", "no-input-device-with-a-name-that-does-not-break-anywhere-" * 3)
    page = opened(performance.page.url, ONE_FACE, width_px=width_px, height_px=844, color_scheme=scheme)
    says(page, "#banner", "no-input-device")
    says(page, "#nodes", "infer")
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px


def test_faces_are_distinguished_and_one_can_be_chosen(
    page: Any, performance: Performance, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = performance.prediction

    def two(seq: int, now_ns: int, here: dict[str, bool]) -> Prediction:
        one = alone(seq, now_ns, here)
        other = Subject(9, (20.0, 40.0, 90.0, 110.0), (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0))
        return Prediction(
            one.task,
            one.capture_ns,
            one.labels,
            one.probs,
            one.label,
            one.model,
            (*one.subjects, other),
            receipts=one.receipts,
        )

    monkeypatch.setattr(performance, "prediction", two)
    page.wait_for_function(TWO_FACES, timeout=10_000)
    page.click("text=Face 9")
    says(page, "#label", "surprise")
    says(page, "#percent", "100")
