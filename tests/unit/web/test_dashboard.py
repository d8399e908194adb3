"""The web page's server: what it says, whom it lets in, and that nobody can hold up the pipeline through it."""

import json
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from browsing import MS, picture
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from nodes.dashboard import Dashboard
from pipeline.errors import ConfigError
from pipeline.frame import Frame, Health, Message, NodeHealth, Prediction, Receipt, Subject, silence
from pipeline.node import Arrival, Context
from pipeline.web.server import MAX_QUEUED

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
PROBS = (0.01, 0.01, 0.02, 0.9, 0.01, 0.02, 0.03)


def prediction(seq: int = 0) -> Prediction:
    return Prediction(
        task="emotion",
        capture_ns=seq * 40 * MS,
        labels=LABELS,
        probs=np.array(PROBS, np.float32),
        label="happy",
        model="face-expression@1a2b3c4d",
        subjects=(Subject(1, (100.0, 60.0, 200.0, 200.0), PROBS),),
        used=("camera",),
        missing=("microphone",),
        receipts=(Receipt("camera", "exact", (seq,)), Receipt("microphone", "silent", reason="unplugged")),
        timing_ns={"wait": 0, "infer": 5 * MS, "total": 12 * MS},
    )


def health(state: str = "running", note: str = "") -> Health:
    return Health(
        1, (NodeHealth("camera", state, note, dropped={"camera": {"device": 2}}), NodeHealth("microphone", "running"))
    )  # type: ignore[arg-type]


class Running:
    """A dashboard on a free port, fed by the test."""

    def __init__(self, **options: object) -> None:
        self.asked: queue.Queue[tuple[str, str]] = queue.Queue()
        self.node = Dashboard(port=0, **options)  # type: ignore[arg-type]
        self.node.context = Context("dashboard", request=lambda verb, argument: self.asked.put((verb, argument)))
        self.node.open()
        self.port = int(self.node.url.rstrip("/").rsplit(":", 1)[1])
        self.now_ns = 0

    def feed(self, *messages: Message) -> None:
        for message in messages:
            self.now_ns += 40 * MS
            self.node.consume(Arrival("test", message, self.now_ns))

    def browser(self, query: str = "?pictures=0", **more: object) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/ws{query}", compression=None, **more)  # type: ignore[arg-type]

    def get(self, path: str = "/", **headers: str) -> tuple[int, str, dict[str, str]]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(**options: object) -> Running:
        started.append(Running(**options))
        return started[-1]

    yield start
    for running in started:
        running.node.close()


def hear(browser: ClientConnection, kind: str) -> dict[str, object]:
    """The next text message of one kind."""
    while True:
        text = browser.recv(timeout=5)
        if isinstance(text, str) and (message := json.loads(text))["type"] == kind:
            return message  # type: ignore[no-any-return]


