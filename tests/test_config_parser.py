"""Layers of a configuration: of several files the later wins, and arguments win over files."""

from __future__ import annotations

import itertools
import random
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest
import yaml

from flare_dist import cli
from flare_dist.cli.sweeps import sweep_parser
from flare_dist.config.config import Config
from flare_dist.config.load import load_config, with_arguments
from flare_dist.config.saved import as_dict, to_yaml
from flare_dist.config.values import leaf_types
from flare_dist.config.yaml_file import read_file, read_text

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
    ("lower", "upper", "key", "value"),
    [
        ("rounds: 7", "rounds: 9", "rounds", 9),
        ("rounds: 7", "clients: {lr: 0.3}", "rounds", 7),
        ("clients: {num: 3, lr: 0.5}", "clients: {lr: 0.3}", "clients.num", 3),
        ("clients: {flare: {tau: 0.5}}", "clients: {flare: {decay: 2}}", "clients.flare.tau", 0.5),
        ("clients: {flare: {tau: 0.5}}", "clients.flare.tau: 0.25", "clients.flare.tau", 0.25),
        ("clients: {flare: {tau: 0.5}}", "clients: {flare: {}}", "clients.flare.tau", 0.5),
        ("clients: {per_round: 3}", "clients: {per_round: null}", "clients.per_round", None),
        ("clients: {flare: {exclude: [a, b]}}", "clients: {flare: {exclude: [c]}}", "clients.flare.exclude", ["c"]),
        ("clients: {flare: {exclude: [a]}}", "clients: {flare: {exclude: []}}", "clients.flare.exclude", []),
        (
            "engine: {deepspeed_config: {a: 1}}",
            "engine: {deepspeed_config: {b: 2}}",
            "engine.deepspeed_config",
            {"b": 2},
        ),
        (
            "engine: {deepspeed_config: {a: 1}}",
            "engine: {deepspeed_config: x.json}",
            "engine.deepspeed_config",
            "x.json",
        ),
        ("compression: {error_feedback: ec}", "compression: {error_feedback: no}", "compression.error_feedback", False),
        ("clients: {per_round: 50}", "clients: {num: 100}", "clients.per_round", 50),  # wrong without the other
    ],
)
def test_the_later_file_wins_key_by_key(layers: Any, lower: str, upper: str, key: str, value: object) -> None:
    found: Any = as_dict(with_arguments(Config(), layers(lower, upper)))
    for name in key.split("."):
        found = found[name]
    assert found == value


@pytest.mark.parametrize("seed", range(5))
def test_a_file_divided_into_layers_is_the_file(layers: Any, seed: int) -> None:
    """Every key in one layer at least, those of a lower one perhaps with a value that the upper one replaces."""
    draw = random.Random(seed)
    hints = leaf_types(Config)
    given = read_file(CONFIGS / "flare" / "gru.yaml", hints).values
    other = read_text(to_yaml(Config()), hints, "the defaults").values
    parts: list[dict[str, Any]] = [{}, {}, {}]
    for key, value in given.items():
        last = draw.randrange(3)
        parts[last][key] = value
        for lower in parts[:last]:
            if draw.random() < 0.5:
                lower[key] = other[key]
    expected = load_config(CONFIGS / "flare" / "gru.yaml")
    assert with_arguments(Config(), layers(*map(yaml.safe_dump, parts))) == expected


@pytest.mark.parametrize("argument", [["--clients.lr=0.25"], ["--clients.lr", "0.25"], ["--clients", "{lr: 0.25}"]])
def test_an_argument_wins_over_files_whatever_their_order(layers: Any, argument: list[str]) -> None:
    lower, upper = layers("clients: {lr: 0.1, num: 3}", "lr: 0.2")
    section = ["--clients", upper.removeprefix("--config=")]
    for arguments in itertools.permutations([[lower], section, argument]):
        clients = with_arguments(Config(), [part for parts in arguments for part in parts]).clients
        assert (clients.lr, clients.num) == (0.25, 3)


def test_a_command_reads_files_before_arguments(layers: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = layers("clients: {lr: 0.1}\nrounds: 3")
    with pytest.raises(SystemExit):
        cli.main(["train", "--clients.lr", "0.25", *file.split("="), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["clients"]["lr"], printed["rounds"]) == (0.25, 3)


def test_a_sweep_reads_its_own_options_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("seeds: 1,2\nranks: 2\nrounds: 3\n")
    options = sweep_parser().parse_args(["--config", str(tmp_path / "my.yaml")])
    assert (options.seeds, options.ranks, options.rounds) == ("1,2", 2, 3)
    (tmp_path / "my.yaml").write_text("ranks: two\n")
    with pytest.raises((ValueError, ArgumentError), match=rf"^ranks: {tmp_path}/my.yaml:1: expected a whole number"):
        sweep_parser().parse_args(["--config", str(tmp_path / "my.yaml")])
