"""Configuration files for tests."""

from __future__ import annotations

import functools
from pathlib import Path

from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.load import build_config, config_parser


@functools.cache
def cached_parser() -> ConfigParser:
    """Make the parser of all tests once."""
    return config_parser()


def read_yaml(path: Path, content: str | bytes) -> Config:
    """Write a file, and read the configuration in it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return build_config(cached_parser(), cached_parser().parse_args(["--config", str(path)]))


def layers(directory: Path, *contents: str) -> list[str]:
    """Write 0.yaml, 1.yaml, ... and return arguments that lay one over the other."""
    paths = [directory / f"{number}.yaml" for number in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_text(content)
    return [f"--config={path}" for path in paths]
