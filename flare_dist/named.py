"""Every choice is a built-in name or `package.module:callable`: find it, and bind the options that are written for it.

A callable is the user's. Its options are keyword arguments, checked against its signature before anything is built. In
a section they stand under `options` if the key is `name`, and under `KEY_options` for any other KEY.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from flare_dist.errors import reason_in_code, unknown_choice
from flare_dist.given import FROM_PYTHON, given_again
from flare_dist.imported import imported

if TYPE_CHECKING:
    Setting = Any
else:

    class Setting:
        """Stand for the value of an option, whatever it is, where a parser looks at types."""


Options = dict[str, Setting]
FORM = "package.module:callable"


class WrongResultError(ValueError):
    """A user's callable, or an object it made, returned the wrong thing during a run."""


def find(key: str, choice: Any, built_in: Mapping[str, Any], forms: Sequence[str] = ()) -> Any:
    """Find what `choice` names: an entry of `built_in`, or an attribute of a module as package.module:attribute.

    Anything but text, as a function that Python code hands over, is returned as it is. ValueError begins with the
    dotted `key`, and lists what there is; `forms` are other names that the caller knows, for that list.
    """
    if not isinstance(choice, str):
        return choice
    if choice in built_in:
        return built_in[choice]
    if choice.startswith(FROM_PYTHON):
        return given_again(key, choice)
    if ":" not in choice:
        raise unknown_choice(key, choice, [*built_in, *forms, FORM])
    return imported(key, choice)


def is_own(choice: Any, built_in: Iterable[str]) -> bool:
    """Tell whether a choice is the user's own: a callable, or package.module:callable that names nothing built in."""
    if not isinstance(choice, str) or choice.startswith(FROM_PYTHON):
        return True
    _, colon, attribute = choice.partition(":")
    return bool(colon) and attribute.replace(".", "_").isidentifier() and choice not in built_in


def name_of(choice: Any) -> str:
    """Name a choice as a configuration would."""
    if isinstance(choice, str):
        return choice
    return f"{choice.__module__}:{choice.__qualname__}" if hasattr(choice, "__qualname__") else type(choice).__name__


def options_key(key: str) -> str:
    """Name the key under which the options of `key` stand."""
    section, _, name = key.rpartition(".")
    return f"{section}.options" if name == "name" else f"{key}_options"


def bind(
    key: str,
    choice: Any,
    found: Any,
    options: Mapping[str, Any],
    given: Sequence[str] = (),
    reserved: Sequence[str] = (),
) -> Callable[..., Any]:
    """Bind `options` to what was `found` for `choice`, which will be called with the arguments `given`, by position.

    ValueError names the dotted key of an option that it does not take or lacks; `reserved` are options that have keys
    of their own.
    """
    name = name_of(choice)
    form = f"{name}({', '.join([*given, '**options'])})"
    if not callable(found):
        raise ValueError(f"{key}: must name a callable, got {name!r}, which is not callable; it is called as {form}")
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):  # functions written in C may have no signature
        return functools.partial(found, **copy.deepcopy(dict(options)))
    used = _given_by_position(key, name, form, parameters, len(given)) + list(reserved)
    free = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in used}
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option, value in options.items():
        if option in used or (option not in free and not is_open):
            raise _unknown_option(key, name, option, value, free, used)
    missing = [option for option, p in free.items() if p.default is p.empty and option not in options]
    if missing:
        needed = f"{options_key(key)}.{missing[0]}"
        raise ValueError(f"{needed}: {name} needs it, got nothing; write a value ({name} is called as {form})")
    return functools.partial(found, **copy.deepcopy(dict(options)))


def _given_by_position(
    key: str, name: str, form: str, parameters: Sequence[inspect.Parameter], given: int
) -> list[str]:
    """Name the parameters that get the first `given` arguments; ValueError if there are not so many."""
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_position) < given and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        taken = ", ".join(map(str, parameters)) or "nothing"
        raise ValueError(f"{key}: {name} is called as {form}, got one that takes ({taken}); give it these arguments")
    return [p.name for p in by_position[:given]]


def made(
    key: str, choice: Any, built_in: Mapping[str, Any], options: Mapping[str, Any], kind: type, example: str
) -> Any:
    """Return the record of a choice: one that is there, or what the user's callable (**options) makes.

    ValueError says what else it made, with the `example` of a right one.
    """
    found = find(key, choice, built_in)
    if not isinstance(found, kind):
        return expect(key, choice, call(key, choice, bind(key, choice, found, options)), kind, example)
    for option, value in options.items():
        raise _unknown_option(key, name_of(choice), option, value, {}, ())
    return found


def call(key: str, choice: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call somebody's code; ValueError that begins with `key` tells what it raised, and where."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{key}: {name_of(choice)} fails: {reason_in_code(error)}") from error


def expect(key: str, choice: Any, result: Any, kind: type, example: str) -> Any:
    """Return `result` if it is of this kind; ValueError with an example of the right one otherwise."""
    if isinstance(result, kind):
        return result
    package, *inner = kind.__module__.split(".")
    public = ".".join([package, *(inner[:1] if package == "torch" else []), kind.__name__])
    raise ValueError(
        f"{key}: {name_of(choice)} must return a {public}, got {type(result).__name__}; for example {example}"
    )


def _unknown_option(
    key: str, name: str, option: str, value: Any, free: Iterable[str], used: Sequence[str]
) -> ValueError:
    known = list(free)
    similar = get_close_matches(option, known, 1)
    remedy = "leave it out" if option in used else f"did you mean {similar[0]}?" if similar else "leave it out"
    takes = f"{name} takes {', '.join(known) or 'no options'}"
    problem = f"{name} is given it already" if option in used else f"{name} takes no such option"
    return ValueError(f"{options_key(key)}.{option}: {problem}, got {value!r}; {remedy} ({takes})")
