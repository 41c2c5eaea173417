"""Values of configuration keys as they are written, in YAML and on the command line alike.

A scalar is read by the type of its key. YAML 1.1 by itself reads `no` for False, `12:30:15` for 45,015 and `1e-3` for
text; here `no` is a word if the key is a word, and 1e-3 is a number if the key is a number.
"""

from __future__ import annotations

import math
import os
import re
import types
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
BASED = re.compile(r"[-+]?0(x[\da-fA-F]+|o[0-7]+|b[01]+)")
NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan|infinity)", re.IGNORECASE)
INFINITE = re.compile(r"[-+]?\.inf", re.IGNORECASE)
LARGEST = 2**63 - 1  # of a signed integer of 64 bits, in which counts are stored
SHOWN = 60  # characters of a wrong value in a message


def convert(hint: Any, node: yaml.Node) -> Any:
    """Convert a YAML node to the type `hint`; ValueError says which type was expected."""
    if get_origin(hint) in (Union, types.UnionType):
        return _one_of(hint, node)
    if hint is Any:
        return _as_yaml_says(node)
    if hint is type(None) and is_null(node):
        return None
    if get_origin(hint) in (tuple, list) and isinstance(node, yaml.SequenceNode):
        kinds = _item_types(hint, len(node.value))
        if kinds is not None:
            return [convert(kind, item) for kind, item in zip(kinds, node.value)]
    if (get_origin(hint) or hint) is dict and isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if hint in (int, float, str, bool) and isinstance(node, yaml.ScalarNode) and not is_null(node):
        value = node.value if hint is str else _read_scalar(hint, node)
        if value is not None:
            return value
    raise ValueError(f"expected {describe(hint)}, got {_shown(node)}")


def convert_text(hint: Any, text: str) -> Any:
    """Convert the text of a command line to the type `hint`; if a text is allowed, it stays as it stands."""
    kinds = {get_origin(kind) or kind for kind in _members(hint)}
    if text.lstrip()[:1] in ("[", "{") and kinds & {tuple, dict}:
        try:
            node = yaml.compose(text, yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError):
            node = yaml.ScalarNode("", text)
        return convert(hint, node or yaml.ScalarNode("", text))
    is_text = str in kinds and bool not in kinds and not (type(None) in kinds and text == "null")
    return convert(hint, yaml.ScalarNode("", text if is_text else text.strip(), style='"' if is_text else None))


def leaf_types(configuration: Any, prefix: str = "") -> dict[str, Any]:
    """Collect dotted key -> type of every field in a tree of dataclasses."""
    leaves: dict[str, Any] = {}
    for name, hint in get_type_hints(configuration).items():
        leaves |= leaf_types(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}
    return leaves


def describe(hint: Any) -> str:
    """Describe a type in words, e.g. "a list of 3 whole numbers"."""
    if len(_members(hint)) > 1:
        return " or ".join(map(describe, _members(hint)))
    if get_origin(hint) in (tuple, list):
        items = get_args(hint)
        count = f"{len(items)} " if get_origin(hint) is tuple and items[-1] is not Ellipsis else ""
        item = items[0]
        return f"a list of {count}{'lists of numbers' if get_origin(item) else NAMES[item] + 's'}"
    if (get_origin(hint) or hint) is dict:
        return "keys and values"
    return f"a {NAMES[hint]}" if hint in (int, float) else NAMES.get(hint, "a value")


def expand_home(text: str, key: str) -> str:
    """Replace ~ and ~user in a path; ValueError if there is no such user, or if no system takes the path."""
    if "\0" in text:
        raise ValueError(f"{key}: no path has a byte of value 0, got {text!r}; remove it")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        user = text.split("/")[0]
        raise ValueError(
            f"{key}: no home directory is known for {user}, got {text}; write ./{text} if that is the name of a folder"
        )
    return expanded


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _one_of(hint: Any, node: yaml.Node) -> Any:
    """Convert a node to the first type of a union that takes it; text takes any node, and is therefore tried last."""
    for kind in sorted(_members(hint), key=lambda kind: kind is str):
        try:
            return convert(kind, node)
        except ValueError:
            continue
    raise ValueError(f"expected {describe(hint)}, got {_shown(node)}")


def _item_types(hint: Any, count: int) -> list[Any] | None:
    """List the type of each of `count` items; None if the type has another number of them."""
    items = get_args(hint)
    if get_origin(hint) is list or items[-1] is Ellipsis:
        return [items[0]] * count
    return list(items) if len(items) == count else None


def _read_scalar(hint: Any, node: yaml.ScalarNode) -> bool | int | float | None:
    """Read a plain scalar as a number or truth value; None if it is not of the type, or in quotation marks."""
    text = node.value
    if node.style is not None:
        return None
    if hint is bool:
        return BOOLS.get(text.lower())
    if NOT_FINITE.fullmatch(text):
        raise ValueError(f"expected a finite number, got {text}")
    try:
        value = int(text, 0) if BASED.fullmatch(text) else _decimal(text)
    except (ValueError, OverflowError):  # more digits than Python reads
        value = math.inf
    if value is not None and not abs(value) <= (LARGEST if hint is int else 1.7e308):
        raise ValueError(f"expected {describe(hint)} within the range of 64 bits, got {_shown(node)}")
    if value is None or hint is float:
        return None if value is None else float(value)
    return int(value) if value == int(value) else None


def _decimal(text: str) -> int | float | None:
    """Read a number in decimal digits; None if the text is no number."""
    if not NUMBER.fullmatch(text):
        return None
    digits = text.replace("_", "")
    return int(digits) if digits.lstrip("+-").isdigit() else float(digits)


def _as_yaml_says(node: yaml.Node) -> Any:
    """Convert a node whose key admits any value, such as an option or a setting of DeepSpeed's."""
    if isinstance(node, yaml.SequenceNode):
        return [_as_yaml_says(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:
        return node.value
    if is_null(node):
        return None
    if INFINITE.fullmatch(node.value):
        return float(node.value.replace(".", ""))
    number = int(node.value, 0) if BASED.fullmatch(node.value) else _decimal(node.value)
    return BOOLS.get(node.value.lower(), node.value) if number is None else number


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    """Convert keys and values; a key that is written wins over one that a merge key brings, and stands there once."""
    written: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged = convert(dict, other) | merged
        elif key.value in written:
            raise ValueError(f"expected each key once, got {key.value} twice")
        else:
            written[str(key.value)] = _as_yaml_says(value)
    return merged | written


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULLS


def _shown(node: yaml.Node) -> str:
    """Show a node in a few words, for messages."""
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if is_null(node):
        return node.value or "nothing"
    text = node.value if len(node.value) <= SHOWN else f"{node.value[:SHOWN]}..."
    return f"the text {text!r}" if isinstance(node, yaml.ScalarNode) and node.style else text
