"""One page and its WebSocket, served from a thread of their own; the only file that imports starlette and uvicorn.

Owns who may look, what each browser has yet to be sent, and a clean end. Refuses to know what is said. Nothing here
makes the caller wait: a browser that does not keep up gets the newest state and pictures, and the count of what it missed.

    server = PageServer(html, host="127.0.0.1", port=8080, token=None, greet=list, hear=print)
    server.start()                              # raises ConfigError: port taken, no such address
    server.say("prediction", text, keep="all")  # from any one thread
    server.stop()                               # within half a second; no thread is left
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, missing_package

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

MAX_WAITING = 128  # texts kept for one browser: 4 s of predictions at 30 Hz
MAX_HEARD_BYTES = 4096
PACED = 2  # pictures under way to a paced browser: two hide the way there and back
LANES = (
    "picture",
    "points",
)  # first words of what show() is given; each is paced by itself, so that neither starves the other
HEARD_NEXT = {"next": "picture", "next points": "points"}  # what a paced browser says, to the lane it means
GRACE_S = 0.15  # for browsers to hear that we stop; then their connections are cut

HEADERS = {
    # One self-contained page: whatever else a browser might be talked into loading is refused, as is framing it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address may carry the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

Keep = Literal["all", "newest"]


class Client:
    """One browser, and what it has yet to be sent: bounded, so that a slow one costs only itself."""

    def __init__(self, pictures: str) -> None:
        self._pictures = pictures  # "0": none, "paced": as many as it asks for, else: as they come
        self._under_way = dict.fromkeys(LANES, 0)  # sent to a paced browser and not yet answered
        self._waiting: deque[str] = deque()
        self._newest: dict[str, str | bytes] = {}
        self._missed = 0
        self._ready = asyncio.Event()

    def wants(self, lane: str) -> bool:
        return self._pictures != "0" and self._under_way[lane] < PACED

    def put(self, kind: str, message: str | bytes, keep: Keep) -> None:
        if keep == "newest":
            self._newest[kind] = message
        elif isinstance(message, str):
            self._waiting.append(message)
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._missed += 1
                self._newest["missed"] = json.dumps({"type": "missed", "count": self._missed})
        self._ready.set()

    def next(self, lane: str) -> None:
        self._under_way[lane] = max(0, self._under_way[lane] - 1)

    async def send_to(self, browser: WebSocket) -> None:
        while await self._ready.wait():
            self._ready.clear()
            while self._waiting:
                await browser.send_text(self._waiting.popleft())
            while self._newest:
                kind = next(iter(self._newest))
                message = self._newest.pop(kind)
                if isinstance(message, str):
                    await browser.send_text(message)
                else:
                    self._under_way[lane_of(kind)] += self._pictures == "paced"
                    await browser.send_bytes(message)


def lane_of(kind: str) -> str:
    return kind.partition(" ")[0]


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def refusal(headers: Mapping[str, str], *, given: str, token: str | None) -> tuple[int, str] | None:
    """Why a request is turned away, as HTTP status and words; None lets it in. given: the token it came with.

    A page of another site can make a browser call us by our address (Origin gives it away) or by a name of its own that
    it points at 127.0.0.1 (DNS rebinding: Host gives it away). The second is no way around a token, since a browser
    keeps that for our name; so with a token any name is let in, and a reverse proxy works.
    """
    host = headers.get("host", "")
    try:
        name, site = urlsplit(f"//{host}").hostname or "", urlsplit(headers.get("origin", f"//{host}")).netloc
    except ValueError:
        return 400, "The Host or Origin header is no address."
    if token is None and not is_loopback(name):
        return 421, f"This page answers only as 127.0.0.1 or localhost, not as '{name}'."
    if site != host:
        return 403, f"A page of another site ({headers.get('origin')}) has no access."
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        return 401, "This page needs its token: open its address with ?token=... as the configuration sets it."
    return None


class PageServer:
    """greet: what a browser that connects is told at once, (kind, text) each. hear: takes what a browser says and answers
    with a text or None. Both are called in the server's thread. `option` names the settings in errors: "nodes.dashboard".
    """

    def __init__(
        self,
        html: str,
        *,
        host: str,
        port: int,
        token: str | None,
        greet: Callable[[], Iterable[tuple[str, str]]],
        hear: Callable[[str], str | None],
        option: str = "page",
        log: logging.Logger | None = None,
    ) -> None:
        self.html, self.host, self.port, self.token, self.option = html, host, port, token, option
        self._greet, self._hear, self._log = greet, hear, log or logging.getLogger(__name__)
        # From the caller's thread to the server's. Appending and replacing one value need no lock.
        self._said: deque[tuple[str, str, Keep]] = deque(maxlen=MAX_WAITING)
        self._shown: dict[str, Callable[[], bytes | None]] = {}
        self._woken = False
        self.watched = False  # somebody is connected
        self.wanted: frozenset[str] = frozenset()  # the lanes in which somebody can take something now
        self._clients: set[Client] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is, after start(); without the token."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    @property
    def wants_picture(self) -> bool:
        return "picture" in self.wanted

    def start(self) -> None:
        try:
            import starlette  # noqa: F401  # only to see that they are there
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise missing_package(str(error.name), "the web page") from error
        listener = self._listen()  # here, not in the thread: a port that is taken ends the run, with the fix
        application, started = self._application(), threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(application, listener, started)), name="page", daemon=True
        )
        self._thread.start()
        started.wait()

    def stop(self) -> None:
        thread, loop = self._thread, self._loop
        self._thread = self._loop = None
        if thread is not None and loop is not None:
            loop.call_soon_threadsafe(self._stopping.set)
            thread.join(timeout=5.0)

    def say(self, kind: str, text: str, *, keep: Keep = "newest") -> None:
        """To every browser. keep="newest": a slow one may be sent only the last of this kind."""
        self._said.append((kind, text, keep))
        self._wake()

    def show(self, kind: str, make: Callable[[], bytes | None]) -> None:
        """To every browser that takes pictures. `make` runs later, in the server's thread, if one still does.

        kind: its lane, and what it replaces where it has not been sent yet: "picture camera", "points lidar".
        """
        self._shown[kind] = make
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not self._woken:  # one wake-up serves everything that waits
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._fan_out)

    def _listen(self) -> socket.socket:
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"{self.option}.port: port {self.port} of {self.host} is taken, perhaps by another run. "
                    f"Take the next one: --set {self.option}.port={self.port + 1}"
                ) from error
            if error.errno == errno.EACCES:
                raise ConfigError(
                    f"{self.option}.port: {self.port} is for root only. Choose one above 1023."
                ) from error
            raise ConfigError(
                f"{self.option}.address: '{self.host}' is no address of this machine ({error.strerror}). "
                "Choose 127.0.0.1, or 0.0.0.0 for all of its addresses."
            ) from error
        self.port = listener.getsockname()[1]
        return listener

    # From here on: the server's thread.

    async def _serve(self, application: ASGIApp, listener: socket.socket, started: threading.Event) -> None:
        import uvicorn

        config = uvicorn.Config(
            application,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=MAX_HEARD_BYTES,
            ws_per_message_deflate=False,  # JPEG does not get smaller, and time is dearer here than bytes
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        self._loop = asyncio.get_running_loop()
        started.set()
        await self._stopping.wait()
        await asyncio.sleep(GRACE_S)
        server.should_exit = server.force_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # a browser that does not read must not hold up the end
        await serving

    def _application(self) -> ASGIApp:
        from starlette.requests import HTTPConnection
        from starlette.responses import HTMLResponse, PlainTextResponse
        from starlette.routing import Route, Router, WebSocketRoute

        cookie = f"sensorium_{self.port}"  # browsers do not tell ports apart

        async def page(request: Request) -> Response:
            response = HTMLResponse(self.html, headers=HEADERS)
            if self.token is not None:
                response.set_cookie(cookie, self.token, httponly=True, samesite="strict")
            return response

        application = Router([Route("/", page), WebSocketRoute("/ws", self._converse)])

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            request = HTTPConnection(scope)
            given = request.query_params.get("token") or request.cookies.get(cookie, "")
            if refused := refusal(request.headers, given=given, token=self.token):
                status, words = refused
                await PlainTextResponse(words + "\n", status, HEADERS)(scope, receive, send)
            else:
                await application(scope, receive, send)

        return guarded

    async def _converse(self, browser: WebSocket) -> None:
        client = Client(browser.query_params.get("pictures", "1"))
        await browser.accept()
        for kind, text in self._greet():
            client.put(kind, text, "newest")
        self._clients.add(client)
        self._look_around()
        talks: list[asyncio.Future[object]] = [
            asyncio.ensure_future(talk)
            for talk in (client.send_to(browser), self._listen_to(browser, client), self._stopping.wait())
        ]
        try:
            await asyncio.wait(talks, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await asyncio.wait_for(browser.close(1001, "stopped"), GRACE_S / 2)
        except (RuntimeError, TimeoutError):
            pass  # it has gone, or does not read: nobody is left to tell
        finally:
            self._clients.discard(client)
            self._look_around()
            for talk in talks:
                talk.cancel()
            for outcome in await asyncio.gather(*talks, return_exceptions=True):
                if isinstance(outcome, Exception) and type(outcome).__name__ != "WebSocketDisconnect":
                    self._log.error("the page's connection failed", exc_info=outcome)

    async def _listen_to(self, browser: WebSocket, client: Client) -> None:
        while (heard := await browser.receive())["type"] == "websocket.receive":
            text = heard.get("text") or ""
            if text in HEARD_NEXT:
                client.next(HEARD_NEXT[text])
                self._look_around()
            elif (answer := self._hear(text)) is not None:
                client.put("answer", answer, "newest")

    def _look_around(self) -> None:
        self.watched = bool(self._clients)
        self.wanted = frozenset(lane for lane in LANES if any(client.wants(lane) for client in self._clients))

    def _fan_out(self) -> None:
        self._woken = False
        while self._said:
            kind, text, keep = self._said.popleft()
            for client in self._clients:
                client.put(kind, text, keep)
        while self._shown:
            kind, make = self._shown.popitem()
            takers = [client for client in self._clients if client.wants(lane_of(kind))]
            if takers and (picture := make()) is not None:
                for client in takers:
                    client.put(kind, picture, "newest")
        self._look_around()
