"""Every error a user can meet, and the exit code it ends the program with.

    SensoriumError                 1  our bug, if it ever reaches a user as itself
    ├── ConfigError                2  the user's config, arguments, files or environment
    │   └── AssetError             2  a model or clip that is missing, altered or out of reach
    ├── DiffersError               4  two things that were compared are not alike
    ├── DeviceError                3  a camera, microphone or lidar; `retry` says whether waiting can help
    ├── EngineError                1  a model's engine that was refused by its runtime, or failed while it ran
    └── WireError                  1  a message that is not ours: counted and dropped by readers, never fatal

A message says where, what was found, and what to do. Late or dropped frames are not errors: they are counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pipeline.installation import setup_command


class SensoriumError(Exception):
    exit_code = 1


class ConfigError(SensoriumError):
    exit_code = 2


class AssetError(ConfigError):
    pass


class DiffersError(SensoriumError):
    """Two things that were compared are not alike: nobody's fault, but a script must see it."""

    exit_code = 4


class DeviceError(SensoriumError):
    """retry: the device may come back by itself (unplugged, busy, network gone); the node loop then retries."""

    exit_code = 3

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class EngineError(SensoriumError):
    pass


class WireError(SensoriumError):
    pass


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that was meant by a misspelt name; None when nothing is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'microphone'?" for a misspelt name, or "" when nothing is close."""
    close = closest(name, known)
    return f" Did you mean '{close}'?" if close else ""


def missing_package(package: str, needed_for: str, extra: str | None = None) -> ConfigError:
    """The error for an optional package that is not installed; names the command that installs it."""
    fix = setup_command(extra or "")
    return ConfigError(f"{needed_for}: the Python package '{package}' is not installed. Install it with: {fix}")
