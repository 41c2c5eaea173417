"""Import what package.module:callable stands for, and choose where Python looks for the user's modules."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flare_dist.errors import reason_in_code


def look_in(first: Iterable[str], last: Iterable[str] = ()) -> None:
    """Let Python look for modules in the directories `first` and in the current one before all others, `last` after."""
    before = [str(Path(directory).expanduser().absolute()) for directory in first]
    sys.path[:0] = [directory for directory in dict.fromkeys([*before, os.getcwd()]) if directory not in sys.path]
    after = [str(Path(directory).absolute()) for directory in last]
    sys.path += [directory for directory in dict.fromkeys(after) if directory not in sys.path]


def directory_of(choice: str) -> str | None:
    """Return the directory in which Python found the module of package.module:callable; None if it was not imported."""
    module = sys.modules.get(choice.partition(":")[0].partition(".")[0])
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return str(Path(places[0]).absolute().parent) if places[0] else None


def imported(key: str, name: str) -> Any:
    """Import what `name` stands for, an attribute of a module; ValueError that begins with `key` says why it cannot."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a console script would not find the user's module beside it
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody's module, or script, may raise
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        problem = _no_module(missing) if missing and f"{module}.".startswith(f"{missing}.") else reason_in_code(error)
        raise ValueError(f"{key}: cannot import {name!r}: {problem}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), found)
    except AttributeError as error:
        hint = _hint(attribute, vars(found), f"{module}:")
        raise ValueError(f"{key}: cannot import {name!r}: {module} has no {attribute!r}{hint}") from error


def _no_module(name: str) -> str:
    """Say that Python does not find the module `name`, and what to do."""
    package, _, inner = name.rpartition(".")
    if package:
        others = [found.name for found in pkgutil.iter_modules(getattr(sys.modules.get(package), "__path__", ()))]
        return f"{package} has no module {inner!r}{_hint(inner, others, f'{package}.')}"
    where = f"there is no module {name!r} in {os.getcwd()}; start the command where it lies, or install it"
    return f"{where} (code_dirs names other directories)"


def _hint(name: str, known: Iterable[str], prefix: str) -> str:
    similar = get_close_matches(name, known, 1)
    return f"; did you mean {prefix}{similar[0]}?" if similar else ""
