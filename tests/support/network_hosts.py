"""Two hosts on one machine: network namespaces with their own monotonic clocks, joined by a cable that can fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.transport.keys import write_new
from pipeline.transport.network import new_keys

ROOT = Path(__file__).resolve().parents[2]
SHIFT_S = 5000  # by how much the clock of `front` is ahead


def sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def why_not() -> str:
    """What this machine lacks for two hosts in namespaces; "" when nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two hosts need network namespaces: root on Linux"
    for tool, package in (("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            return f"two hosts need '{tool}': apt-get install {package}"
    probe = [
        "unshare",
        "--net",
        "--time",
        "--monotonic",
        str(SHIFT_S),
        sys.executable,
        "-c",
        "import time; print(time.monotonic())",
    ]
    shifted = subprocess.run(probe, capture_output=True, text=True)
    if shifted.returncode or float(shifted.stdout) < time.monotonic() + SHIFT_S / 2:
        return f"this kernel gives no network or time namespaces here: {shifted.stderr.strip()}"
    return ""


@dataclass
class Host:
    """One namespace: what runs in it, and its end of the cable."""

    name: str
    space: str
    address: str
    keys: Path
    shift_s: int
    folder: Path

    def command(self, *command: str) -> list[str]:
        clock = ["unshare", "--time", "--monotonic", str(self.shift_s)] if self.shift_s else []
        # Its wall clock is a year off and runs fast: nothing may depend on it.
        wall = ["faketime", "-f", "+400d x1.1"] if self.shift_s and shutil.which("faketime") else []
        return ["ip", "netns", "exec", self.space, *clock, *wall, *command]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return self.python(str(ROOT / "run_pipeline.py"), *arguments)

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        runtime = self.folder / "run"
        runtime.mkdir(mode=0o700, exist_ok=True)
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{self.folder.parent}",
            "SENSORIUM_KEYS": str(self.keys),
            "XDG_RUNTIME_DIR": str(runtime),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        command = self.command(sys.executable, *arguments)
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def power_off(self) -> None:
        """Everything in this namespace is gone at once, and says nothing."""
        inside = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True).stdout
        for pid in inside.split():
            os.kill(int(pid), signal.SIGKILL)


@dataclass
class Cable:
    """The line between the hosts, and what can happen to it."""

    front: Host
    brain: Host

    def lose(self, percent: int) -> None:
        """That share of the packets, in both directions."""
        for host in (self.front, self.brain):
            for rule in (
                "add table inet faults",
                "add chain inet faults in { type filter hook input priority 0; }",
                f"add rule inet faults in iifname eth0 numgen random mod 100 < {percent} drop",
            ):
                sh("ip", "netns", "exec", host.space, "nft", rule)

    def heal(self) -> None:
        for host in (self.front, self.brain):
            sh("ip", "netns", "exec", host.space, "nft", "delete table inet faults")

    def pull(self) -> None:
        sh("ip", "-n", self.front.space, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        sh("ip", "-n", self.front.space, "link", "set", "eth0", "up")


@contextmanager
def connected_hosts(folder: Path) -> Iterator[Cable]:
    """Two namespaces, `front` and `brain`, joined by a cable; each has its keys and the other's public one."""
    hosts = []
    try:
        for name, end, shift_s in (("front", 1, SHIFT_S), ("brain", 2, 0)):
            host = Host(
                name,
                f"sensorium-{os.getpid()}-{name}",
                f"10.77.0.{end}",
                folder / name / "keys",
                shift_s,
                folder / name,
            )
            hosts.append(host)
            sh("ip", "netns", "add", host.space)
            write_new(name, *new_keys(), host.keys)
        front, brain = hosts
        sh("ip", "-n", front.space, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", brain.space)
        for host, other in ((front, brain), (brain, front)):
            sh("ip", "-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
            sh("ip", "-n", host.space, "link", "set", "eth0", "up")
            sh("ip", "-n", host.space, "link", "set", "lo", "up")
            shutil.copy(other.keys / f"{other.name}.public", host.keys / "allowed")
        yield Cable(front, brain)
    finally:
        for host in hosts:
            host.power_off()  # what a test that failed left running
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True)
