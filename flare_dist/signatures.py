"""Offer a callable, ours or the user's, facts that it may not need: it is given those that its parameters name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def accepted(function: Callable[..., Any], **offered: Any) -> dict[str, Any]:
    """Choose the arguments among `offered` that `function` has a parameter for, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions written in C may have no signature
        return {}
    return {name: value for name, value in offered.items() if name in parameters}


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """List the names of the arguments without which `function` cannot be called."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C may have no signature
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
