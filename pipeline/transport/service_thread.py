"""Threads that a process cannot do without: the one that empties its sockets, those of its clocks, of its keys.

A thread that dies of an error leaves a process that looks alive and does nothing. So such a thread is a ServiceThread:
an error that it does not handle itself is logged, and the loop of the process asks `failure()` and ends with it, to be
started again.

Example:
    class Receiver(ServiceThread):
        def serve(self): ...
    if error := failure(): …                     # in the loop of the process
"""

from __future__ import annotations

import logging
import threading
import traceback

from pipeline.errors import SensoriumError

log = logging.getLogger("threads")

_failures: list[SensoriumError] = []


class ServiceThread(threading.Thread):
    """A daemon thread whose end by an error is the end of its process."""

    def serve(self) -> None:
        """What the thread does; returns when it is stopped."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            self.serve()
        except Exception as error:
            log.error("%s", traceback.format_exc())
            _failures.append(SensoriumError(f"the thread '{self.name}' failed: {type(error).__name__}: {error}"))


def failure() -> SensoriumError | None:
    """Why a service thread of this process has ended before it was stopped; None while all of them work."""
    return _failures[0] if _failures else None
