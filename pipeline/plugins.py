"""A name in a config → a class, and a table of options → the arguments of its constructor.

"emotion" is the Task in pipeline/tasks/emotion.py, "my_package.mood:Mood" is yours. There is no registration: a new
node, task or backend is one new file, and its constructor's keyword arguments with their types are the only schema.
Raises ConfigError with the nearest name.

Example:
    kind = find("emotion", Task, "pipeline.tasks", what="task")              # the class Emotion
    find("mood:Mood", Task, "pipeline.tasks", what="task")                   # from mood.py in the current folder
    construct(kind, {"smoothing_ms": 500}, "nodes.emotion.options")          # Emotion(smoothing_ms=500.0)
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import pkgutil
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from pipeline.errors import ConfigError, missing_package, nearest
from pipeline.installation import COMMAND

T = TypeVar("T")

# YAML keys that were renamed: old → new. The old key is refused wherever the new one is known, with the new one named.
RENAMED = {
    "keep": "queue",
    "pick": "sync",
    "own_m": "ego_box_m",
    "step_m": "max_step_m",
    "blind_m": "min_range_m",
    "every_px": "stride_px",
    "least_score": "min_score",
    "ground_z_m": "z_m",
    "grid_x_m": "x_m",
    "grid_y_m": "y_m",
}

# The largest number of a unit, the end of an option's name, that any node could work with.
MOST = {"_px": 65_536, "rate_hz": 1_000_000}

# What a program lists and describes by name: what it is → its package.
LISTED = {"node": "nodes", "task": "pipeline.tasks"}


def find(name: str, base: type[T], package: str, *, what: str) -> type[T]:
    """The class `name` stands for: a subclass of `base`, from a file of `package` or from the module that it names."""
    module_name, colon, class_name = name.partition(":")
    if colon:
        return _from_module(module_name, class_name, base, f"{what} '{name}'")
    if name.isidentifier() and importlib.util.find_spec(f"{package}.{name}") is not None:
        kind = _class_of(_import(f"{package}.{name}", f"{what} '{name}'"), base)
        if kind is not None:
            return kind
    for other, elsewhere in LISTED.items():
        if elsewhere != package and name.isidentifier() and importlib.util.find_spec(f"{elsewhere}.{name}") is not None:
            raise ConfigError(f"{name} is a {other}, not a {what}. See: {COMMAND} {other}s {name}")
    names = list(all_named(base, package))
    raise ConfigError(f"no {what} called '{name}'. Known: {', '.join(names)}, or module:Name.{nearest(name, names)}")


def all_named(base: type[T], package: str) -> dict[str, type[T]]:
    """Every file of `package` that defines such a class; those whose own packages are not installed are left out."""
    kinds = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        try:
            candidate = _class_of(importlib.import_module(f"{package}.{module.name}"), base)
        except ImportError:
            continue
        if candidate is not None:
            kinds[module.name] = candidate
    return kinds


def _class_of(module: ModuleType, base: type[T]) -> type[T] | None:
    """The class named like the file ("tensorrt_rtx" → TensorrtRtx), else the first one that the file itself defines."""
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    inside = (module.__name__, f"{module.__name__}.")  # a package may re-export a class of its own modules
    own = [v for v in own if v is not base and (v.__module__ == inside[0] or v.__module__.startswith(inside[1]))]
    own = [v for v in own if not v.__name__.startswith("_")]
    own = [v for v in own if not inspect.isabstract(v)]  # an abstract base that several files share is no plug-in
    file_name = module.__name__.rpartition(".")[2].replace("_", "")
    return next((value for value in own if value.__name__.lower() == file_name), own[0] if own else None)


def _from_module(module_name: str, class_name: str, base: type[T], where: str) -> type[T]:
    if "" not in sys.path and "." not in sys.path:
        sys.path.append("")  # a user's own file lies in the folder where the command runs
    module = _import_own(module_name, where)
    kind = getattr(module, class_name, None)
    if isinstance(kind, type) and issubclass(kind, base):
        return kind
    if kind is not None:
        raise ConfigError(f"{where}: {class_name} is not a subclass of {base.__module__}.{base.__name__}")
    names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
    raise ConfigError(f"{where}: module '{module_name}' has no '{class_name}'.{nearest(class_name, names)}")


def _import_own(module_name: str, where: str) -> ModuleType:
    """Import a user's module; an error in it is reported with file and line, like an error in a config."""
    try:
        return _import(module_name, where, _own_package)
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{where}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"{where}: {at.filename}, line {at.lineno}: {type(error).__name__}: {error}") from error


def _own_package(package: str, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: the Python package '{package}', which it imports, is not installed. "
        f"Install it with: {sys.executable} -m pip install {package}"
    )


