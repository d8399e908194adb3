"""Read the stream of a running pipeline from any program on this host, or on another host of its config.

Example:
    for prediction in pipeline.subscribe("emotion"):
        print(prediction.label, prediction.missing)

    with pipeline.subscribe("camera", Frame) as frames:      # Subscription[Frame]
        for frame in frames:
            show(frame.data)
    print(dict(frames.lost))                                 # {} or {"lost in transport": 3}
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pipeline.clock import LiveClock
from pipeline.errors import ConfigError, WireError
from pipeline.frame import AlignedSet, Frame, Health, Message, Prediction, StreamInfo, left_ns, moved
from pipeline.runtime.run_folder import announced_addresses, find_stream, keys_at, keys_between_hosts
from pipeline.transport.clock_exchange import ClockClient
from pipeline.transport.compression import decompress
from pipeline.transport.drop_reasons import CLOCK_JUMPED, MALFORMED
from pipeline.transport.keys import leaves_host
from pipeline.transport.service_thread import failure
from pipeline.transport.subscriber import Subscriber
from pipeline.transport.wire_format import End

M = TypeVar("M", Prediction, Frame, AlignedSet, Health)

SILENT_S = 1.0  # after so long without a message, a subscription checks whether the run is still announced
POLL_MS = 100


class Subscription(Iterator[M], Generic[M]):
    """The messages of one stream, in order, until it ends. An iterator and a context manager, for one thread.

    Attributes:
        node: The name of the node whose stream this is.
        lost: Messages that were sent to this program and never came out here, counted by reason: "lost in transport"
            when it reads too slowly, "overwritten in shared memory" when a payload's slot was reused before it was
            read, "malformed", and "the clock of its host jumped". Empty: nothing was missed since the first message.
    """

    def __init__(self, node: str, subscriber: Subscriber, message_type: type[M] | None, *, announced: bool) -> None:
        """message_type None: any. announced: it is a run of this host, so that a killed run is noticed."""
        self.node = node
        self.lost: Counter[str] = subscriber.dropped  # to which the transport adds what it misses
        self._subscriber, self._announced = subscriber, announced
        self._message_type: type[M] | None = message_type
        self._clock = LiveClock()
        self._last_message_s = time.monotonic()
        self._closed = False

    @property
    def info(self) -> StreamInfo | None:
        """Encoding, rate and origin of the stream; None before the first message."""
        return self._subscriber.info

    def __next__(self) -> M:
        while not self._closed:
            if self._subscriber.clock_client is not None and (error := failure()) is not None:
                raise error  # without that clock no message can be dated, so that none would ever come
            self._subscriber.keep_alive()
            if not self._subscriber.wait(POLL_MS):
                if self._run_is_gone():
                    break
                continue
            self._last_message_s = time.monotonic()
            try:
                value, _ = self._subscriber.receive()
            except WireError:
                continue
            if isinstance(value, End):
                break
            if not isinstance(value, Frame | AlignedSet | Prediction | Health):
                continue
            try:
                message = decompress(value)
            except WireError:
                self.lost[MALFORMED] += 1
                continue
            if (local := self._in_local_time(message)) is not None:
                return self._checked(local)
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop reading and release the socket; the iteration then ends. May be called twice."""
        if not self._closed:
            self._closed = True
            self._subscriber.close()
            if self._subscriber.clock_client is not None:
                self._subscriber.clock_client.stop()

    def __enter__(self) -> Subscription[M]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # else the constructor failed
            self.close()

    def _run_is_gone(self) -> bool:
        """A pipeline that was killed sends no end."""
        silent = self._announced and time.monotonic() - self._last_message_s > SILENT_S
        return silent and self._subscriber.address not in announced_addresses()

    def _in_local_time(self, message: Message) -> Message | None:
        """With the times of this host's clock; None when the other host's clock has jumped, so that it has no date."""
        if (client := self._subscriber.clock_client) is None:
            return message
        if client.clock.admits(left_ns(message), self._clock.now_ns()):
            return moved(message, client.clock.to_local)
        self.lost[CLOCK_JUMPED] += 1
        return None

    def _checked(self, message: Message) -> M:
        if self._message_type is not None and not isinstance(message, self._message_type):
            self.close()
            sent = type(message).__name__
            raise ConfigError(
                f"'{self.node}' sends {sent}, not {self._message_type.__name__}. "
                f"Write: subscribe('{self.node}', {sent})"
            )
        return cast(M, message)


