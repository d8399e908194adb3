"""Every verb that reads a file, on files of every kind: one clear line and exit code 2, in bounded time and memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import importing
import numpy as np
import pytest
from forked_commands import forked

from pipeline.frame import Frame, StreamInfo
from pipeline.recording.writer import Writer

pytestmark = pytest.mark.system

# A verb's name → the end of the names of its files, and its arguments for such a file.
VERBS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "verify": (".mcap", lambda file: ["verify", file]),
    "verify a log": (".jsonl", lambda file: ["verify", file]),
    "diff": (".jsonl", lambda file: ["diff", file, file]),
    "export": (".mcap", lambda file: ["export", file, "exported"]),
    "repair": (".mcap", lambda file: ["record", "--repair", file]),
    "replay": (".mcap", lambda file: ["replay", "graph.yaml", file]),
    "check": (".yaml", lambda file: ["check", file]),
    "import a recording": (".mcap", lambda file: ["import", file, "imported.mcap"]),
    "import a bag": (".bag", lambda file: ["import", file, "imported.mcap"]),
    "import a database": (".db3", lambda file: ["import", file, "imported.mcap"]),
    "import a capture": (".pcap", lambda file: ["import", file, "imported.mcap"]),
    "import a film": (".mp4", lambda file: ["import", file, "imported.mcap"]),
    "label": (".csv", lambda file: ["label", "whole.mcap", file, "labelled.mcap"]),
    "convert": (".yaml", lambda file: ["calibrate", "convert", file, "converted.yaml", "--to", "rig"]),
    "calibrate pictures": (".png", lambda file: ["calibrate", "camera", file, "--board", "9x6"]),
    "calibrate a film": (".mp4", lambda file: ["calibrate", "camera", file, "--board", "9x6"]),
    "calibrate a recording": (".mcap", lambda file: ["calibrate", "camera", file, "--board", "9x6"]),
    "a model": (".onnx", lambda file: ["export", file, "model.fp16.onnx", "--precision", "fp16"]),
}
GRAPH = """nodes:
  camera: {use: synthetic, encoding: series_f32, rate_hz: 50}
  console: {use: console, inputs: [camera]}
"""
MAX_CPU_S, MAX_PEAK_BYTES = 12.0, 1 << 30


def whole_recording(path: Path) -> bytes:
    with Writer(path, about={"run": "1"}) as writer:
        writer.stream(StreamInfo("camera", "bgr8", 10.0))
        for i in range(8):
            writer.write("camera", Frame("camera", i, 10**9 + i * 10**8, "bgr8", importing.shade(i)))
    return path.read_bytes()


def kinds_of_files(folder: Path, suffix: str, magic: bytes) -> list[str]:
    """Names of files in `folder`, all of them nothing that the verb can use."""
    contents = {
        "empty": b"",
        "letter": b"hello, I am a letter\n" * 40,
        "noise": np.random.default_rng(1).bytes(3000),
        "nested": b"[" * 100_000,
    }
    if suffix not in (".png", ".mp4"):  # a film of one picture
        contents["picture"] = cv2.imencode(".png", importing.shade(3))[1].tobytes()
    for name, content in contents.items():
        (folder / f"{name}{suffix}").write_bytes(content)
    for name, head, end in (("hole", b"", b""), ("hole-with-a-head", magic, magic[:8])):
        with (folder / f"{name}{suffix}").open("wb") as file:
            file.write(head)
            file.truncate((4 << 30) - len(end))
            file.seek(0, os.SEEK_END)
            file.write(end)
    (folder / f"folder{suffix}").mkdir()
    os.mkfifo(folder / f"pipe{suffix}")
    (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
    names = [*contents, "hole", "hole-with-a-head", "folder", "pipe", "loop", "absent"]
    if os.geteuid() != 0:
        (folder / f"denied{suffix}").write_bytes(b"x")
        (folder / f"denied{suffix}").chmod(0)
        names.append("denied")
    return [f"{name}{suffix}" for name in names]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.timeout(400)
def test_a_file_of_another_kind_is_refused_in_one_line(folder: Path, verb: str) -> None:
    suffix, arguments = VERBS[verb]
    (folder / "graph.yaml").write_text(GRAPH)
    magic = whole_recording(folder / "whole.mcap")[: 1 << 12] if suffix == ".mcap" else b""
    if not magic:
        whole_recording(folder / "whole.mcap")
    names = kinds_of_files(folder, suffix, magic)
    present = {path.name for path in folder.iterdir()}
    for command, ran in forked([arguments(name) for name in names], folder):
        why = f"{command}: {ran}"
        # A verb may read an empty log of predictions, or say in its own verdict that no picture could be used.
        assert ran.code in (0, 1, 2) and "Traceback" not in ran.printed, why
        assert ran.code == 2 or verb in ("diff", "calibrate pictures"), why
        assert sum(line.startswith("error: ") for line in ran.printed.splitlines()) == (ran.code == 2), why
        assert ran.cpu_s < MAX_CPU_S and ran.peak_bytes < MAX_PEAK_BYTES, why
    assert {path.name for path in folder.iterdir()} <= present, "a command that refused a file left another one"


@pytest.mark.timeout(400)
def test_a_recording_cut_anywhere_is_read_as_far_as_it_goes_or_refused(folder: Path) -> None:
    whole = whole_recording(folder / "whole.mcap")
    names = []
    for length in range(0, len(whole), 1000):
        names.append(f"cut-{length}.mcap")
        (folder / names[-1]).write_bytes(whole[:length])
    commands = [c for name in names for c in (["verify", name], ["export", name, f"out-{name}"])]
    commands += [["record", "--repair", name] for name in names]
    for command, ran in forked(commands, folder):
        assert ran.code in (0, 1, 2) and "Traceback" not in ran.printed, f"{command}: {ran}"
        assert ran.cpu_s < MAX_CPU_S and ran.peak_bytes < MAX_PEAK_BYTES, f"{command}: {ran}"
