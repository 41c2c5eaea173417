"""Objects that Python code gives to a run in place of names: a module, a Source, a Task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

FROM_PYTHON = "python:"  # begins the name of an object that no module has

_given: ContextVar[Mapping[str, Any]] = ContextVar("given", default=MappingProxyType({}))


@contextmanager
def given(objects: Mapping[str, Any]) -> Iterator[None]:
    """Let `find` return these objects, by dotted key, for choices that begin with python: within the block."""
    token = _given.set(objects)
    try:
        yield
    finally:
        _given.reset(token)


def given_again(key: str, choice: str) -> Any:
    """Return the object that Python code has given; ValueError that names `key` if there is none now."""
    objects = _given.get()
    if key in objects:
        return objects[key]
    argument = key.partition(".")[0]
    raise ValueError(
        f"{key}: the run was given {choice.removeprefix(FROM_PYTHON)} from Python; give it again: "
        f"flare_dist.train(run, {argument}=...) goes on, flare_dist.evaluate(run, {argument}=...) measures, "
        f"flare_dist.export(run, PATH, {argument}=...) writes it for others"
    )