def see(browser: ClientConnection) -> tuple[dict[str, object], np.ndarray]:
    """The next picture: its head and the decoded image."""
    while isinstance(data := browser.recv(timeout=5), str):
        pass
    length = int.from_bytes(data[:2], "big")
    image = cv2.imdecode(np.frombuffer(data[2 + length :], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return json.loads(data[2 : 2 + length]), image


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.system
def test_predictions_arrive_as_the_record_of_the_prediction(run: Callable[..., Running]) -> None:
    dashboard = run()
    with dashboard.browser() as browser:
        hear(browser, "hello")
        dashboard.feed(prediction(7))
        assert hear(browser, "prediction") == {"type": "prediction", **prediction(7).record()}


@pytest.mark.system
def test_late_browser_gets_the_state_at_once(run: Callable[..., Running]) -> None:
    dashboard = run()
    dashboard.feed(prediction(3), health("silent", "unplugged, trying again in 4 s"))
    with dashboard.browser() as browser:
        assert "expressions, not feelings" in str(hear(browser, "hello")["note"])
        assert hear(browser, "prediction")["capture_ns"] == 120 * MS
        nodes = hear(browser, "health")["nodes"]
    assert isinstance(nodes, list)
    assert nodes[0]["note"] == "unplugged, trying again in 4 s" and nodes[0]["dropped"] == {"camera": {"device": 2}}


@pytest.mark.system
def test_streams_say_level_rate_and_why_there_is_silence(run: Callable[..., Running]) -> None:
    dashboard = run()
    with dashboard.browser() as browser:
        hear(browser, "hello")
        dashboard.feed(Frame("microphone", 0, 0, "pcm_f32", np.full(320, 0.1, np.float32)))
        streams = hear(browser, "streams")["streams"]
        assert isinstance(streams, dict) and streams["microphone"]["level_db"] == pytest.approx(-20.0, abs=0.1)
        dashboard.feed(silence("microphone", 0, "unplugged"), silence("microphone", 0, "unplugged"))
        while isinstance(streams, dict) and streams["microphone"]["reason"] != "unplugged":
            dashboard.feed(silence("microphone", 0, "unplugged"))
            streams = hear(browser, "streams")["streams"]


@pytest.mark.system
def test_picture_carries_its_time_and_the_size_it_was_captured_at(run: Callable[..., Running]) -> None:
    dashboard = run(width_px=320)
    with dashboard.browser("") as browser:
        hear(browser, "hello")
        wait_until(lambda: dashboard.node._server is not None and dashboard.node._server.wants_picture)
        dashboard.feed(picture(12, 1280, 720))
        head, image = see(browser)
    assert head == {"stream": "camera", "seq": 12, "capture_ns": 480 * MS, "width_px": 1280, "height_px": 720}
    assert image.shape == (180, 320, 3)


@pytest.mark.system
def test_a_jpeg_source_is_shown_and_a_torn_one_is_passed_over(run: Callable[..., Running]) -> None:
    dashboard = run(width_px=320)
    jpeg = cv2.imencode(".jpg", picture(0, 640, 360).data)[1].ravel()
    with dashboard.browser("") as browser:
        hear(browser, "hello")
        wait_until(lambda: dashboard.node._server is not None and dashboard.node._server.wants_picture)
        dashboard.feed(Frame("camera", 0, 0, "jpeg", np.arange(100, dtype=np.uint8)))
        time.sleep(0.1)
        dashboard.feed(Frame("camera", 1, 0, "jpeg", jpeg), Frame("camera", 2, 0, "jpeg", jpeg))
        head, image = see(browser)
    assert (head["width_px"], head["height_px"], image.shape) == (640, 360, (180, 320, 3))


@pytest.mark.system
@pytest.mark.paced
def test_pictures_are_limited_in_rate_and_paced_by_the_browser(run: Callable[..., Running]) -> None:
    dashboard = run(max_rate_hz=10.0)
    with dashboard.browser("?pictures=paced") as browser:
        hear(browser, "hello")
        wait_until(lambda: dashboard.node._server is not None and dashboard.node._server.wants_picture)
        seqs = []
        for seq in range(30):  # 25 Hz: at most every second one is due
            dashboard.feed(picture(seq, 64, 36))
            time.sleep(0.01)
        for _ in range(2):
            seqs.append(see(browser)[0]["seq"])
        with pytest.raises(TimeoutError):
            while isinstance(browser.recv(timeout=0.2), str):
                pass
        browser.send("next")
        wait_until(lambda: dashboard.node._server is not None and dashboard.node._server.wants_picture)
        dashboard.feed(picture(99, 64, 36))
        assert see(browser)[0]["seq"] == 99
    assert seqs[1] - seqs[0] >= 2


@pytest.mark.system
def test_nothing_is_encoded_while_nobody_looks(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = run()
    encoded = []
    monkeypatch.setattr("nodes.dashboard.dashboard.picture_message", lambda *_: encoded.append(1))
    dashboard.feed(*(picture(seq, 64, 36) for seq in range(10)))
    with dashboard.browser("?pictures=0") as browser:
        hear(browser, "hello")
        dashboard.feed(*(picture(seq, 64, 36) for seq in range(10)), prediction())
        hear(browser, "prediction")
    assert not encoded


@pytest.mark.system
def test_mute_and_stop_reach_the_launcher_and_nonsense_is_answered(run: Callable[..., Running]) -> None:
    dashboard = run()
    dashboard.feed(picture(), health())
    with dashboard.browser() as browser:
        for order in ({"do": "mute", "source": "camera"}, {"do": "unmute", "source": "microphone"}, {"do": "stop"}):
            browser.send(json.dumps(order))
            assert dashboard.asked.get(timeout=5) == (order["do"], order.get("source", ""))
        browser.send(json.dumps({"do": "mute", "source": "/etc"}))
        assert "Here: camera, microphone" in str(hear(browser, "refused")["reason"])
        for nonsense in ("", "{", "[]", '{"do": "explode"}', '{"do": "stop", "now": 1}', b"\x00\xff"):
            browser.send(nonsense)
            hear(browser, "refused")
    assert dashboard.asked.empty()


@pytest.mark.system
@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example:8080"}]
)
def test_other_sites_reach_neither_page_nor_socket(run: Callable[..., Running], headers: dict[str, str]) -> None:
    dashboard = run()
    status, words, _ = dashboard.get(**headers)
    assert status in (403, 421) and "<html" not in words
    if "Host" in headers:  # the client library writes its own: say it by hand
        with socket.create_connection(("127.0.0.1", dashboard.port)) as raw:
            raw.sendall(
                b"GET /ws HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b" 421 " in raw.recv(100)
    else:
        with pytest.raises(InvalidStatus) as refused:
            dashboard.browser(additional_headers=headers)
        assert refused.value.response.status_code == 403


@pytest.mark.system
def test_the_token_opens_page_and_socket_and_is_then_stored_in_a_cookie(run: Callable[..., Running]) -> None:
    dashboard = run(token="open sesame")
    assert dashboard.get()[0] == dashboard.get("/?token=wrong")[0] == 401
    with pytest.raises(InvalidStatus):
        dashboard.browser()
    status, page, headers = dashboard.get("/?token=open%20sesame")
    assert status == 200 and "<html" in page
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    with dashboard.browser(additional_headers={"Cookie": cookie.split(";")[0]}) as browser:
        hear(browser, "hello")
    with dashboard.browser("?pictures=0&token=open%20sesame") as browser:
        hear(browser, "hello")


@pytest.mark.system
def test_the_page_loads_nothing_from_elsewhere_and_cannot_be_framed(run: Callable[..., Running]) -> None:
    _, page, headers = run().get()
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "//" not in page.replace("http://www.w3.org/2000/svg", "").replace("// ", "")


@pytest.mark.system
def test_a_taken_port_is_named_with_the_next_one(run: Callable[..., Running]) -> None:
    first = run()
    second = Dashboard(port=first.port)
    second.context = Context("page")
    threads = threading.active_count()
    with pytest.raises(
        ConfigError, match=rf"nodes\.page\.port: port {first.port} .*--set nodes\.page\.port={first.port + 1}"
    ):
        second.open()
    second.close()
    assert threading.active_count() <= threads


@pytest.mark.system
def test_an_address_that_is_not_ours_is_named() -> None:
    node = Dashboard(address="203.0.113.7", token="open sesame", port=0)
    node.context = Context("dashboard")
    with pytest.raises(ConfigError, match=r"address: '203\.0\.113\.7' is no address of this machine"):
        node.open()


@pytest.mark.system
@pytest.mark.paced
def test_a_browser_that_does_not_read_costs_the_pipeline_nothing(run: Callable[..., Running]) -> None:
    dashboard = run(max_rate_hz=1000.0)
    frame, slow = picture(0, 640, 360), dashboard.browser("?pictures=1", max_queue=1)
    wait_until(lambda: dashboard.node._server is not None and dashboard.node._server.wants_picture)
    took_ms = []
    for seq in range(600):
        began = time.perf_counter()
        dashboard.feed(frame, prediction(seq))
        took_ms.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.002)
    assert dashboard.node._server is not None
    (client,) = dashboard.node._server._clients
    waiting = len(client._queue) + len(client._newest)
    print(f"a picture and a prediction: p50 {np.median(took_ms):.2f} ms, max {max(took_ms):.1f} ms; waiting {waiting}")
    assert np.median(took_ms) < 5 and np.percentile(took_ms, 95) < 40
    assert waiting <= MAX_QUEUED + 4 and client._missed > 0
    began = time.monotonic()
    dashboard.node.close()
    assert time.monotonic() - began < 1.0
    slow.close_socket()


@pytest.mark.system
@pytest.mark.paced
def test_close_tells_the_browser_and_leaves_no_thread_and_no_port(run: Callable[..., Running]) -> None:
    threads = threading.active_count()
    dashboard = run()
    with dashboard.browser("") as browser:
        hear(browser, "hello")
        began = time.monotonic()
        dashboard.feed(prediction())
        dashboard.node.finish()
        dashboard.node.close()
        assert time.monotonic() - began < 0.8
        hear(browser, "finished")
        with pytest.raises(ConnectionClosed) as closed:
            hear(browser, "nothing more")
    assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "stopped")
    wait_until(lambda: threading.active_count() <= threads)  # one of an earlier test may have ended meanwhile
    socket.create_server(("127.0.0.1", dashboard.port)).close()


@pytest.mark.system
def test_a_browser_that_vanishes_is_forgotten(run: Callable[..., Running]) -> None:
    dashboard = run()
    with dashboard.browser("") as browser:
        hear(browser, "hello")
        browser.close_socket()
    assert dashboard.node._server is not None
    server = dashboard.node._server
    wait_until(lambda: not server.watched)
    dashboard.feed(picture(), prediction(), health())
