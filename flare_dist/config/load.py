"""Load a configuration from YAML files and the command line."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from flare_dist.config.config import NAMED, Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.saved import to_yaml
from flare_dist.imported import directory_of, look_in


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
    own = [name for key in NAMED for name in _names(namespace[key]) if ":" in name]
    directories = _code_directories(parser, namespace) if own else []
    if own:
        look_in(namespace["code_dirs"], directories)
    with parser.located():
        values = dict(parser.instantiate(namespace))
        config = Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})
    searched = [os.getcwd(), *(str(Path(place).expanduser().absolute()) for place in config.code_dirs), *directories]
    found = dict.fromkeys(place for place in map(directory_of, own) if place in searched)
    return dataclasses.replace(config, code_dirs=tuple(filter(None, found)))


def _names(choice: Any) -> list[str]:
    """List the names of a choice, which is one or a list of them."""
    return list(map(str, choice if isinstance(choice, list | tuple) else [choice]))


def _code_directories(parser: ConfigParser, namespace: Any) -> list[str]:
    """List where else the user's modules may lie: beside the configuration files, and where a run found them before."""
    beside = [str(Path(file).absolute().parent) for file in parser.origins.files]
    runs = [namespace["output_dir"], namespace["checkpoint.resume"]]
    return beside + [directory for run in runs for directory in _saved_code_dirs(Path(run).expanduser())]


def _saved_code_dirs(run: Path) -> list[str]:
    """Read where a run found the user's modules; empty if it is no run, or one of an older version."""
    try:
        saved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return [str(directory) for directory in saved.get("code_dirs", [])]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):  # told when it is resumed
        return []


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
