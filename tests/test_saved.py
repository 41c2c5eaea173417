"""Saved configurations read back, are completed, and are compared key by key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.config.saved import as_dict, differing_keys, to_yaml, with_defaults


def test_differing_keys_are_dotted_and_complete() -> None:
    one = as_dict(Config())
    other = as_dict(dataclasses.replace(Config(), seed=1, compression=CompressionConfig(density=0.5)))
    assert list(differing_keys(one, other)) == ["seed", "compression.density"]
    del one["model"]
    assert "model" in differing_keys(one, other)


def test_saved_configurations_read_back(read_yaml: Any, tmp_path: Path) -> None:
    config = Config(output_dir="2024")
    assert read_yaml(to_yaml(config)) == config
    assert yaml.safe_load(to_yaml(config))["output_dir"] == "2024"


def test_keys_that_an_older_version_lacked_get_their_defaults() -> None:
    saved = as_dict(dataclasses.replace(Config(), seed=5, compression=CompressionConfig(density=0.5)))
    del saved["compression"]["scope"], saved["engine"], saved["rounds"]
    completed = with_defaults(saved)
    assert list(differing_keys(as_dict(Config()), completed)) == ["seed", "compression.density"]
