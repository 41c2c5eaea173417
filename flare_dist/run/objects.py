"""Objects that Python code gives instead of names, in the form that the keys' own callables have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from flare_dist.data.source import Source
from flare_dist.given import FROM_PYTHON
from flare_dist.tasks.task import Task

KINDS: dict[str, type] = {"task": Task, "data": Source, "model": nn.Module}
GIVE = {
    "task": "give flare_dist.Task(loss)",
    "data": "give flare_dist.Source(train, test), of Datasets",
    "model": "give a module",
}


def objects_by_key(task: Any, data: Any, model: Any) -> dict[str, Any]:
    """Map the keys of what came from Python to it, in the form that the key's own callables have."""
    objects: dict[str, Any] = {} if task is None else {"task.name": task}
    for key, value in {"task": task, "data": data, "model": model}.items():
        if isinstance(value, str):
            raise ValueError(f"{key}.name: {key}= takes no name, got {value!r}; write {key}.name= as a key")
        if value is not None and not callable(value) and not isinstance(value, KINDS[key]):
            kind = KINDS[key].__name__
            got = type(value).__name__
            raise ValueError(
                f"{key}.name: {key}= takes a {kind} or a function that returns one, got {got}; {GIVE[key]}"
            )
    if data is not None:
        objects["data.name"] = _Always(data) if isinstance(data, Source) else data
    if model is not None:
        objects["model.name"] = _Copied(model) if isinstance(model, nn.Module) else model
    return objects


def home(value: Any) -> tuple[str, str]:
    """Return the module of an object's code, and its name there: of a Task those of its loss, of a module its class."""
    inner: Any = value.module if isinstance(value, _Copied) else value.loss if isinstance(value, Task) else value
    code: Any = inner if hasattr(inner, "__qualname__") else type(inner)
    return code.__module__, code.__qualname__


class _Always:
    """Return the same data, whatever the configuration says."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.__qualname__ = "Source"

    def __call__(self, config: Any, seed: int) -> Source:
        return self.source


class _Copied:
    """Return a copy of a module, so that the caller's own does not train."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.__qualname__ = type(module).__name__

    def __call__(self, input_shape: Any, num_classes: Any) -> nn.Module:
        return copy.deepcopy(self.module)


def names_of(objects: Mapping[str, Any]) -> dict[str, str]:
    """Name each object as config.yaml does."""
    return {key: FROM_PYTHON + getattr(value, "__qualname__", type(value).__name__) for key, value in objects.items()}
