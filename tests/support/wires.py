"""Messages that the transport's tests send, and a subscriber that collects them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import zmq

from pipeline.errors import WireError
from pipeline.frame import Frame, Prediction, Receipt, StreamInfo, Subject
from pipeline.transport.keys import RunKeys
from pipeline.transport.network import context, new_keys
from pipeline.transport.publisher import Publisher
from pipeline.transport.subscriber import OverwrittenPayload, Subscriber
from pipeline.transport.wire_format import End

KEYS = RunKeys(*new_keys())  # of the run that a test stands for
INFO = StreamInfo("camera", "bgr8", 30.0, 3, "front", "a test")
RECEIPT = Receipt("camera", "nearest", (7, 8), 40, -3, 12, 1, "why")
PREDICTION = Prediction(
    "emotion",
    1_000,
    ("happy", "sad"),
    np.float32([0.75, 0.25]),
    "happy",
    "face@1",
    (Subject(3, (1, 2, 3, 4), (0.75, 0.25)),),
    ("camera",),
    ("microphone",),
    (RECEIPT,),
    True,
    {"wait": 3, "infer": 4},
)


def message(value: Any, version: int = 1) -> bytes:
    return msgspec.msgpack.encode([version, 1, 1, value])


def number(seq: int) -> Frame:
    return Frame("camera", seq, seq, "series_f32", np.float32([seq]))


def a_socket(kind: int) -> zmq.Socket[bytes]:
    socket = context().socket(kind)
    socket.setsockopt(zmq.LINGER, 200)
    return socket


@dataclasses.dataclass
class Reader:
    connection: Subscriber
    seqs: list[int] = dataclasses.field(default_factory=list)
    lost: int = 0
    ended: bool = False
    malformed: int = 0

    def read(self, until: Callable[[], bool], *, give_up_s: float = 10.0) -> None:
        """Receive until the condition holds."""
        end_s = time.monotonic() + give_up_s
        while not until():
            assert time.monotonic() < end_s, f"not received in time: {self}"
            self.connection.keep_alive()
            if self.connection.wait(5):
                try:
                    value, lost = self.connection.receive()
                except WireError:
                    self.malformed += 1
                    continue
                self.lost += lost + isinstance(value, OverwrittenPayload)
                if isinstance(value, Frame):
                    self.seqs.append(value.seq)
                self.ended = self.ended or isinstance(value, End)

    def join(self, publisher: Publisher) -> None:
        """Until the publisher has welcomed it; both run in this thread."""
        self.read(lambda: publisher.service() or self.connection.info is not None)
