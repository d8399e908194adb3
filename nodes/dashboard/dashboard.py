"""The web page: picture, expressions or scene, receipts and the state of every node.

Owns the messages to and from the page; pipeline/web/server.py serves it. Knows nothing of how predictions are made, and
never waits for a browser: what a slow one cannot take is replaced (pictures, state) or dropped and counted
(predictions; the page shows the count).

Your own program gets the predictions as JSON from the WebSocket /ws, one object a message:

    async with websockets.connect(pipeline.page_address("ws") + "&pictures=0") as page:
        async for text in page:
            message = json.loads(text)      # {"type": "prediction", "label": "happy", ...}: Prediction.record()

Server to client, text, distinguished by "type":
    hello        once: {"node", "note"}
    prediction   the fields of Prediction.record()
    health       {"publish_ns", "run", "nodes": [the fields of frame.NodeHealth, ...]}
    streams      up to 15 times a second: {"now_ns", "streams": {name: the fields of StreamView, ...}}
    missed       {"count"}: predictions that this client was too slow for
    refused      {"reason"}: the request cannot be carried out
    finished     every input has ended
Server to client, binary, unless pictures=0: a big-endian uint16, the length of the JSON object that follows it, and
what that is the head of. Without "kind" it has the fields of PictureHead, and a JPEG follows. "kind": "points" has the
fields of scene_view.PointsHead, which says how they are packed: up to 10 times a second for each stream of points that
is read. With pictures=paced every picture after the second waits for the text "next", and points for "next points", so
a page that is hidden, or cannot keep up, costs nothing.
Client to server, text: {"do": "mute", "source": "camera"}, {"do": "unmute", "source": "camera"}, {"do": "stop"}; while
it replays {"do": "pause"}, {"do": "resume"}; while it records or replays {"do": "label", "label": "happy", "at_ns": …}
("" ends one).
The address needs the run's token, /ws?pictures=0&token=…, as `pipeline.page_address()` returns it; orders are answered
with "refused" when a browser sends more than ten a second. Beside the page, /healthz (no token) and /metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import numpy as np

from pipeline.clock import NS
from pipeline.errors import ConfigError, printable
from pipeline.frame import POINTS, Frame, Health, Prediction, StreamInfo
from pipeline.installation import COMMAND
from pipeline.node import Arrival, Sink
from pipeline.picture_files import decode_picture

if TYPE_CHECKING:
    from pipeline.web.scene_view import SceneView
    from pipeline.web.server import PageServer  # it loads asyncio, which the launcher can do without

PAGE = Path(__file__).with_name("page.html")
PART = re.compile(r"<!-- (\w+\.html) -->")  # a placeholder in the page for the file's text
PICTURE_ENCODINGS = ("bgr8", "jpeg")
NOTE = "Labels are expressions, not feelings."
STREAMS_EVERY_NS = NS // 15  # the lowest rate at which a level meter looks live
POINTS_EVERY_NS = NS // 10
FLOOR_DB = -96.0  # the quietest 16-bit sample
PEAK_FALL_DB_PER_S = 20.0  # as a peak programme meter falls, so that a clap can be seen
JPEG_QUALITY = 80


class StreamView(msgspec.Struct, frozen=True):
    """The state of one stream, as the page shows it."""

    encoding: str = ""
    seq: int = -1
    capture_ns: int = 0
    rate_hz: float | None = None  # the source's, by its own seq and capture times: frames that did not reach us count
    width_px: int = 0
    height_px: int = 0
    level_db: float = FLOOR_DB  # RMS of the newest chunk, dBFS
    peak_db: float = FLOOR_DB
    latency_ns: int = 0  # from the end of the capture to here, smoothed over some 16 frames
    reason: str = ""  # of a silence; "" while frames come
    points: int = 0  # of the newest sweep, before any is left out
    about: str = ""  # StreamInfo.description; for a simulated source "rendered, not real"
    rate_from: tuple[int, int] | None = None  # seq and capture_ns the rate is being measured from

    def after(self, frame: Frame, arrival_ns: int) -> StreamView:
        if frame.encoding == "none":
            return StreamView(
                self.encoding, self.seq, self.capture_ns, reason=frame.reason or "silent", about=self.about
            )
        rate_hz, since = self.rate_hz, self.rate_from
        if since is None or frame.seq < since[0]:
            since = (frame.seq, frame.capture_ns)
        elif (elapsed_ns := frame.capture_ns - since[1]) >= NS:
            rate_hz = round((frame.seq - since[0]) * NS / elapsed_ns, 2)
            since = (frame.seq, frame.capture_ns)
        width_px, height_px, level_db, peak_db = self.width_px, self.height_px, FLOOR_DB, FLOOR_DB
        if frame.encoding == "bgr8":
            height_px, width_px = frame.data.shape[:2]
        elif frame.encoding == "pcm_f32" and frame.data.size:
            fallen_db = self.peak_db - PEAK_FALL_DB_PER_S * max(0, frame.capture_ns - self.capture_ns) / NS
            level_db = dbfs(float(np.dot(frame.data, frame.data) / frame.data.size) ** 0.5)
            peak_db = round(max(dbfs(float(np.abs(frame.data).max())), fallen_db), 1)
        points = len(frame.data) if frame.encoding.startswith("points_xyzi") else 0
        latency_ns = max(0, arrival_ns - frame.end_ns)
        if self.rate_from is not None:
            latency_ns = self.latency_ns + (latency_ns - self.latency_ns) // 16
        return StreamView(
            frame.encoding,
            frame.seq,
            frame.capture_ns,
            rate_hz,
            width_px,
            height_px,
            level_db,
            peak_db,
            latency_ns,
            "",
            points,
            self.about,
            since,
        )


def dbfs(amplitude: float) -> float:
    """Decibels below full scale (amplitude 1.0), not under FLOOR_DB."""
    return round(max(FLOOR_DB, 20 * float(np.log10(max(amplitude, 1e-9)))), 1)


class PictureHead(msgspec.Struct, frozen=True):
    """Precedes each JPEG. Width and height are those of the captured picture: boxes are in its pixels."""

    stream: str
    seq: int
    capture_ns: int
    width_px: int
    height_px: int


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a browser may request."""

    do: Literal["mute", "unmute", "stop", "pause", "resume", "label"]
    source: str = ""
    label: str = ""
    at_ns: int | None = None  # when the label began, on the pipeline's clock; None: now


