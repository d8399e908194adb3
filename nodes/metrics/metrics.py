"""The run's health over HTTP, without a page: /healthz for whoever watches over it, /metrics for Prometheus.

`run CONFIG --metrics 9100` adds this node. The page's server answers the same two addresses.

Example:
    metrics: {use: metrics, inputs: [health], port: 9100}
"""

from __future__ import annotations

from typing import ClassVar

from pipeline.errors import ConfigError
from pipeline.frame import Health
from pipeline.node import Arrival, Sink
from pipeline.web.access import check_access, token_in_use
from pipeline.web.server import PageServer


class Metrics(Sink):
    """Serves /healthz and /metrics.

    Args:
        port: TCP port; 0 takes any free one. Default 9100.
        address: Address to listen at. Anything but this machine itself needs a token.
        token: At least 8 characters, required of /metrics, as ?token=... or as `Authorization: Bearer`; /healthz needs
            none. null: one is made for each run, and lies in its folder. "none": none is required, on this machine
            only.
    """

    consumes: ClassVar[tuple[type, ...]] = (Health,)
    is_display: ClassVar[bool] = True
    serves_page: ClassVar[bool] = True

    def __init__(self, *, port: int = 9100, address: str = "127.0.0.1", token: str | None = None) -> None:
        if not 0 <= port <= 65535:
            raise ConfigError(f"port: there is no port {port}. Choose one from 1024 to 65535.")
        check_access(address, token)
        self.port, self.address, self.token = port, address, token
        self._health: Health | None = None
        self._server: PageServer | None = None

    def open(self) -> None:
        self._server = PageServer(
            "",
            host=self.address,
            port=self.port,
            token=token_in_use(self.token, self.context.log),
            health=lambda: self._health,
            option=f"nodes.{self.name}",
            log=self.context.log,
        )
        self._server.start()
        self.context.metrics.facts["metrics"] = f"{self._server.url}metrics"
        self.context.publish_page(self._server.address("metrics"))

    def consume(self, arrival: Arrival) -> None:
        if isinstance(arrival.message, Health):
            self._health = arrival.message

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
