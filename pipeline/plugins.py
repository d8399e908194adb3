"""A name in a config → a class: "emotion" is the Task in pipeline/tasks/emotion.py, "my_package.mood:Mood" is yours.

There is no registration: a new node, task or backend is one new file. Raises ConfigError with the nearest name.

    find("emotion", Task, "pipeline.tasks", what="task")             # the class Emotion
    find("mood:Mood", Task, "pipeline.tasks", what="task")           # from mood.py where the command was given
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from pipeline.errors import ConfigError, missing_package, nearest

T = TypeVar("T")


def find(name: str, base: type[T], package: str, *, what: str) -> type[T]:
    """The class `name` stands for: a subclass of `base`, from a file of `package` or from the module that it names."""
    module_name, colon, class_name = name.partition(":")
    if colon:
        return _from_module(module_name, class_name, base, f"{what} '{name}'")
    if name.isidentifier() and importlib.util.find_spec(f"{package}.{name}") is not None:
        found = _class_of(_import(f"{package}.{name}", f"{what} '{name}'"), base)
        if found is not None:
            return found
    names = list(all_named(base, package))
    raise ConfigError(f"no {what} called '{name}'. Known: {', '.join(names)}, or module:Name.{nearest(name, names)}")


def all_named(base: type[T], package: str) -> dict[str, type[T]]:
    """Every file of `package` that defines such a class; those whose own packages are not installed are left out."""
    found = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        try:
            candidate = _class_of(importlib.import_module(f"{package}.{module.name}"), base)
        except ImportError:
            continue
        if candidate is not None:
            found[module.name] = candidate
    return found


def _class_of(module: ModuleType, base: type[T]) -> type[T] | None:
    """The class called like the file ("tensorrt_rtx" → TensorrtRtx), else the first one that the file itself defines."""
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    inside = (module.__name__, f"{module.__name__}.")  # a package hands on a class of its own modules
    own = [v for v in own if v is not base and (v.__module__ == inside[0] or v.__module__.startswith(inside[1]))]
    own = [v for v in own if not v.__name__.startswith("_")]
    own = [v for v in own if not inspect.isabstract(v)]  # a base that several files share is none of them
    file_name = module.__name__.rpartition(".")[2].replace("_", "")
    return next((value for value in own if value.__name__.lower() == file_name), own[0] if own else None)


def _from_module(module_name: str, class_name: str, base: type[T], where: str) -> type[T]:
    if "" not in sys.path and "." not in sys.path:
        sys.path.append("")  # a user's own file lies where the command was given
    module = _import_own(module_name, where)
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, base):
        return found
    if found is not None:
        raise ConfigError(f"{where}: {class_name} is not a subclass of {base.__module__}.{base.__name__}")
    names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
    raise ConfigError(f"{where}: module '{module_name}' has no '{class_name}'.{nearest(class_name, names)}")


def _import_own(module_name: str, where: str) -> ModuleType:
    """Somebody's own file: what is wrong with it is said with its line, as what is wrong with a config."""
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
