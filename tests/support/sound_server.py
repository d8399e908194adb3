"""A PulseAudio of the test's own, whose only microphone a test speaks into and unplugs.

server = SoundServer(folder)        # with the variables of environment(folder) set
server.play(samples)
server.unplug(); server.plug_in()
server.stop()
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np

from pipeline.clock import NS

RATE_HZ = 16000


def why_not() -> str:
    """What this machine lacks for it; "" when nothing."""
    for program in ("pulseaudio", "pactl"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install pulseaudio pulseaudio-utils libasound2-plugins"
    return "" if importlib.util.find_spec("pyaudio") else "PyAudio is not installed: scripts/setup mic"


def environment(folder: Path) -> dict[str, str]:
    """The variables by which programs reach the server in this folder, and no other."""
    names = ("HOME", "XDG_RUNTIME_DIR", "PULSE_RUNTIME_PATH")
    return {"PULSE_SERVER": f"unix:{folder}/native"} | dict.fromkeys(names, str(folder))


class SoundServer:
    """A private PulseAudio whose only microphone is a pipe that a paced thread fills: with silence, or with what is
    played."""

    BLOCK = 160  # samples: 10 ms

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        socket, pipe = folder / "native", folder / "vmic.fifo"
        self.log = (folder / "log").open("w")
        self.server = subprocess.Popen(
            [
                *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit"),
                *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"),
                *("-L", f"module-pipe-source source_name=vmic file={pipe} format=s16le rate={RATE_HZ} channels=1"),
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        deadline_s = time.monotonic() + 10
        while subprocess.run(["pactl", "set-default-source", "vmic"], capture_output=True).returncode:
            assert time.monotonic() < deadline_s, (folder / "log").read_text()
            time.sleep(0.1)
        self._pipe = os.open(pipe, os.O_WRONLY)
        self._queued = np.zeros(0, "<i2")
        self._lock = threading.Lock()
        self._stopping, self._unplugged = threading.Event(), threading.Event()
        self.played_ns: int | None = None  # when the clip's first sample was spoken
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def play(self, samples: np.ndarray) -> None:
        with self._lock:
            self._queued = (samples * 32767).astype("<i2")
            self.played_ns = None

    def unplug(self) -> None:
        """The microphone stalls, like a device that was pulled."""
        self._unplugged.set()

    def plug_in(self) -> None:
        self._unplugged.clear()

    def _feed(self) -> None:
        began_ns, block = time.monotonic_ns(), 0
        while not self._stopping.is_set():
            block += 1
            due_ns = began_ns + block * self.BLOCK * NS // RATE_HZ  # a block exists once its last sample was spoken
            time.sleep(max(0, due_ns - time.monotonic_ns()) / NS)
            if self._unplugged.is_set():
                continue  # what was spoken meanwhile is gone
            with self._lock:
                if len(self._queued) and self.played_ns is None:
                    self.played_ns = due_ns - self.BLOCK * NS // RATE_HZ
                spoken, self._queued = self._queued[: self.BLOCK], self._queued[self.BLOCK :]
            os.write(self._pipe, np.pad(spoken, (0, self.BLOCK - len(spoken))).tobytes())

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._pipe)
        self.server.terminate()
        self.server.wait(10)
        self.log.close()
