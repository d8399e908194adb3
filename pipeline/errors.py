"""Every error that a user can meet, and the exit code with which it ends the program.

    SensoriumError                 1  our bug, if it ever reaches a user as itself
    ├── ConfigError                2  the user's config, arguments, files or environment
    │   └── AssetError             2  a model or clip that is missing, altered or out of reach
    ├── DiffersError               4  two things that were compared differ
    ├── IncompleteError            5  the run ended, but a node was given up, or nothing was predicted
    ├── DeviceError                3  a camera, microphone or lidar; `retry` says whether waiting can help
    ├── EngineError                1  a model's engine that its runtime refused, or that failed while it ran
    └── WireError                  1  a malformed message: counted and dropped by readers, never fatal

A message says where, what the value is, and what to do. Late or dropped frames are not errors: they are counted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from pipeline.installation import setup_command

MAX_MESSAGE = 4000  # characters: a message may quote what a file holds
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class SensoriumError(Exception):
    """The base of all of them. A message that quotes a file can be printed: see `printable`."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class ConfigError(SensoriumError):
    """The user's config, arguments, files or environment; the message says how to fix it."""

    exit_code = 2


class AssetError(ConfigError):
    """A model or clip that is missing, altered or out of reach."""


class DiffersError(SensoriumError):
    """Two things that were compared differ: no mistake, but a script must be able to detect it."""

    exit_code = 4


class IncompleteError(SensoriumError):
    """A run ended in order, but without something that it was for; its summary says what."""

    exit_code = 5


class DeviceError(SensoriumError):
    """A camera, microphone or lidar that cannot be used.

    Args:
        message: Which device, why, and what to do.
        retry: The device may come back by itself (unplugged, busy, network down): opening it is then retried.
    """

    exit_code = 3

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class EngineError(SensoriumError):
    """A model's engine that its runtime refused, or that failed while it ran."""


class WireError(SensoriumError):
    """A malformed message: readers count it and drop it."""


def printable(text: str, most: int = MAX_MESSAGE) -> str:
    """Text of others, fit for a terminal and a log: no control characters, which a terminal would follow, no halves of
    UTF-16 pairs, which cannot be written, and the middle left out where it is longer than `most` characters."""
    if len(text) > 2 * most:  # before it is written out: it may be megabytes
        text = f"{text[:most]} … {text[-most:]}"
    plain = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text).encode("utf-8", "backslashreplace").decode()
    if len(plain) <= most:
        return plain
    return f"{plain[: most // 2 - 2]} … {plain[2 - most // 2 :]}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that a misspelt name most likely means; None when none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'microphone'?" for a misspelt name; "" when none is close."""
    close = closest(name, known)
    return f" Did you mean '{close}'?" if close else ""


def missing_package(package: str, needed_for: str, extra: str | None = None) -> ConfigError:
    """The error for an optional package that is not installed; names the command that installs it."""
    fix = setup_command(extra or "")
    return ConfigError(f"{needed_for}: the Python package '{package}' is not installed. Install it with: {fix}")
