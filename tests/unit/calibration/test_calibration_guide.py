"""Guided capture: which views are taken, the next hint, when there are enough, and the page."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from websockets.sync.client import connect

from calibration.board.board import Board
from calibration.board.detect import Corners
from calibration.lens import simulate
from calibration.lens.estimate import estimate_lens
from calibration.lens.guide import Guide
from calibration.lens.lens_verdict import lens_verdict
from calibration.lens.uncertainty import difference_map
from calibration.verbs.camera_live import Page, guided, state
from calibration.verdict import Level
from pipeline.errors import DeviceError
from pipeline.rig.intrinsics import Intrinsics
from pipeline.rig.transforms import apply, rigid, rotation_from_vector
from pipeline.sensors.camera.picture import Picture
from pipeline.sensors.camera.reader import PictureReader

CHESS = Board.parse("9x6", square_mm=25)
LENS = Intrinsics("radtan", 640, 480, 520, 520, 325, 236, (-0.25, 0.08, 0.0008, -0.0005, 0.0))
GRAY = np.full((480, 640), 128, np.uint8)  # has no sharpness to measure


def corners_of(pose: np.ndarray, noise_px: float = 0.0, rng: np.random.Generator | None = None) -> Corners:
    pixels, inside = LENS.project(apply(pose, CHESS.points_m))
    noise = (rng or np.random.default_rng(0)).normal(size=pixels.shape) * noise_px
    return Corners(np.flatnonzero(inside), (pixels + noise)[inside])


def place(x_m: float = 0.0, distance_m: float = 0.5, turn: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    rotation = rotation_from_vector(np.array(turn))
    return rigid(rotation, np.array([x_m, 0, distance_m]) - rotation @ CHESS.centre_m)


def test_a_view_is_taken_once_the_hand_is_still_and_not_twice() -> None:
    guide = Guide(CHESS)
    assert guide.offer(corners_of(place(0.05)), GRAY).reason == "hold still"
    assert guide.offer(corners_of(place(0.0)), GRAY).reason == "hold still"
    taken = guide.offer(corners_of(place(0.0)), GRAY)
    assert taken.taken and taken.views == 1 and taken.covered.sum() >= 6
    assert guide.offer(corners_of(place(0.002)), GRAY).reason == "the same as view 1: move or tilt the board"


def test_a_picture_without_the_board_is_not_taken_and_says_why() -> None:
    advice = Guide(CHESS).offer("no board", GRAY)
    assert not advice.taken and advice.reason == "no board" and advice.hint.startswith("Next: the board")


def test_a_blurred_view_is_not_taken() -> None:
    pose = place(0.0, 0.4, (0.2, 0.3, 0.0))
    sharp = simulate.Renderer(CHESS, LENS, samples=1).render(pose)
    guide = Guide(CHESS)
    guide.offer(corners_of(pose), sharp)
    assert guide.offer(corners_of(pose), cv2.GaussianBlur(sharp, (0, 0), 3.5)).reason.startswith("blurred")


@pytest.fixture(scope="module")
def followed() -> tuple[Guide, list[float]]:
    """A guide whose hints a hand has followed, roughly, and the uncertainty after each view."""
    rng, guide, known = np.random.default_rng(0), Guide(CHESS, until_px=0.35), []
    advice = guide.offer("no board yet", GRAY)
    for _ in range(40):
        pose = next(p for words, p, _ in guide._candidates(guide.lens or LENS) if words == advice.hint)
        rotation = rotation_from_vector(rng.normal(size=3) * 0.06) @ pose[:3, :3]
        corners = corners_of(rigid(rotation, pose[:3, 3] + rng.normal(size=3) * 0.006), 0.15, rng)
        if len(corners) < 54:
            continue
        guide.offer(corners, GRAY)
        advice = guide.offer(corners, GRAY)
        known.append(advice.sigma_px)
        if advice.done:
            break
    return guide, known


def test_hints_lead_to_a_lens_that_is_known_well_enough(followed: tuple[Guide, list[float]]) -> None:
    guide, known = followed
    assert guide.done and known[-1] <= 0.35 and 8 <= len(guide.views) <= 16
    assert guide.lens is not None and np.nanmax(difference_map(LENS, guide.lens)) < 4 * 0.35
    assert lens_verdict(estimate_lens(guide.views, LENS.size, model="radtan4")).level is Level.PASS


def test_views_that_say_nothing_new_do_not_end_it() -> None:
    guide = Guide(CHESS, until_px=0.35)
    rng = np.random.default_rng(0)
    for i in range(9):  # many, all facing the camera, side by side
        corners = corners_of(place(-0.14 + 0.035 * i, 0.55), 0.15, rng)
        guide.offer(corners, GRAY)
        advice = guide.offer(corners, GRAY)
    assert advice.views >= 8 and not advice.done and "tilted" in advice.hint


def test_a_hint_shows_where_the_board_should_be() -> None:
    advice = Guide(CHESS).offer("no board yet", GRAY)
    assert advice.outline is not None and advice.outline.shape == (4, 2)
    message = state(advice, LENS.size, None)
    assert json.loads(json.dumps(message)) == message
    assert all(-0.3 < share < 1.3 for point in message["outline"] for share in point)


# --- live


def film(pose: np.ndarray, pictures: int) -> Iterator[Picture | str]:
    """A board that is held still, until the camera is pulled out."""
    image = cv2.cvtColor(simulate.Renderer(CHESS, LENS, samples=1).render(pose), cv2.COLOR_GRAY2BGR)

    def shown() -> Iterator[Picture | str]:
        for _ in range(pictures):
            yield Picture(image, time.monotonic_ns(), 0)
            time.sleep(0.1)
        raise DeviceError("camera: unplugged")

    return shown()


@pytest.mark.system
def test_the_page_shows_the_picture_and_the_hint_and_ends_the_capture(capsys: pytest.CaptureFixture[str]) -> None:
    page = Page(port=0)
    reader = PictureReader(film(place(0.0, 0.4, (0.2, 0.3, 0.0)), 2000))
    result: list[object] = []
    running = threading.Thread(target=lambda: result.append(guided(reader, CHESS, until_px=0.3, page=page)))
    running.start()
    try:
        html = urllib.request.urlopen(page.url, timeout=5).read().decode()
        assert "<canvas" in html and "http://" not in html.replace("http://www.w3.org", "")
        with connect(page.url.replace("http", "ws") + "ws?pictures=paced") as browser:
            received: list[str | bytes] = []
            while True:  # the test's own timeout ends it
                received.append(browser.recv(timeout=30))
                if isinstance(received[-1], bytes):
                    browser.send("next")
                states = [json.loads(h) for h in received if isinstance(h, str)]
                if any(isinstance(h, bytes) for h in received) and any(s.get("views") for s in states):
                    break
            assert any(s.get("views") == 1 for s in states)
            picture = next(h for h in received if isinstance(h, bytes))
            assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)
            browser.send(json.dumps({"do": "finish"}))
            running.join(timeout=20)
        assert not running.is_alive() and len(result) == 1
    finally:
        page.finished.set()
        running.join(timeout=20)
        reader.stop()
        page.stop()
    assert "1 view" in capsys.readouterr().out


def test_a_camera_that_is_lost_ends_the_capture() -> None:
    reader = PictureReader(film(place(), 0))
    with pytest.raises(DeviceError, match="unplugged"):
        guided(reader, CHESS, until_px=0.3)
    reader.stop()
