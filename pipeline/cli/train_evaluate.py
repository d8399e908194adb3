"""`train WHAT` and `evaluate WHAT`: each calls one function, mostly of pipeline/training/, with its options.

Example:
    call("training.face.train", "train", args, verb="train")
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pipeline.errors import ConfigError, missing_package

# The options of the command line that such a function may take, as far as its signature names them.
OPTIONS = (
    "data",
    "out",
    "epochs",
    "seed",
    "resume",
    "start",
    "lr",
    "workers",
    "ship",
    "family",
    "format",
    "model",
    "truth",
)


def call(module: str, function: str, args: argparse.Namespace, *, verb: str) -> Any:
    """`function` of pipeline.`module`. Raises ConfigError for a missing package and for options that do not
    fit.
    """
    try:
        called = getattr(importlib.import_module(f"pipeline.{module}"), function)
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "torch", verb, "train") from error
    options = {name: value for name in OPTIONS if (value := getattr(args, name, None))}
    _check(called, options)
    return called(**options)


def _check(function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raises ConfigError for an option that the function does not take, and for one that it needs and does not get."""
    parameters = inspect.signature(function).parameters
    known = ", ".join(f"--{name}" for name in parameters if name in OPTIONS)
    for name in options:
        if name not in parameters:
            raise ConfigError(f"--{name}: nothing here takes it. Options here: {known}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise ConfigError(f"--{name} is needed here. Options here: {known}")
