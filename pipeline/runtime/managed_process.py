"""One process of the graph, as the launcher holds it: a copy of the launcher where that is safe, else a new interpreter.

Python, numpy, ZeroMQ and the nodes' modules take 0.5 s of CPU to load. A fork shares what the launcher has loaded, but it
copies one thread alone: whatever another one holds stays locked for ever, and CUDA and sound servers do not survive it.
So only a launcher without threads and without such libraries is copied: at the start, on Linux. What is started again
later, and everything on other systems, begins as `python -m pipeline.runtime.worker` with its plan on standard input.

    child = start(plan, warm=True)
    child.exit_code                     # None: it runs; -9: killed by SIGKILL
    child.terminate(), child.kill()     # it alone; it and all that it started
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import msgspec

from pipeline.installation import PACKAGE
from pipeline.runtime.graph import ProcessPlan

log = logging.getLogger("launch")

HERE = str(PACKAGE.parent)
# They start threads, or talk to a device or a server, when used or even when loaded.
NOT_COPIED = ("cuda", "onnxruntime", "pyaudio", "pyrealsense2", "tensorrt", "tensorrt_rtx", "torch")


@dataclass(frozen=True)
class Child:
    pid: int
    _poll: Callable[[], int | None]
    _wait: Callable[[], object]
    _kill: Callable[[], None]

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._poll()

    def terminate(self) -> None:
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """It, and on POSIX its whole group: what it started."""
        if self.exit_code is None:
            self._kill()
        self._wait()


def start(plan: ProcessPlan, *, warm: bool) -> Child:
    """warm: copy this process, if it can be copied."""
    if warm:
        if not (reason := uncopiable()):
            return _fork(plan)
        log.debug("'%s' starts in a new interpreter: %s", plan.name, reason)
    return _interpreter(plan)


def uncopiable() -> str:
    """Why this process must not be forked; "": it may."""
    if sys.platform != "linux":
        return "only Linux's own libraries are known to survive a fork"
    if loaded := [name for name in NOT_COPIED if name in sys.modules]:
        return f"{', '.join(loaded)} must not be copied"
    threads = len(os.listdir("/proc/self/task"))  # those of C libraries too
    return f"{threads} threads run" if threads > 1 else ""


def _fork(plan: ProcessPlan) -> Child:
    from pipeline.runtime import worker  # here: every copy has it loaded

    # A signal in between would run the launcher's handler in the copy, and be lost.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

    def begin() -> None:
        gc.freeze()  # what is shared stays shared: the collector need not look at it
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # the terminal is the launcher's
        os.close(nothing)
        os.environ["PYTHONPATH"] = _python_path()
        if random := sys.modules.get("numpy.random"):
            random.seed()  # else all copies draw the same
        sys.exit(worker.live(plan))

    copy: BaseProcess = multiprocessing.get_context("fork").Process(target=begin, name=plan.name)
    try:
        copy.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    assert copy.pid is not None
    pid = copy.pid
    try:
        os.setpgid(pid, pid)  # here too: it may be killed by its group before it has run
    except (PermissionError, ProcessLookupError):
        pass  # it has been quicker
    return Child(pid, lambda: copy.exitcode, copy.join, lambda: os.killpg(pid, signal.SIGKILL))


def _interpreter(plan: ProcessPlan) -> Child:
    popen = subprocess.Popen(
        # -P and the path: our packages, not a folder called `nodes` that lies where the command was given.
        [sys.executable, "-P", "-m", "pipeline.runtime.worker"],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": _python_path()},
        # A group of its own: a terminal's Ctrl-C reaches the launcher alone, and killing it kills what it started.
        process_group=0 if os.name == "posix" else None,
    )
    assert popen.stdin is not None
    popen.stdin.write(msgspec.json.encode(plan))
    popen.stdin.close()

    def kill() -> None:
        if os.name == "posix":
            os.killpg(popen.pid, signal.SIGKILL)
        else:
            popen.kill()

    return Child(popen.pid, popen.poll, popen.wait, kill)


def _python_path() -> str:
    return os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
