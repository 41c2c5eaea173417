"""The configuration: defaults, files, overrides, and what counts as a change."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError
from pathlib import Path

import pytest

from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.config.load import build_config, config_parser, load_config
from flare_dist.config.saved import as_dict, differing_keys, to_yaml


def parse(*arguments: str) -> Config:
    parser = config_parser()
    return build_config(parser, parser.parse_args(list(arguments)))


def test_defaults_are_the_dataclasses_own() -> None:
    assert parse() == Config()


def test_saved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = parse("--clients.lr", "5e-5", "--data.synthetic.shape", "[3, 8, 8]", "--clients.per_round", "3")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("rounds: 7\nclients: {lr: 0.5, num: 3}\n")
    config = parse("--config", str(tmp_path / "config.yaml"), "--clients.lr", "0.25")
    assert (config.rounds, config.clients.lr, config.clients.num) == (7, 0.25, 3)


def test_differing_keys_are_dotted_and_complete() -> None:
    one = as_dict(Config())
    other = as_dict(dataclasses.replace(Config(), seed=1, compression=CompressionConfig(density=0.5)))
    assert list(differing_keys(one, other)) == ["seed", "compression.density"]
    del one["model"]
    assert "model" in differing_keys(one, other)


@pytest.mark.parametrize(("written", "rule"), [("true", "ec"), ("false", "none"), ("ec", "ec"), ("none", "none")])
def test_error_feedback_is_a_rule_or_a_switch(written: str, rule: str) -> None:
    compression = parse("--compression.error_feedback", written).compression
    assert compression.rule == rule


@pytest.mark.parametrize(
    ("sparsifier", "density", "dense"),
    [("dense", 0.01, True), ("topk", 1.0, True), ("topk", 0.5, False), ("threshold", 1.0, False)],
)
def test_what_counts_as_dense(sparsifier: str, density: float, dense: bool) -> None:
    assert CompressionConfig(sparsifier=sparsifier, density=density).is_dense == dense


@pytest.mark.parametrize("written", ["3", "null", "[]"])
def test_a_section_must_have_keys(tmp_path: Path, written: str) -> None:
    (tmp_path / "config.yaml").write_text(f"clients: {written}\n")
    with pytest.raises((ValueError, ArgumentError), match="clients"):
        load_config(tmp_path / "config.yaml")


def test_yaml_none_is_the_word_none(tmp_path: Path) -> None:
    """`objective: none` must not become null."""
    (tmp_path / "config.yaml").write_text("clients: {objective: none}\ncompression: {error_feedback: none}\n")
    config = load_config(tmp_path / "config.yaml")
    assert config.clients.objective == "none"
    assert config.compression.rule == "none"
