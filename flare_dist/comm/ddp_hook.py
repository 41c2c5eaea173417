"""Find what pickles of versions before flare_dist.hook, and imports of them, name here."""

from importlib import import_module
from typing import Any

_HOMES = {"SparseHookState": "state", "sparse_hook": "ddp", "exchange_gradients": "ddp"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"flare_dist.hook.{_HOMES[name]}"), name)
