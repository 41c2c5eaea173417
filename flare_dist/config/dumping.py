"""Write values so that they are read as what they are: in YAML files, and on command lines."""

from __future__ import annotations

import math
from typing import Any

import yaml

from flare_dist.config.values import convert

STR = "tag:yaml.org,2002:str"


class _Faithful(yaml.SafeDumper):
    """Put texts into quotation marks that would be read as something else where no type is known, as 1e3."""


def _as_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    is_read_as_text = convert(Any, yaml.ScalarNode("", text)) == text
    return dumper.represent_scalar(STR, text, style=None if is_read_as_text else "'")


_Faithful.add_representer(str, _as_text)


class _Quoting(yaml.SafeDumper):
    """Puts every text into quotation marks: jsonargparse's loader would take 1e3 for a number, which YAML does not."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar(STR, text, style='"'))


def dump(value: Any, **options: Any) -> str:
    """Write YAML from which our own reader gets the same values."""
    return yaml.dump(value, Dumper=_Faithful, **options)


def dump_quoted(value: Any) -> str:
    """Write YAML in which every text stands in quotation marks."""
    return yaml.dump(value, Dumper=_Quoting)


def to_text(value: Any) -> str:
    """Write a converted value as a command line has it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, (list, dict)):
        return dump(value, default_flow_style=True, width=math.inf).strip()
    return value if isinstance(value, str) else repr(value)