class Dashboard(Sink):
    """A web page that shows the run as it happens.

    Args:
        port: TCP port of the page; 0 takes any free one. Default 8080.
        address: Address to listen at. Anything but this machine itself (127.0.0.1, ::1, localhost) needs a token.
        token: At least 8 characters, required of the page (?token=..., then stored in a cookie), of the WebSocket and
            of /metrics. null: one is made for each run; it is in the address that the run prints, and in the run's
            folder. "none": none is required, on this machine only.
        max_rate_hz: Most pictures a second sent to a browser. Default 15: enough to look live at half a camera's cost.
        width_px: Largest width of these pictures (px, at least 16). None is encoded while no browser is connected.
        rig: A rig file, by which points are drawn on the picture, and from above in the base frame.
        camera: The picture stream that points are drawn on; "" is the first that arrives.
        points: The streams whose points are shown; null: all that this node reads.
    """

    consumes: ClassVar[tuple[type, ...]] = (Frame, Prediction, Health)
    is_display: ClassVar[bool] = True
    serves_page: ClassVar[bool] = True

    def __init__(
        self,
        *,
        port: int = 8080,
        address: str = "127.0.0.1",
        token: str | None = None,
        max_rate_hz: float = 15.0,
        width_px: int = 960,
        rig: str | None = None,
        camera: str = "",
        points: Sequence[str] | None = None,
    ) -> None:
        from pipeline.web.access import check_access

        if not 0 <= port <= 65535:
            raise ConfigError(f"port: there is no port {port}. Choose one from 1024 to 65535.")
        check_access(address, token)
        if max_rate_hz <= 0 or width_px < 16:
            raise ConfigError("max_rate_hz must be above 0, width_px at least 16.")
        self.port, self.address, self.token, self.width_px = port, address, token, width_px
        self.rig_path, self.camera, self.points = rig, camera, points
        self._scene: SceneView | None = None
        self._picture_every_ns = round(NS / max_rate_hz)
        self._due_ns: dict[str, int] = {}  # by stream: when its next picture or sweep is shown
        self._streams_due_ns = 0
        # Read by the server's thread too: each value is frozen, and replaced whole.
        self._streams: dict[str, StreamView] = {}
        self._last: dict[str, Prediction | Health] = {}
        self._server: PageServer | None = None

    @property
    def url(self) -> str:
        """Where the page is, after open(); without the token."""
        return self._server.url if self._server else ""

    def named_inputs(self) -> Iterable[tuple[str, str]]:
        yield from (("points", stream) for stream in self.points or ())
        if self.camera:
            yield "camera", self.camera

    def open(self) -> None:
        import cv2  # noqa: F401  # the first import takes a quarter of a second: not at the first picture

        from pipeline.rig.rig_file import load_rig
        from pipeline.web.access import token_in_use
        from pipeline.web.scene_view import SceneView
        from pipeline.web.server import PageServer

        self._scene = SceneView(load_rig(self.rig_path) if self.rig_path else None)
        server = PageServer(
            page_text(),
            host=self.address,
            port=self.port,
            token=token_in_use(self.token, self.context.log),
            on_connect=self._first_messages,
            on_message=self._handle_request,
            health=self._newest_health,
            option=f"nodes.{self.name}",
            log=self.context.log,
        )
        server.start()
        self._server = server
        self.context.metrics.facts["page"] = self.url
        self.context.publish_page(server.address())
        self.context.log.debug("page at %s", self.url)  # the command line prints it for the user

    def consume(self, arrival: Arrival) -> None:
        message, server = arrival.message, self._server
        if isinstance(message, Frame):
            view = self._streams.get(message.stream) or StreamView(about=self._info(message.stream).description)
            self._streams[message.stream] = view.after(message, arrival.arrival_ns)
        elif isinstance(message, Prediction | Health):
            self._last[type(message).__name__] = message
        if server is None or not server.watched:
            return
        if isinstance(message, Prediction):
            server.send("prediction", as_json("prediction", message.record()), history="all")
        elif isinstance(message, Health):
            server.send("health", as_json("health", plain(message)))
        elif isinstance(message, Frame) and message.encoding in PICTURE_ENCODINGS and server.wants_picture:
            if self._is_due(message.stream, arrival.arrival_ns, self._picture_every_ns):
                self._show(message, server)
        elif isinstance(message, Frame) and message.encoding in POINTS and "points" in server.ready_channels:
            is_shown = self.points is None or message.stream in self.points
            if is_shown and self._is_due(message.stream, arrival.arrival_ns, POINTS_EVERY_NS):
                self._show_points(message, server)
        if arrival.arrival_ns >= self._streams_due_ns:
            self._streams_due_ns = arrival.arrival_ns + STREAMS_EVERY_NS
            server.send("streams", as_json("streams", {"now_ns": arrival.arrival_ns, "streams": self._streams}))

    def finish(self) -> None:
        if self._server is not None:
            self._server.send("finished", as_json("finished", {}))

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _is_due(self, stream: str, arrival_ns: int, every_ns: int) -> bool:
        due_ns = self._due_ns.get(stream, -every_ns)
        # Up to a quarter early counts as due: otherwise a 30 Hz camera with jitter would sometimes be shown at 10 Hz,
        # not 15.
        if arrival_ns < due_ns - every_ns // 4:
            return False
        self._due_ns[stream] = every_ns + (due_ns if arrival_ns < due_ns + every_ns else arrival_ns)
        return True

    def _show(self, frame: Frame, server: PageServer) -> None:
        # The frame's memory is ours only until we return: take a (small) copy, and encode that later.
        image = shrunk(frame.data, self.width_px) if frame.encoding == "bgr8" else frame.data.copy()
        view, width_px = self._streams[frame.stream], self.width_px
        head = PictureHead(frame.stream, frame.seq, frame.capture_ns, view.width_px, view.height_px)
        server.send_picture(f"picture {frame.stream}", lambda: picture_message(head, image, width_px))

    def _show_points(self, frame: Frame, server: PageServer) -> None:
        scene = self._scene
        assert scene is not None
        sample = scene.sample(frame, sensor=self._sensor(frame.stream))
        pictures = (name for name, view in self._streams.items() if view.encoding in PICTURE_ENCODINGS)
        camera = self.camera or next(pictures, "")
        sensor, view = self._sensor(camera) if camera else "", self._streams.get(camera, StreamView())
        size = (view.width_px, view.height_px)
        server.send_picture(
            f"points {frame.stream}",
            lambda: scene.message(sample, camera=camera, camera_sensor=sensor, picture_px=size),
        )

    def _info(self, stream: str) -> StreamInfo:
        return self.context.info(stream) or StreamInfo(stream, "")

    def _sensor(self, stream: str) -> str:
        """Its name in the rig: the source's own, if the rig has it; otherwise the stream's."""
        sensor = self._info(stream).sensor
        rig = self._scene.rig if self._scene else None
        return sensor if rig and sensor in rig.frames else stream

    def _newest_health(self) -> Health | None:
        health = self._last.get("Health")
        return health if isinstance(health, Health) else None

    def _first_messages(self) -> list[tuple[str, str]]:
        messages = [("hello", as_json("hello", {"node": self.name, "note": NOTE}))]
        for message in list(self._last.values()):
            kind = type(message).__name__.lower()
            messages.append(
                (kind, as_json(kind, message.record() if isinstance(message, Prediction) else plain(message)))
            )
        return messages

    def _handle_request(self, text: str) -> str | None:
        try:
            request = msgspec.json.decode(text, type=Request)
        except (msgspec.DecodeError, RecursionError) as error:
            return as_json("refused", {"reason": printable(str(error), 300)})
        health = self._last.get("Health")
        sources = {*self._streams, *(node.node for node in (health.nodes if isinstance(health, Health) else ()))}
        if request.do in ("pause", "resume", "label"):
            return self._handle_recording_request(request, health)
        if request.do != "stop" and request.source not in sources:
            return as_json(
                "refused", {"reason": f"no source '{request.source[:100]}'. Here: {', '.join(sorted(sources))}"}
            )
        self.context.log.info("requested from the page: %s %s", request.do, request.source)
        self.context.request(request.do, request.source if request.do != "stop" else "")
        return None

    def _handle_recording_request(self, request: Request, health: Prediction | Health | None) -> str | None:
        """Of a recording in progress or in replay."""
        facts = {f for node in health.nodes for f in node.facts} if isinstance(health, Health) else set()
        if request.do == "label":
            if not facts & {"recording", "replays"}:
                return as_json("refused", {"reason": "nothing is recorded or replayed, so there is nothing to label"})
            clock = self.context.clock
            now_ns = clock.now_ns()
            at_ns = now_ns if request.at_ns is None else request.at_ns
            if not clock.start_ns <= at_ns <= now_ns:
                return as_json("refused", {"reason": f"at_ns: {at_ns} lies outside of this run"})
            self.context.request("label", msgspec.json.encode({"label": request.label[:100], "at_ns": at_ns}).decode())
        elif "replays" not in facts:
            return as_json("refused", {"reason": f"live sensors cannot {request.do}"})
        else:
            self.context.request(request.do, "")
        return None


