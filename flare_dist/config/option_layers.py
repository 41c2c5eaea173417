"""The options of somebody's callables while a command line is parsed: files are layers, and arguments change values.

A later file replaces the options of an earlier one, for they belong to a callable. `--model.options.lora.r 8` changes
one value of them, and `--model.options {lora: {r: 8}}` all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import yaml

from flare_dist.config.values import convert
from flare_dist.named import Setting


def is_options(hint: Any) -> bool:
    """Tell whether a key of this type holds options."""
    return get_origin(hint) is dict and get_args(hint)[1] is Setting


def convert_item(text: str) -> Any:
    """Convert the text of a command line as YAML has it: for one value below a key that holds any keys and values."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        try:
            node = yaml.compose(text, yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"expected a value as in YAML, got {text}") from error
        return convert(Any, node or yaml.ScalarNode("", text))
    return convert(Any, yaml.ScalarNode("", text.strip()))


class OptionLayers:
    """Keep the options of each key that has some, by dotted key, and what arguments change in them."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._base = dict(base)
        self._changes: dict[str, list[tuple[list[str], Any]]] = {}  # in the order of the command line

    def owner(self, key: str) -> str:
        """Name the key whose options `key` is, or lies below; empty if there is none."""
        return next((own for own in self._base if key == own or key.startswith(f"{own}.")), "")

    def add_file(self, values: Mapping[str, Any]) -> None:
        """Lay a file over those before it."""
        self._base |= {key: values[key] for key in self._base if key in values}

    def change(self, key: str, value: Any) -> None:
        """Note an argument that sets all options of a key, or one value below them."""
        owner = self.owner(key)
        path = key[len(owner) + 1 :]
        self._changes.setdefault(owner, []).append((path.split(".") if path else [], value))

    def changed(self) -> Iterator[tuple[str, Any]]:
        """Yield the options that arguments change, as they have become."""
        for key, changes in self._changes.items():
            options = copy.deepcopy(self._base[key])
            for path, value in changes:
                options = _with(options, path, value)
            yield key, options


def _with(options: Any, path: list[str], value: Any) -> Any:
    """Return options with one value changed; what stood where keys are needed gives way to them."""
    if not path:
        return value
    kept = options if isinstance(options, dict) else {}
    return kept | {path[0]: _with(kept.get(path[0]), path[1:], value)}