def _import(module_name: str, where: str, missing: Callable[[str, str], ConfigError] = missing_package) -> ModuleType:
    if not all(part.isidentifier() for part in module_name.split(".")):  # an empty name, a relative one, a path
        raise ConfigError(f"{where}: '{module_name}' is not the name of a module")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"{where}: there is no Python module '{error.name}' here or on the Python path") from None
        raise missing(error.name or "?", where) from error


# --- options ----------------------------------------------------------------------------------------------------------


class CheckedOptions(dict[str, Any]):
    """Options that fit the constructor of `kind`, converted to its types: `check_options` returns them as they are."""

    kind: type | None = None


def _bound_exceeded(key: str, value: object) -> str:
    """What a number should be that no node could work with, by the unit in its option's name; "" where it may."""
    if not isinstance(value, int | float):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    limit = next((most for unit, most in MOST.items() if key.endswith(unit)), None)
    return f"at most {limit:,}" if limit is not None and value > limit else ""


def check_options(
    kind: type, options: Mapping[str, Any], where: str, *, reserved: Iterable[str] = ()
) -> CheckedOptions:
    """`options` converted to the types of the constructor of `kind`.

    A class may have a class method `nested_options(options)` that yields (option, class or None) for each option that
    holds the options of another class: those are checked here too, as far as that class is known.

    Args:
        kind: The class whose constructor takes the options.
        options: From the YAML.
        where: The place in the config, which begins every error: "configs/mine.yaml: nodes.camera".
        reserved: Keys of the config itself beside the options: named where a misspelt key is close to one.

    Raises:
        ConfigError: A key is unknown or renamed, a value has another type, or an option without default is missing.
    """
    if isinstance(options, CheckedOptions) and options.kind is kind:
        return options
    parameters = inspect.signature(kind).parameters
    hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    nested = dict(_nested_options(kind, options, where))
    converted = {}
    for key, value in options.items():
        if key not in parameters:
            raise _unknown_option(kind, key, parameters, nested, where, reserved)
        try:
            converted[key] = msgspec.convert(value, hints.get(key, Any), strict=True)
        except (msgspec.ValidationError, TypeError):
            expected = inspect.formatannotation(hints.get(key, Any)).replace("typing.", "")
            raise ConfigError(f"{where}.{key}: found {value!r}, expected {expected}") from None
        if bound := _bound_exceeded(key, value):
            raise ConfigError(f"{where}.{key}: found {value!r}, expected {bound}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise ConfigError(f"{where}: '{name}' is missing. {kind.__name__} needs it")
    for key, inner in nested.items():
        if inner is not None and isinstance(converted.get(key), dict):
            converted[key] = check_options(inner, converted[key], f"{where}.{key}")
    checked = CheckedOptions(converted)
    checked.kind = kind
    return checked


def construct(kind: type[T], options: Mapping[str, Any], where: str, *, reserved: Iterable[str] = ()) -> T:
    """`kind(**options)`, checked. Raises ConfigError that begins with `where`, also where the constructor fails."""
    checked = check_options(kind, options, where, reserved=reserved)
    try:
        return kind(**checked)
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def renamed_key(key: str, known: Iterable[str], where: str) -> ConfigError | None:
    """The error for a key that has a new name here; None for any other."""
    new = RENAMED.get(key)
    return ConfigError(f"{where}: '{key}' is now called '{new}'") if new is not None and new in known else None


def _nested_options(kind: type, options: Mapping[str, Any], where: str) -> Iterable[tuple[str, type | None]]:
    declared = getattr(kind, "nested_options", None)
    try:
        return list(declared(options)) if declared is not None else ()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _unknown_option(
    kind: type,
    key: str,
    parameters: Mapping[str, inspect.Parameter],
    nested: Mapping[str, type | None],
    where: str,
    reserved: Iterable[str],
) -> ConfigError:
    if renamed := renamed_key(key, parameters, where):
        return renamed
    meant = nearest(key, [*parameters, *reserved])
    for option, inner in nested.items():
        new = RENAMED.get(key)
        if new is not None and inner is not None and new in inspect.signature(inner).parameters:
            return ConfigError(f"{where}: '{key}' is now called '{new}', one level below: {option}: {{{new}: …}}")
        if inner is not None and key in inspect.signature(inner).parameters:
            meant = f" {inner.__name__} takes it, one level below: {option}: {{{key}: …}}"
        elif inner is None and not meant:
            meant = f" If what this node runs takes it, it belongs one level below: {option}: {{{key}: …}}"
    return ConfigError(f"{where}: unknown key '{key}'. {kind.__name__} takes: {', '.join(parameters)}.{meant}")
