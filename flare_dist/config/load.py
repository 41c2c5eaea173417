"""Load a configuration from YAML files and the command line."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.saved import to_yaml


def config_parser(**options: Any) -> ConfigParser:
    """Make a parser of every key of `Config`, with --config FILE and --print_config."""
    return ConfigParser(configuration=Config, **options)


def build_config(parser: ConfigParser, namespace: Any) -> Config:
    """Build and validate the configuration of a parsed command line.

    ValueError names the dotted key that is wrong, and its file and line if a file sets it.
    """
    for section in dataclasses.fields(Config):
        if section.default is dataclasses.MISSING and not isinstance(namespace[section.name], Namespace):
            raise ValueError(
                f"{section.name}: expected keys and values, got {namespace[section.name]!r}; write keys below it"
            )
    with parser.located():
        values = dict(parser.instantiate(namespace))
        return Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})


def load_config(*paths: Path) -> Config:
    """Load a configuration from YAML files; if two set the same key the later one wins."""
    parser = config_parser()
    return build_config(parser, parser.parse_args([f"--config={path}" for path in paths]))


def with_arguments(config: Config, arguments: Sequence[str]) -> Config:
    """Lay a command line over `config`; ValueError or ArgumentError if that is no valid configuration."""
    parser = _cached_parser()
    return build_config(parser, parser.parse_args(list(arguments), namespace=parser.parse_string(to_yaml(config))))


@functools.cache
def _cached_parser() -> ConfigParser:
    """Make the parser once: a sweep reads many command lines before it starts."""
    return config_parser()
