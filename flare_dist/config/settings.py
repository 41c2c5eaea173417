"""Configurations from Python: of a file, a dict or another configuration, with more values by dotted key."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from flare_dist.config.config import Config
from flare_dist.config.dumping import dump, dump_quoted, to_text
from flare_dist.config.load import build_config, config_parser
from flare_dist.config.saved import to_yaml
from flare_dist.config.yaml_file import FROM_DICT, read_text

Settings = str | Path | Mapping[str, Any] | Config | None


def make_config(config: Settings, values: Mapping[str, Any]) -> Config:
    """Make a configuration of a file, a dict or a Config, and of more values by dotted key, which win.

    Raises ValueError that begins with the dotted key of what is wrong.
    """
    try:
        return _make_config(config, values)
    except ArgumentError as error:  # is of a command line, whose keys begin with dashes
        raise ValueError(str(error).removeprefix("--").replace("did you mean --", "did you mean ")) from error


def _make_config(config: Settings, values: Mapping[str, Any]) -> Config:
    parser = config_parser()
    arguments = [f"--{key}={as_text(value, key)}" for key, value in values.items()]
    if config is None or isinstance(config, str | Path):
        files = [] if config is None else [f"--config={config}"]
        return build_config(parser, parser.parse_args(files + arguments))
    text = to_yaml(config) if isinstance(config, Config) else dump(_plain(config), sort_keys=False)
    document = read_text(text, parser.hints, FROM_DICT)
    below = parser.parse_string(dump_quoted(document.nested()))
    return build_config(parser, parser.parse_args(arguments, namespace=below))


def as_text(value: Any, key: str) -> str:
    """Write a value as a command line has it; among options, which are typed as in YAML, a text stays a text."""
    is_option = any(name == "options" or name.endswith("_options") for name in key.split("."))
    plain = _plain(value, key)
    return dump_quoted(value).strip() if is_option and isinstance(value, str) else to_text(plain)


def _plain(value: Any, key: str = "") -> Any:
    """Convert tuples, paths and NumPy's numbers to what YAML has; ValueError that names the key of any other object."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if isinstance(value, Path):
        return str(value)
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, str | int | float | date | None):
        got = getattr(value, "__qualname__", type(value).__name__)
        raise ValueError(
            f"{key}: must be a name or a plain value, got {got}; write package.module:callable for your own"
        )
    return plain
