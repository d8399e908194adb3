"""One page and its WebSocket, served from their own thread; the only file that imports starlette and uvicorn.

Owns access control, the queue of each browser, and a clean shutdown. Knows nothing of the messages' contents. The
caller
never waits: a browser that does not keep up gets the newest state and pictures, and the count of what it missed.

Example:
    server = PageServer(html, host="127.0.0.1", port=8080, token=None, on_connect=list, on_message=print)
    server.start()                                  # raises ConfigError: port taken, no such address
    server.send("prediction", text, history="all")  # from any one thread
    server.stop()                                   # within half a second; no thread is left
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ConfigError, missing_package
from pipeline.frame import Health
from pipeline.web import prometheus
from pipeline.web.access import RateLimit, refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

MAX_QUEUED = 128  # texts queued for one browser: 4 s of predictions at 30 Hz
MAX_REQUEST_BYTES = 4096
MAX_IN_FLIGHT = 2  # pictures on the way to a paced browser: two hide the round trip
# Kinds of binary messages; each is paced separately, so that neither starves the other.
CHANNELS = ("picture", "points")
ACKNOWLEDGEMENTS = {"next": "picture", "next points": "points"}  # a paced browser's text → the channel it frees
GRACE_S = 0.15  # for browsers to receive the close frame; then their connections are cut

MAX_CLIENTS = 32  # WebSockets
MAX_CONNECTIONS = 128  # with those that have asked for nothing yet; beyond, the oldest of these is closed
HEADER_S = 5  # so long a connection may take for its request, or be idle between two
ORDERS_PER_S, ORDERS_AT_ONCE = 10.0, 20  # of one browser: people press buttons, programs may be wrong
STOP = '"stop"'
TOO_MANY_ORDERS = json.dumps({"type": "refused", "reason": f"too many orders: at most {ORDERS_PER_S:.0f} a second"})

HEADERS = {
    # One self-contained page: anything else that a browser might be made to load is refused, as is framing it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address may carry the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

History = Literal["all", "newest"]


class Client:
    """One browser and its queue: bounded, so that a slow browser costs only itself."""

    def __init__(self, pictures: str) -> None:
        self.orders = RateLimit(ORDERS_PER_S, ORDERS_AT_ONCE)
        self._pictures = pictures  # "0": none, "paced": as many as it acknowledges, else: as they arrive
        self._in_flight = dict.fromkeys(CHANNELS, 0)  # sent to a paced browser and not yet acknowledged
        self._queue: deque[str] = deque()
        self._newest: dict[str, str | bytes] = {}
        self._missed = 0
        self._ready = asyncio.Event()

    def wants(self, channel: str) -> bool:
        return self._pictures != "0" and self._in_flight[channel] < MAX_IN_FLIGHT

    def put(self, kind: str, message: str | bytes, history: History) -> None:
        if history == "newest":
            self._newest[kind] = message
        elif isinstance(message, str):
            self._queue.append(message)
            if len(self._queue) > MAX_QUEUED:
                self._queue.popleft()
                self._missed += 1
                self._newest["missed"] = json.dumps({"type": "missed", "count": self._missed})
        self._ready.set()

    def acknowledge(self, channel: str) -> None:
        self._in_flight[channel] = max(0, self._in_flight[channel] - 1)

    async def send_to(self, browser: WebSocket) -> None:
        while await self._ready.wait():
            self._ready.clear()
            while self._queue:
                await browser.send_text(self._queue.popleft())
            while self._newest:
                kind = next(iter(self._newest))
                message = self._newest.pop(kind)
                if isinstance(message, str):
                    await browser.send_text(message)
                else:
                    self._in_flight[channel_of(kind)] += self._pictures == "paced"
                    await browser.send_bytes(message)


def bounded_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol, whose connections must ask for something soon, and of which there are not too many.

    uvicorn itself has no limit for connections that never send a whole request: each would hold a descriptor.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Bounded(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.loop.call_later(HEADER_S, self.close_if_idle)
            self.number = Bounded.count = Bounded.count + 1
            idle = [c for c in self.connections if isinstance(c, Bounded) and c.asks_for_nothing]
            if len(self.connections) > MAX_CONNECTIONS and idle:
                min(idle, key=lambda connection: connection.number).transport.abort()

        count = 0

        @property
        def asks_for_nothing(self) -> bool:
            return self.cycle is None and not self.transport.is_closing()

        def close_if_idle(self) -> None:
            if self.asks_for_nothing and self in self.connections:  # a WebSocket has another protocol by now
                self.transport.abort()

    return Bounded


def channel_of(kind: str) -> str:
    return kind.partition(" ")[0]


class PageServer:
    """Serves one HTML page at / and its WebSocket at /ws, and the run's health at /healthz and /metrics.

    Args:
        html: The page.
        host: Address to listen at.
        port: 0 takes any free one; `port` holds it after start().
        token: Required of page and WebSocket; None: none is required.
        on_connect: Returns the messages for a browser that has just connected, (kind, text) each. Runs in the server's
            thread.
        on_message: Gets a browser's text, returns the reply or None. Runs in the server's thread.
        health: Returns the newest health of the run, for /healthz and /metrics.
        option: Names the settings in errors: "nodes.dashboard".
        log: Where failed connections are logged.
    """

    def __init__(
        self,
        html: str,
        *,
        host: str,
        port: int,
        token: str | None,
        on_connect: Callable[[], Iterable[tuple[str, str]]] = tuple,
        on_message: Callable[[str], str | None] = lambda text: None,
        health: Callable[[], Health | None] = lambda: None,
        option: str = "page",
        log: logging.Logger | None = None,
    ) -> None:
        self.html, self.host, self.port, self.token, self.option = html, host, port, token, option
        self._on_connect, self._on_message, self._health = on_connect, on_message, health
        self._log = log or logging.getLogger(__name__)
        # From the caller's thread to the server's. Appending and replacing one value need no lock.
        self._texts: deque[tuple[str, str, History]] = deque(maxlen=MAX_QUEUED)
        self._pictures: dict[str, Callable[[], bytes | None]] = {}
        self._wake_pending = False
        self.watched = False  # a browser is connected
        self.ready_channels: frozenset[str] = frozenset()  # channels on which some browser can take a message now
        self._clients: set[Client] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is, after start(); without the token."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    def address(self, path: str = "") -> str:
        """Where the page, or that path, is for a program of this user: with the token."""
        return f"{self.url}{path}" + (f"?token={self.token}" if self.token is not None else "")

    @property
    def wants_picture(self) -> bool:
        return "picture" in self.ready_channels

    def start(self) -> None:
        try:
            import starlette  # noqa: F401  # only to check that they are installed
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

    def send(self, kind: str, text: str, *, history: History = "newest") -> None:
        """To every browser. history="newest": a slow browser may get only the last message of this kind."""
        self._texts.append((kind, text, history))
        self._wake()

    def send_picture(self, kind: str, render: Callable[[], bytes | None]) -> None:
        """To every browser that takes pictures. `render` runs later, in the server's thread, if one still does.

        kind: its channel, and which unsent message it replaces: "picture camera", "points lidar".
        """
        self._pictures[kind] = render
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not self._wake_pending:  # one wake-up serves everything queued
            self._wake_pending = True
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
            http=bounded_protocol(),
            timeout_keep_alive=HEADER_S,
            ws="websockets-sansio",
            ws_max_size=MAX_REQUEST_BYTES,
            ws_per_message_deflate=False,  # JPEG does not get smaller, and here latency matters more than bytes
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
        from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
        from starlette.routing import Route, Router, WebSocketRoute

        cookie = f"sensorium_{self.port}"  # browsers share cookies between ports

        async def page(request: Request) -> Response:
            if not self.html:
                return PlainTextResponse("No page here. See /healthz and /metrics.\n", 404, HEADERS)
            response = HTMLResponse(self.html, headers=HEADERS)
            if self.token is not None:
                response.set_cookie(cookie, self.token, httponly=True, samesite="strict")
            return response

        async def healthz(request: Request) -> Response:
            trouble = prometheus.trouble(self._health())
            return JSONResponse({"ok": not trouble, "trouble": trouble}, 503 if trouble else 200, HEADERS)

        async def metrics(request: Request) -> Response:
            text = prometheus.exposition(self._health())
            return PlainTextResponse(text, headers=HEADERS, media_type=prometheus.CONTENT_TYPE)

        routes = [Route("/", page), Route("/healthz", healthz), Route("/metrics", metrics)]
        application = Router([*routes, WebSocketRoute("/ws", self._serve_browser)])

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            request = HTTPConnection(scope)
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            presented = request.query_params.get("token") or request.cookies.get(cookie) or bearer
            if scope["path"] == "/healthz":
                presented = self.token or ""  # whoever watches over a run may ask whether it is well, and no more
            if refused := refusal(request.headers, presented=presented, token=self.token):
                status, reason = refused
                await PlainTextResponse(reason + "\n", status, HEADERS)(scope, receive, send)
            else:
                await application(scope, receive, send)

        return guarded

    async def _serve_browser(self, browser: WebSocket) -> None:
        from starlette.websockets import WebSocketDisconnect

        client = Client(browser.query_params.get("pictures", "1"))
        await browser.accept()
        if len(self._clients) >= MAX_CLIENTS:
            return await browser.close(1013, "too many pages are open")
        for kind, text in self._on_connect():
            client.put(kind, text, "newest")
        self._clients.add(client)
        self._update_demand()
        tasks: list[asyncio.Future[object]] = [
            asyncio.ensure_future(coroutine)
            for coroutine in (client.send_to(browser), self._receive_from(browser, client), self._stopping.wait())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await asyncio.wait_for(browser.close(1001, "stopped"), GRACE_S / 2)
        except (RuntimeError, TimeoutError, WebSocketDisconnect):
            pass  # it has disconnected, or does not read
        finally:
            self._clients.discard(client)
            self._update_demand()
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and type(outcome).__name__ != "WebSocketDisconnect":
                    self._log.error("the page's connection failed", exc_info=outcome)

    async def _receive_from(self, browser: WebSocket, client: Client) -> None:
        while (received := await browser.receive())["type"] == "websocket.receive":
            text = received.get("text") or ""
            if text in ACKNOWLEDGEMENTS:
                client.acknowledge(ACKNOWLEDGEMENTS[text])
                self._update_demand()
            elif not (client.orders.allows() or STOP in text):  # a run can always be stopped
                client.put("answer", TOO_MANY_ORDERS, "newest")
            elif (reply := self._on_message(text)) is not None:
                client.put("answer", reply, "newest")

    def _update_demand(self) -> None:
        self.watched = bool(self._clients)
        self.ready_channels = frozenset(c for c in CHANNELS if any(client.wants(c) for client in self._clients))

    def _fan_out(self) -> None:
        self._wake_pending = False
        while self._texts:
            kind, text, history = self._texts.popleft()
            for client in self._clients:
                client.put(kind, text, history)
        while self._pictures:
            kind, render = self._pictures.popitem()
            takers = [client for client in self._clients if client.wants(channel_of(kind))]
            if takers and (picture := render()) is not None:
                for client in takers:
                    client.put(kind, picture, "newest")
        self._update_demand()
