"""Configurations from Python: of a file, a dict or another configuration, with more values by dotted key."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.dumping import to_text
from flare_dist.config.load import build_config, config_parser
from flare_dist.config.saved import to_yaml

Settings = str | Path | Mapping[str, Any] | Config | None


def make_config(config: Settings, values: Mapping[str, Any]) -> Config:
    """Make a configuration of a file, a dict or a Config, and of more values by dotted key, which win."""
    parser = config_parser()
    arguments = [f"--{key}={as_text(value)}" for key, value in values.items()]
    if config is None or isinstance(config, str | Path):
        files = [] if config is None else [f"--config={config}"]
        return _built(parser, files + arguments)
    text = to_yaml(config) if isinstance(config, Config) else yaml.safe_dump(_plain(config), sort_keys=False)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.yaml")
        path.write_text(text, encoding="utf-8")
        return _built(parser, [f"--config={path}", *arguments])


def _built(parser: ConfigParser, arguments: Sequence[str]) -> Config:
    return build_config(parser, parser.parse_args(arguments))


def as_text(value: Any) -> str:
    """Write a value as a command line has it."""
    return to_text(_plain(value))


def _plain(value: Any) -> Any:
    """Convert tuples, paths and NumPy's numbers to what YAML has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value
