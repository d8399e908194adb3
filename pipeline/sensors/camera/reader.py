"""A thread that reads a camera, so that a blocking library never blocks the run.

Example:
    reader = PictureReader(usb_pictures(0, (None, None), None, clock, "camera 'camera'"))
    while reader.wait(0.25):                # raises the DeviceError that ended the reading
        for picture in reader.take(): ...
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from pipeline.errors import SensoriumError
from pipeline.sensors.camera.picture import Picture, Pictures

MAX_QUEUED = 4  # pictures between the reading thread and the run: a consumer further behind has missed them anyway


class PictureQueue:
    """The newest pictures of a device's thread, how many were lost for which reason, and the error that ended it."""

    def __init__(self) -> None:
        self._pictures: deque[Picture] = deque()
        self._lost: dict[str, int] = {}
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, picture: Picture) -> None:
        with self._changed:
            if len(self._pictures) == MAX_QUEUED:
                self._pictures.popleft()
                self.lose("overload")
            self._pictures.append(picture)
            self._changed.notify()

    def lose(self, reason: str, count: int = 1) -> None:
        with self._changed:
            self._lost[reason] = self._lost.get(reason, 0) + count

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = error
            self._changed.notify()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is a picture.

        Raises the error that ended the reading, once the pictures before it are taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._pictures or self._error, timeout_s)
            if self._error is not None and not self._pictures:
                if isinstance(self._error, SensoriumError):
                    raise self._error
                raise RuntimeError("the camera's reading thread failed") from self._error
            return bool(self._pictures)

    def take(self) -> Iterator[Picture]:
        while True:
            with self._changed:
                if not self._pictures:
                    return
                picture = self._pictures.popleft()
            yield picture

    def newest(self) -> Picture:
        """The newest picture, which stays in the queue. Only after wait() returned True."""
        with self._changed:
            return self._pictures[-1]

    def clear(self) -> None:
        """Discard what was read before the run began."""
        with self._changed:
            self._pictures.clear()
            self._lost.clear()

    def take_lost(self) -> dict[str, int]:
        """Pictures lost since the last call, by reason."""
        with self._changed:
            lost, self._lost = self._lost, {}
        return lost


class PictureReader(PictureQueue):
    """Reads pictures in its own thread."""

    def __init__(self, pictures: Pictures) -> None:
        super().__init__()
        self._source = pictures
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for picture in self._source:
                if self._stopping.is_set():
                    return
                if isinstance(picture, str):
                    self.lose(picture)
                else:
                    self.put(picture)
        except BaseException as caught:
            error = caught
        finally:
            self._source.close()  # type: ignore[attr-defined]  # a generator: releases the device
            self.end(error)

    def stop(self) -> None:
        """The thread ends at its next picture, or when the library's own timeout ends its wait."""
        self._stopping.set()
        self._thread.join(1.0)
