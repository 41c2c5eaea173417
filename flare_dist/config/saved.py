"""Configurations as plain values: saved in config.yaml, completed with defaults, compared key by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from flare_dist.config.config import Config
from flare_dist.config.dumping import dump


def to_yaml(config: Config) -> str:
    """Write every key, in the order of the dataclasses."""
    return dump(as_dict(config), sort_keys=False)


def as_dict(config: Config) -> dict[str, Any]:
    """Convert to nested plain values, as they stand in the YAML file."""

    def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: as_lists(value) for key, value in pairs}

    def as_lists(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_lists(item) for key, item in value.items()}
        return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value

    return dataclasses.asdict(config, dict_factory=plain)


def dotted(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of the keys that a configuration saved by an older version lacks."""

    def fill(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        nested = {
            key: fill(values[key], default)
            for key, default in defaults.items()
            if isinstance(default, dict) and isinstance(values.get(key), dict)
        }
        return defaults | values | nested

    return fill(saved, as_dict(Config()))


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values differ between two nested dictionaries, in order."""
    for key in [*one, *(key for key in other if key not in one)]:
        left = one.get(key)
        right = other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}"
