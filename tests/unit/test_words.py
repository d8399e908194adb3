"""Words that only this project understood do not come back: each banned word has its reason and its replacement.

Identifiers are compared part by part (`heard_ns` has the parts "heard" and "ns"); text is everything else that people
read: comments, docstrings, messages, pages and documents.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Part of an identifier → why not, and what to write. They said how a value came about, not what it is.
BANNED_IN_NAMES = {
    "told": "say what the value is: message, reported, labels",
    "heard": "say what the value is: audio, arrival, received",
    "said": "say what the value is: message, output, text",
    "found": "say what the value is: match, detections, path",
    "given": "say what the value is: inputs, options, value",
    "wanted": "say what the value is: requested, required",
    "kept": "say what the value is: retained, recent, selected",
    "made": "say what the value is: rendered, built, frame",
    "seen": "say what the value is: detections, visible, known",
    "bells": "a Poller",
    "rung": "notified",
    "inbox": "an input queue",
    "express": "the datagram fast path",
    "drain": "the receiver",
    "retold": "an ArrivalReplay",
    "tape": "a ReplaySession",
    "twin": "what it converts: onnx_to_torch",
    "ears": "a SoundEventDetector",
    "resting": "the neutral baseline",
}
# Whole names, as they are.
BANNED_NAMES = {
    "Around": "SceneModel",
    "Ahead": "PathClearance",
    "Surroundings": "SceneState",
    "Stage": "NodeHarness",
    "Pace": "DecisionSchedule",
    "Sent": "SetEvent",
    "Rules": "AlignerConfig",
    "pick": "sync",
}
# Other people's names, the field's, and keys of file formats that must stay readable.
ALLOWED_NAMES = re.compile(r"NotFound|given_up|not_found|(last|first)_seen|^made_(by|from)$|^connection_made$")
# In what people read. The word, and what to write.
BANNED_IN_TEXT = {
    r"told|heard": "reported, received, detected: a program does not tell or hear",
    r"obeys?|greets?": "follows, sends its state: a program is not a person",
    r"strangers?": "unknown sender, other people's file",
    r"afresh|anew": "again, from scratch",
    r"rung|bells?": "notified; a poller",
    r"inbox(es)?": "input queue",
    r"retold": "replayed",
    r"twins?": "a converted model",
    r"express (way|path|lane)|short way": "the datagram fast path",
    r"books": "message accounting",
    r"in vain": "timed out waiting",
}
EXEMPT = (
    "tests/unit/test_words.py",  # this list
    "pipeline/old_names.py",  # the words in files of older versions
    "tests/unit/test_old_names.py",
    "CHANGELOG.md",  # what was
    "LICENSE",  # not ours
)


def files(*endings: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [f for f in listed if f.endswith(endings) and (ROOT / f).exists() and not f.startswith(EXEMPT)]


def names(path: str) -> Iterator[tuple[int, str]]:
    source = (ROOT / path).read_text(encoding="utf-8")
    imported = {"given"} if "from hypothesis import" in source else set()  # hypothesis' decorator
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string not in imported and not ALLOWED_NAMES.search(token.string):
            yield token.start[0], token.string


def parts(name: str) -> set[str]:
    """ "_HeardNs" and "heard_ns" have the parts heard, ns."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_no_identifier_holds_a_banned_word() -> None:
    hits = [
        f"{path}:{line} {name}: {BANNED_IN_NAMES[bad]}"
        for path in files(".py")
        for line, name in names(path)
        for bad in sorted(parts(name) & BANNED_IN_NAMES.keys())
    ]
    hits += [
        f"{path}:{line} {name}: {BANNED_NAMES[name]}"
        for path in files(".py")
        for line, name in names(path)
        if name in BANNED_NAMES
    ]
    assert hits == []


@pytest.mark.parametrize("word", BANNED_IN_TEXT)
def test_no_text_holds_a_banned_word(word: str) -> None:
    pattern = re.compile(rf"\b({word})\b", re.IGNORECASE)
    hits = [
        f"{path}:{number} {line.strip()[:100]}: {BANNED_IN_TEXT[word]}"
        for path in files(
            ".py", ".md", ".html", ".yaml", ".toml", "/setup", "/demo", "/live", "/test", "/check", "/bench", "/run"
        )
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert hits == []
