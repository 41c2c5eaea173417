"""Configurations are loaded from files and the command line as they were written."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flare_dist import cli
from flare_dist.cli.sweeps import compare_parser, sweep_parser
from flare_dist.cli.training import partition_parser, train_parser
from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.load import build_config, config_parser, load_config, with_arguments
from flare_dist.config.saved import as_dict, differing_keys, to_yaml

CONFIGS = Path(__file__).parent.parent / "configs"


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


@pytest.mark.parametrize("command", [train_parser, partition_parser, sweep_parser, compare_parser])
def test_every_command_layers_files(layers: Any, command: Callable[[], ConfigParser]) -> None:
    parser = command()
    options = parser.parse_args([*layers("clients: {lr: 0.5, num: 3}", "clients: {lr: 0.3}"), "--rounds=2"])
    config = build_config(parser, options)
    assert (config.clients.lr, config.clients.num, config.rounds) == (0.3, 3, 2)


def test_the_resolved_configuration_is_printed_and_saved(
    layers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = layers((CONFIGS / "smoke.yaml").read_text(), "rounds: 1\nclients: {lr: 0.3}\n")
    arguments += ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        cli.main(["train", "--print_config", *arguments])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    resolved = with_arguments(Config(), arguments)
    assert (resolved.rounds, resolved.clients.lr, resolved.clients.num) == (1, 0.3, 4)
    assert load_config(printed) == resolved
    assert cli.main(["train", *arguments]) == 0
    saved = load_config(tmp_path / "run" / "config.yaml")
    settled = {
        "data.root",
        "engine.threads",
        "engine.device",
        "clients.together",
        "clients.smallest_batch",
        "task.name",
        "task.best",
    }
    assert set(differing_keys(as_dict(resolved), as_dict(saved))) <= settled
