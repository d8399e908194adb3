"""Start a process of the graph: a fork of the launcher where that is safe, else a new interpreter.

Python, numpy, ZeroMQ and the nodes' modules take 0.5 s of CPU to load. A fork shares what the launcher has loaded, but
it copies only one thread: a lock that another thread holds stays locked for ever, and what connects to a device or a
server in the background does not survive it. So only a launcher with one thread forks: at the start, on Linux.
Processes that are restarted, and all processes on other systems, begin as `python -m pipeline.runtime.worker` with
their plan on standard input.

Example:
    process = spawn(plan, warm=True)
    process.exit_code                     # None: it runs; -9: killed by SIGKILL
    process.terminate(), process.kill()   # SIGTERM to the process alone; SIGKILL to it and all that it started
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
from pipeline.runtime.guard import MARK

log = logging.getLogger("launch")

ROOT = str(PACKAGE.parent)


@dataclass(frozen=True)
class ProcessHandle:
    """An operating system process, however it was started."""

    pid: int
    _poll: Callable[[], int | None]
    _wait: Callable[[], object]
    _kill: Callable[[], None]

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._poll()

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM)."""
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process, and on POSIX its whole group, which is all that it started; returns when it has ended."""
        if self.exit_code is None:
            self._kill()
        self._wait()


def spawn(plan: ProcessPlan, *, warm: bool) -> ProcessHandle:
    """Start the process of `plan`. warm: fork this process if it can be forked."""
    if warm:
        if not (reason := reason_not_to_fork()):
            return _fork(plan)
        log.debug("'%s' starts in a new interpreter: %s", plan.name, reason)
    return _interpreter(plan)


def reason_not_to_fork() -> str:
    """Why this process must not be forked; "" when it may be."""
    if sys.platform != "linux":
        return "only Linux's own libraries are known to survive a fork"
    threads = len(os.listdir("/proc/self/task"))  # threads of C libraries included
    return f"{threads} threads run" if threads > 1 else ""


def describe_exit(exit_code: int) -> str:
    """ "exit code 1", or the name of the signal that ended a process."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    hint = " (if nobody sent it, the system ran out of memory: see dmesg)" if -exit_code == signal.SIGKILL else ""
    return signal.Signals(-exit_code).name + hint


def _fork(plan: ProcessPlan) -> ProcessHandle:
    from pipeline.runtime import worker  # imported before the fork, so that every fork has it loaded

    # Between the fork and the reset of its handlers, a signal would run the launcher's handler in the fork and be lost.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

    def run() -> None:
        gc.freeze()  # shared pages stay shared: the collector does not write to what was loaded before the fork
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)  # the terminal belongs to the launcher
        os.close(devnull)
        os.environ |= {"PYTHONPATH": _python_path(), MARK: plan.mark}
        if random := sys.modules.get("numpy.random"):
            random.seed()  # without it all forks draw the same numbers
        sys.exit(worker.run_process(plan))

    fork: BaseProcess = multiprocessing.get_context("fork").Process(target=run, name=plan.name)
    try:
        fork.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
    assert fork.pid is not None
    pid = fork.pid
    try:
        os.setpgid(pid, pid)  # also here: the group may have to be killed before the fork has run at all
    except (PermissionError, ProcessLookupError):
        pass  # the fork has already done it, or has ended
    return ProcessHandle(pid, lambda: fork.exitcode, fork.join, lambda: os.killpg(pid, signal.SIGKILL))


def _interpreter(plan: ProcessPlan) -> ProcessHandle:
    popen = subprocess.Popen(
        # -P and PYTHONPATH: our packages, not a folder called `nodes` in the current one.
        [sys.executable, "-P", "-m", "pipeline.runtime.worker"],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": _python_path(), MARK: plan.mark},
        # A process group of its own: a terminal's Ctrl-C reaches the launcher alone, and one kill ends the whole group.
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

    return ProcessHandle(popen.pid, popen.poll, popen.wait, kill)


def _python_path() -> str:
    return os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