def page_text() -> str:
    """The page, put together from its part files."""
    page = PART.sub(lambda part: PAGE.with_name(part[1]).read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8"))
    return page.replace("{COMMAND}", COMMAND)


def as_json(kind: str, fields: dict[str, Any]) -> str:
    return msgspec.json.encode({"type": kind, **fields}).decode()


def plain(health: Health) -> dict[str, Any]:
    """By field name: the wire's arrays are for programs that know the request."""
    nodes = [msgspec.structs.asdict(node) for node in health.nodes]
    return {"publish_ns": health.publish_ns, "run": health.run, "nodes": nodes}


def shrunk(image: np.ndarray, max_px: int) -> np.ndarray:
    """A copy that is at most `max_px` wide."""
    import cv2

    height_px, width_px = image.shape[:2]
    if width_px <= max_px:
        return image.copy()
    size = (max_px, max(1, round(height_px * max_px / width_px)))
    # Linear reads four pixels of the source for each one it writes: below half the size it would skip some, and
    # flicker.
    how = cv2.INTER_AREA if width_px >= 2 * max_px else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how)


def picture_message(head: PictureHead, image: np.ndarray, max_px: int) -> bytes | None:
    """The binary message. image: (h, w, 3), or (n,) for a JPEG; None where that cannot be decoded."""
    import cv2

    if image.ndim == 1:
        decoded = decode_picture(image, cv2.IMREAD_COLOR)
        if decoded is None:
            return None  # the task reports it, in a receipt
        height_px, width_px = decoded.shape[:2]
        head, image = msgspec.structs.replace(head, width_px=width_px, height_px=height_px), shrunk(decoded, max_px)
    header = msgspec.json.encode(head)
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return len(header).to_bytes(2, "big") + header + jpeg.tobytes()