@overload
def subscribe(  # type: ignore[overload-overlap]  # a variable that holds "health" is typed as any other node's name
    node: Literal["health"],
    *,
    run: str | None = None,
    address: str | None = None,
    config: str | Path | None = None,
    host: str = "",
    wait_s: float = 0.0,
) -> Subscription[Health]: ...


@overload
def subscribe(
    node: str,
    *,
    run: str | None = None,
    address: str | None = None,
    config: str | Path | None = None,
    host: str = "",
    wait_s: float = 0.0,
) -> Subscription[Prediction]: ...


@overload
def subscribe(
    node: str,
    message_type: type[M],
    *,
    run: str | None = None,
    address: str | None = None,
    config: str | Path | None = None,
    host: str = "",
    wait_s: float = 0.0,
) -> Subscription[M]: ...


def subscribe(
    node: str,
    message_type: type[Any] | None = None,
    *,
    run: str | None = None,
    address: str | None = None,
    config: str | Path | None = None,
    host: str = "",
    wait_s: float = 0.0,
) -> Subscription[Any]:
    """Read what `node` of a running pipeline sends, from now on until the pipeline ends.

    A program that reads too slowly loses messages, which `Subscription.lost` counts; the pipeline never waits for it.

    Args:
        node: A node's name in the config, such as "emotion" or "camera"; or "health", the state of all nodes.
        message_type: What the node sends: Prediction, Frame, AlignedSet or Health. Without it any message is passed on,
            and type checkers expect predictions (of "health": Health).
        run: The name of the run, where several on this host have such a node: `run --name`, else its config's.
        address: The stream's address, where it is known. Default: that of the run on this host with such a node.
        config: The config of a pipeline on another host, in which the node is `shared: true`. Times are then converted
            to this host's clock, and clock errors include the uncertainty of that conversion.
        host: With config: the name of the host whose keys this program uses.
        wait_s: How long to wait for a pipeline on this host to start (s). Default 0: it must run already.

    Returns:
        An iterator over the messages, which also is a context manager; see Subscription.

    Raises:
        ConfigError: No pipeline with such a node runs here (the error lists what runs), the config does not share the
            node, or, while iterating, the node sends another type of message.
    """
    reader = f"{node}<-{os.getpid()}-{secrets.token_hex(3)}"
    if config is not None:
        return Subscription(node, _on_other_host(config, node, host, reader), message_type, announced=False)
    stream_address = address or _wait_for_stream(node, run, wait_s)
    subscriber = Subscriber(stream_address, reader, keys=keys_at(stream_address))
    return Subscription(node, subscriber, message_type, announced=address is None)


def _wait_for_stream(node: str, run: str | None, wait_s: float) -> str:
    give_up_s = time.monotonic() + wait_s
    while True:
        try:
            return find_stream(node, run)
        except ConfigError:
            if time.monotonic() >= give_up_s:
                raise
            time.sleep(0.1)


def _on_other_host(config: str | Path, node: str, host: str, reader: str) -> Subscriber:
    # Imported here: configs and graphs import all of the node interface (20 ms), which a reader on this host needs not.
    from pipeline.runtime.config import load
    from pipeline.runtime.graph import shared_stream

    publishing_host, address, clock_address = shared_stream(load(config), node)
    if leaves_host(address) and not host:
        raise ConfigError(
            f"'{node}' is read from {address}, which needs the keys of one of the config's hosts. "
            f"Name it: subscribe('{node}', config=…, host='laptop')"
        )
    keys = keys_between_hosts(host, [address, clock_address])
    clock_client = ClockClient(publishing_host, clock_address, keys)
    subscriber = Subscriber(address, reader, payloads="packed", clock_client=clock_client, keys=keys)
    clock_client.start()
    return subscriber
