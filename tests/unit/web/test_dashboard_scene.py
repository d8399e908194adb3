"""The scene view: what a person sees of a planted scene in a real browser."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import MS, RIG, Show, says, sweep
from websockets.sync.client import connect

from nodes.dashboard import Dashboard
from pipeline.frame import Frame, Health, NodeHealth, Prediction, Receipt, StreamInfo, Subject, silence
from pipeline.node import Arrival
from pipeline.rig.rig_file import save_rig
from pipeline.scene_state import FREE, OCCUPIED, UNKNOWN, FreeSpace, Obstacle, PathClearance, SceneState, Sector, Sound
from pipeline.web.scene_view import NO_RIG


class Drive(Show):
    """A grey picture, a wall of points 12 m ahead, and what a task would say of them."""

    every_s = 0.1

    def __init__(self, rig: Path | None, label: str = "car", about: str = "", port: int = 0) -> None:
        self.label, self.state = label, "caution"
        self.silent: set[str] = set()
        infos = {"camera": StreamInfo("camera", "bgr8", 10, 3, "camera", about)}
        super().__init__(Dashboard(port=port, rig=str(rig) if rig else None), info=infos.get)
        y, z = np.meshgrid(np.linspace(-4, 4, 60), np.linspace(-1, 2, 40))
        self.wall = np.column_stack([np.full(y.size, 12.5), y.ravel(), z.ravel()])

    def show(self, seq: int, now_ns: int) -> None:
        messages = {
            "camera": Frame("camera", seq, now_ns - 60 * MS, "bgr8", np.full((360, 640, 3), 60, np.uint8)),
            "lidar": sweep(self.wall, seq, now_ns - 110 * MS),
            "scene": self.prediction(seq, now_ns - 60 * MS),
        }
        for source, message in messages.items():
            if source in self.silent:
                message = silence(source, now_ns, "unplugged") if source != "scene" else None  # type: ignore[assignment]
            if message is not None:
                self.page.consume(Arrival(source, message, now_ns))
        if seq % 5 == 0:
            nodes = [NodeHealth(name, "silent" if name in self.silent else "running") for name in messages]
            self.page.consume(Arrival("health", Health(now_ns, tuple(nodes)), now_ns))

    def prediction(self, seq: int, capture_ns: int) -> Prediction:
        cells = np.full((60, 40), UNKNOWN, np.uint8)
        cells[10:44, 5:35], cells[44:46, 5:35] = FREE, OCCUPIED
        obstacles = (
            Obstacle(7, (12.6, 0.0, 1.5), (0.4, 8.0, 3.0), 0.0, 12.4, 0.0, (-4.0, 0.0), 0.2, 3.1, 200),
            Obstacle(9, (4.0, 6.0, 1.0), (2.0, 1.0, 1.5), 0.5, 6.3, 56.0, None, None, None, 0, label=self.label),
        )
        around = SceneState(
            PathClearance(self.state, (f"obstacle 7 at 12.4 m <b>{self.label}</b>", "closing at 4.0 m/s"), 12.4, 3.1),  # type: ignore[arg-type]
            obstacles,
            (Sector(-15.0, 15.0, 12.4, 3.1, 0.9),),
            FreeSpace(cells, 0.5, (-10.0, -10.0)),
            (Sound("rain", 0.7), Sound("dog", 0.3)),
        )
        subjects = (Subject(1, (280.0, 120.0, 80.0, 60.0), (), label=self.label, range_m=12.04, closing_mps=4.0),)
        probs = np.array([0.8, 0.15, 0.05], np.float32)
        receipts = (Receipt("camera", "exact", (seq,)), Receipt("lidar", "nearest", (seq,), 100 * MS, -50 * MS))
        return Prediction(
            "scene",
            capture_ns,
            ("street", "highway", "forest"),
            probs,
            "street",
            "made-up@00000000",
            subjects,
            ("camera", "lidar"),
            (),
            receipts,
            timing_ns={"total": 60 * MS},
            surroundings=around,
        )


@pytest.fixture
def rig_file(tmp_path: Path) -> Path:
    save_rig(RIG, tmp_path / "rig.yaml")
    return tmp_path / "rig.yaml"


@pytest.fixture
def drives() -> Iterator[Callable[..., Drive]]:
    drives: list[Drive] = []

    def make(*args: Any, **options: Any) -> Drive:
        drives.append(Drive(*args, **options))
        return drives[-1]

    yield make
    for drive in drives:
        drive.end()


@pytest.fixture
def drive(drives: Callable[..., Drive], rig_file: Path) -> Drive:
    return drives(rig_file, about="a drive of boxes, rendered, not real")


@pytest.mark.system
@pytest.mark.paced
def test_points_are_paced_beside_the_pictures_and_at_most_ten_a_second(drive: Drive) -> None:
    address = drive.page.url.replace("http", "ws") + "ws?pictures="
    with connect(address + "paced", compression=None) as browser, connect(address + "0", compression=None) as reader:
        begin_ns = time.monotonic_ns()
        kinds: list[str] = []

        def feed(count: int) -> None:
            for _ in range(count):  # a source of 50 Hz, on its own clock
                feed.now_ns += 20 * MS  # type: ignore[attr-defined]
                drive.show(feed.now_ns // (20 * MS), feed.now_ns)  # type: ignore[attr-defined]
                time.sleep(0.01)

        def hear() -> None:
            while True:
                try:
                    data = browser.recv(timeout=0.2)
                except TimeoutError:
                    return
                if isinstance(data, bytes):
                    kinds.append(json.loads(data[2 : 2 + int.from_bytes(data[:2], "big")]).get("kind", "picture"))

        feed.now_ns = begin_ns  # type: ignore[attr-defined]
        time.sleep(0.2)
        feed(40)
        hear()
        assert sorted(kinds) == ["picture", "picture", "points", "points"]  # as many as may be under way
        kinds.clear()
        browser.send("next points")
        time.sleep(0.1)
        feed(20)
        hear()
        assert kinds == ["points"]
        while True:
            try:
                assert isinstance(reader.recv(timeout=0.1), str)
            except TimeoutError:
                break
    with connect(address + "1", compression=None) as browser:
        time.sleep(0.2)
        kinds.clear()
        feed(50)  # one second of it
        hear()
        assert 5 <= kinds.count("points") <= 11


@pytest.mark.system
@pytest.mark.paced
def test_a_sweep_of_120000_points_hardly_delays_the_node(drive: Drive) -> None:
    big = np.random.default_rng(0).uniform(-40, 40, (120_000, 3))
    # It reads nothing, so it would wait without end for the page's good-bye.
    with connect(drive.page.url.replace("http", "ws") + "ws", compression=None, close_timeout=0):
        time.sleep(0.2)
        took_ms = []
        for seq in range(20):
            frame = sweep(big, seq, seq * 100 * MS)
            begin = time.thread_time()  # what it computes itself: a busy machine makes everything wait
            drive.page.consume(Arrival("lidar", frame, seq * 100 * MS))
            took_ms.append((time.thread_time() - begin) * 1e3)
            time.sleep(0.02)
    print(f"consume of 120,000 points: p50 {np.median(took_ms):.2f} ms of CPU, max {max(took_ms):.1f} ms")
    assert np.median(took_ms) < 10


# ---- as a person meets it ----


@pytest.fixture
def watched(opened: Callable[..., Any]) -> Callable[[Drive], Any]:
    """The page of a drive that begins now."""

    def watch(drive: Drive) -> Any:
        drive.start()
        return opened(drive.page.url, "() => document.getElementById('top')?.dataset.obstacles === '2'", height_px=720)

    return watch


@pytest.fixture
def page(watched: Callable[[Drive], Any], drive: Drive) -> Any:
    return watched(drive)


def colours(page: Any, canvas: str, x: float, y: float, r: float = 0.02) -> list[list[int]]:
    """The different opaque colours within r around a point of a canvas, in fractions of its size."""
    script = """([id, x, y, r]) => { const c = document.getElementById(id), s = new Set();
        const [left, top, w, h] = [(x - r) * c.width, (y - r) * c.height, 2 * r * c.width, 2 * r * c.height];
        const d = c.getContext("2d").getImageData(left, top, w, h).data;
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200) s.add(`${d[i]},${d[i + 1]},${d[i + 2]}`);
        return [...s]; }"""
    return [[int(v) for v in c.split(",")] for c in page.evaluate(script, [canvas, x, y, r])]


@pytest.mark.system
def test_the_scene_view_shows_the_way_ahead_the_place_the_sounds_and_the_obstacles(page: Any) -> None:
    says(page, "#ahead-word", "CAUTION")
    says(page, "#ahead-sign", "!")
    says(page, "#ahead-numbers", "nearest 12.4 m")
    says(page, "#ahead-because", "closing at 4.0 m/s")
    says(page, "#ahead", "not a safety function")
    says(page, "#place-bars li:first-child", "street")
    says(page, "#sound-bars li:first-child", "rain")
    says(page, "#obstacles tr:nth-child(1)", "3.1 s")
    says(page, "#stream-lidar .receipt", "2,400 points · nearest frame")
    says(page, "#picture-tag", "rendered, not real")
    assert page.is_hidden(".now") and page.is_hidden("#speaking")
    assert "2 obstacles around, the nearest at 12.4 m, straight ahead" in page.get_attribute("#top", "aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.system
def test_points_and_boxes_stand_on_the_picture_where_they_are(page: Any) -> None:
    page.wait_for_function("() => Number(document.getElementById('boxes').dataset.points) > 2000", timeout=10_000)
    deadline = (
        time.monotonic() + 20
    )  # on a busy machine points may be grey for a while: too far from the picture in time
    while not any(max(c) - min(c) > 80 for c in colours(page, "boxes", 0.6, 0.5)):  # the wall: 12 m ahead of the camera
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)
    assert colours(page, "boxes", 0.05, 0.05) == []  # sky
    assert "car 12.0 m −4.0 m/s" in page.get_attribute("#figure", "aria-label")
    assert page.inner_text("#legend").endswith("40 m")


@pytest.mark.system
def test_the_view_from_above_draws_and_zooms(page: Any) -> None:
    floor, wall = colours(page, "top", 0.5, 0.6, 0.01), colours(page, "top", 0.97, 0.02, 0.01)
    assert floor and wall and floor != wall  # free ground is tinted, what is not observed is not
    where = page.evaluate("TopView.step")
    page.click("#zoom-in")
    page.focus("#top")
    page.keyboard.press("+")
    assert page.evaluate("TopView.step") == where - 2
    page.hover("#top")
    page.mouse.wheel(0, 120)
    page.wait_for_function("step => TopView.step === step", arg=where - 1, timeout=5_000)


@pytest.mark.system
@pytest.mark.parametrize(("state", "sign"), [("clear", "✓"), ("blocked", "✕"), ("unknown", "?")])
def test_every_state_has_its_word_and_its_sign(page: Any, drive: Drive, state: str, sign: str) -> None:
    drive.state = state
    says(page, "#ahead-word", state.upper())
    says(page, "#ahead-sign", sign)
    page.wait_for_function(
        "s => document.getElementById('ahead-spoken').textContent === s", arg=f"Way ahead: {state}", timeout=10_000
    )


@pytest.mark.system
def test_what_is_old_is_never_shown_as_now(page: Any, drive: Drive) -> None:
    drive.state = "clear"
    says(page, "#ahead-word", "CLEAR")
    drive.silent.add("scene")
    says(page, "#ahead-word", "UNKNOWN")
    says(page, "#ahead-because", "The newest answer is")
    says(page, "#top-words", "s old")
    says(page, "#obstacles-more", "No current data.")
    assert page.inner_text("#ahead-numbers") == ""
    drive.silent.add("lidar")
    page.wait_for_function("() => document.getElementById('legend').hasAttribute('data-stale')", timeout=10_000)
    says(page, "#legend", "older than the picture")
    says(page, "#top-veil", "The newest answer is")
    drive.silent.clear()
    says(page, "#ahead-word", "CLEAR")


@pytest.mark.system
def test_mute_and_stop_work_in_the_scene_view_too(page: Any, drive: Drive) -> None:
    page.click("#sensor-lidar")
    page.focus("#stop")
    page.keyboard.press("Enter")
    says(page, "#stop", "Stopping")
    assert drive.asked == [("mute", "lidar"), ("stop", "")]


@pytest.mark.system
def test_when_the_run_stops_nothing_is_known_and_the_next_run_is_shown_in_the_same_place(
    page: Any, drive: Drive, drives: Callable[..., Drive], rig_file: Path
) -> None:
    page.click("#zoom-in")
    zoomed = page.evaluate("TopView.step")
    drive.end()
    says(page, "#ahead-word", "UNKNOWN")
    says(page, "#ahead-because", "Stopped: nothing is known of now.")
    again = drives(rig_file, port=page.evaluate("Number(location.port)"))
    again.state = "clear"
    again.start()
    says(page, "#ahead-word", "CLEAR")
    assert page.locator("#top-view").count() == page.locator("#mic").count() == 1
    assert page.evaluate("TopView.step") == zoomed and page.is_hidden("#picture-tag")


@pytest.mark.system
def test_a_label_is_words_and_never_markup(
    watched: Callable[[Drive], Any], drives: Callable[..., Drive], rig_file: Path
) -> None:
    page = watched(drives(rig_file, label="<img src=x onerror='document.title=\"taken\"'>"))
    says(page, "#obstacles", "<img src=x")
    says(page, "#ahead-because", "<b><img src=x")
    page.wait_for_function("() => document.getElementById('boxes').dataset.subjects === '1'", timeout=10_000)
    assert (
        page.title() == "Sensorium"
        and page.query_selector("main img, main b:not(.sign):not([id]), #around img") is None
    )


@pytest.mark.system
def test_without_a_rig_the_page_says_why_there_are_no_points_on_the_picture(
    watched: Callable[[Drive], Any], drives: Callable[..., Drive]
) -> None:
    page = watched(drives(None))
    says(page, "#legend", NO_RIG)
    says(page, "#top-words", "points: frame of lidar")
    assert page.is_hidden("#picture-tag") and int(page.get_attribute("#top", "data-points")) > 20


@pytest.mark.system
@pytest.mark.parametrize("width_px", [320, 500, 768, 1000])
def test_no_width_needs_sideways_scrolling(page: Any, width_px: int) -> None:
    page.set_viewport_size({"width": width_px, "height": 800})
    says(page, "#ahead-word", "CAUTION")
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
