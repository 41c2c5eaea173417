"""Find the watch that pickled models of versions before flare_dist.hook name here."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "HookWatch":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("flare_dist.hook.watch").HookWatch
