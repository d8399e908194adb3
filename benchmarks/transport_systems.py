"""The systems that benchmarks.transport compares: a sender and a receiver each, with one interface for all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "1080p": ((1080, 1920, 3), "uint8"),
    "lidar": ((30_000, 4), "float32"),
    "audio": ((320,), "float32"),
}


class Sender(Protocol):
    def borrow(self) -> np.ndarray | None:
        """An array of the sender's to draw in; None if it lends none."""

    def send(self, array: np.ndarray) -> None: ...

    def serve(self) -> None:
        """Called again and again before the first message."""

    def close(self) -> None: ...


class Receiver(Protocol):
    def receive(self) -> list[np.ndarray]:
        """The messages that have arrived; waits for at most 50 ms."""

    ready: bool


class SensoriumSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        from pipeline.frame import Frame, StreamInfo
        from pipeline.transport.publisher import Publisher

        self._publisher = Publisher(address, StreamInfo(Path(address).stem, "", 30.0))
        self._kind, self._payload, self._borrowed, self._seq = Frame, payload, borrowed, 0
        self._encoding: Any = {"1080p": "bgr8", "lidar": "points_xyzi_f32", "audio": "pcm_f32"}[payload]

    def borrow(self) -> np.ndarray | None:
        return self._publisher.borrow(*SHAPES[self._payload]) if self._borrowed else None

    def send(self, array: np.ndarray) -> None:
        self._seq += 1
        # A Frame makes its array read-only.
        self._publisher.send(self._kind("camera", self._seq, time.monotonic_ns(), self._encoding, array.view()))

    def serve(self) -> None:
        self._publisher.service(timeout_ms=10)

    def close(self) -> None:
        self._publisher.close(ended=True)


class SensoriumReceiver:
    """Like `pipeline.subscribe`, for several streams; flat out with flow control, as behind a file."""

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        from pipeline.frame import Frame
        from pipeline.transport.credits import INITIAL_CREDITS
        from pipeline.transport.poller import Poller
        from pipeline.transport.subscriber import Subscriber

        self._kind, self._flat_out = Frame, flat_out
        self._subscribers = [Subscriber(a, "bench", credits=INITIAL_CREDITS if flat_out else None) for a in addresses]
        self._poller = Poller(self._subscribers)

    @property
    def ready(self) -> bool:
        self.receive()
        return all(subscriber.info for subscriber in self._subscribers)

    def receive(self) -> list[np.ndarray]:
        for subscriber in self._subscribers:
            subscriber.keep_alive()
        arrays = []
        for subscriber in self._poller.wait(50):
            value, _ = subscriber.receive()
            if isinstance(value, self._kind):
                arrays.append(value.data)
                if self._flat_out:
                    subscriber.grant_credits(1)
        return arrays


class PyzmqSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        import zmq

        self._socket = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.set_hwm(2)  # no more of the buffers in flight than there are
        self._socket.bind(address)

    def borrow(self) -> np.ndarray | None:
        return None

    def send(self, array: np.ndarray) -> None:
        import zmq

        self._socket.send_json({"dtype": str(array.dtype), "shape": array.shape}, zmq.SNDMORE)
        self._socket.send(array, copy=False)

    def serve(self) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        import zmq

        self._socket.close()
        zmq.Context.instance().term()  # waits until all messages are sent


class PyzmqReceiver:
    ready = True

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        import zmq

        self._poller = zmq.Poller()
        for address in addresses:
            socket = zmq.Context.instance().socket(zmq.PULL)
            socket.set_hwm(2)
            socket.connect(address)
            self._poller.register(socket, zmq.POLLIN)

    def receive(self) -> list[np.ndarray]:
        arrays = []
        for socket, _ in self._poller.poll(50):
            header: Any = socket.recv_json()
            data = socket.recv(copy=False)
            arrays.append(np.frombuffer(data.buffer, header["dtype"]).reshape(header["shape"]))
        return arrays


class ImagezmqSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        import imagezmq

        self._sender = imagezmq.ImageSender(connect_to=address)

    def borrow(self) -> np.ndarray | None:
        return None

    def send(self, array: np.ndarray) -> None:
        self._sender.send_image("camera", array)

    def serve(self) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        self._sender.close()


class ImagezmqReceiver:
    ready = True

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        import imagezmq

        (address,) = addresses
        self._hub = imagezmq.ImageHub(open_port=address)

    def receive(self) -> list[np.ndarray]:
        if not self._hub.zmq_socket.poll(50):
            return []
        _, image = self._hub.recv_image()
        self._hub.send_reply()
        return [image]


def _iceoryx(address: str) -> tuple[Any, Any, Any]:
    """iceoryx2's node, its service for payloads and its service for wake-ups."""
    import ctypes

    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
    payloads = node.service_builder(iox.ServiceName.new(address)).publish_subscribe(iox.Slice[ctypes.c_uint8])
    payloads = payloads.subscriber_max_buffer_size(8).subscriber_max_borrowed_samples(8).enable_safe_overflow(False)
    events = node.service_builder(iox.ServiceName.new(address + "!")).event()
    return node, payloads.open_or_create(), events.open_or_create()


class IceoryxSender:
    def __init__(self, address: str, payload: str, borrowed: bool) -> None:
        import iceoryx2 as iox

        self._node, payloads, events = _iceoryx(address)
        self._bytes = int(np.prod(SHAPES[payload][0])) * np.dtype(SHAPES[payload][1]).itemsize
        publisher = payloads.publisher_builder().initial_max_slice_len(self._bytes)
        self._publisher = publisher.backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create()
        self._event = events.notifier_builder().create()
        self._payload, self._borrowed, self._loaned = payload, borrowed, None

    def borrow(self) -> np.ndarray | None:
        return self._loan() if self._borrowed else None

    def _loan(self) -> np.ndarray:
        shape, dtype = SHAPES[self._payload]
        self._loaned = self._publisher.loan_slice_uninit(self._bytes)
        return np.frombuffer(self._loaned.payload().as_memory_view(), dtype).reshape(shape)

    def send(self, array: np.ndarray) -> None:
        if not self._borrowed:
            np.copyto(self._loan(), array)
        self._loaned.assume_init().send()  # type: ignore[attr-defined]
        self._event.notify()

    def serve(self) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        pass


class IceoryxReceiver:
    ready = True

    def __init__(self, addresses: list[str], flat_out: bool) -> None:
        (address,) = addresses
        self._node, payloads, events = _iceoryx(address)
        self._subscriber = payloads.subscriber_builder().create()
        self._event = events.listener_builder().create()
        self._samples: list[Any] = []

    def receive(self) -> list[np.ndarray]:
        import iceoryx2 as iox

        for sample in self._samples:
            sample.delete()
        self._samples.clear()
        self._event.timed_wait(iox.Duration.from_millis(50))
        while (sample := self._subscriber.receive()) is not None:
            self._samples.append(sample)
            if len(self._samples) == 4:
                break
        return [np.frombuffer(sample.payload().as_memory_view(), np.uint8) for sample in self._samples]


SENDERS: dict[str, type[Any]] = {
    "sensorium": SensoriumSender,
    "pyzmq": PyzmqSender,
    "imagezmq": ImagezmqSender,
    "iceoryx2": IceoryxSender,
}
RECEIVERS: dict[str, type[Any]] = {
    "sensorium": SensoriumReceiver,
    "pyzmq": PyzmqReceiver,
    "imagezmq": ImagezmqReceiver,
    "iceoryx2": IceoryxReceiver,
}
