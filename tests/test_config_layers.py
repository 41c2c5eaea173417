"""Layers: of files the later wins, arguments win over files, and errors name the layer that set a key."""

from __future__ import annotations

import itertools
import random
import re
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flare_dist import cli
from flare_dist.cli.sweeps import compare_parser, sweep_parser
from flare_dist.cli.training import partition_parser, train_parser
from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.load import build_config, load_config, with_arguments
from flare_dist.config.saved import as_dict, differing_keys, to_yaml
from flare_dist.config.values import leaf_types
from flare_dist.config.yaml_file import read_file, read_text

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def layers(tmp_path: Path) -> Any:
    """A function from the contents of 0.yaml, 1.yaml, ... to what lays one over the other on a command line."""

    def layers(*contents: str) -> list[str]:
        paths = [tmp_path / f"{number}.yaml" for number in range(len(contents))]
        for path, content in zip(paths, contents):
            path.write_text(content)
        return [f"--config={path}" for path in paths]

    return layers


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


@pytest.mark.parametrize(
    ("contents", "before", "after", "said"),
    [
        (["rounds: 0", "rounds: 1"], [], [], ""),
        (["rounds: 1", "\nrounds: 0"], [], [], "rounds: {tmp}/1.yaml:2: must be at least 1, got 0"),
        (["rounds: 0", "seed: 1"], [], [], "rounds: {tmp}/0.yaml:1: must be at least 1, got 0"),
        (["rounds: 1", "seed: 1"], [], ["--rounds=0"], "rounds: must be at least 1, got 0"),
        (["rounds: 0"], ["--rounds=1"], [], ""),
        (["rounds: 1"], ["--rounds=0"], [], "rounds: must be at least 1, got 0"),
        (["rounds: 1", "rounds: x"], [], ["--rounds=3"], "rounds: {tmp}/1.yaml:1: expected a whole number, got x"),
        (["rounds: 1", "rounds: 2\nrounds: 2"], [], [], "rounds: {tmp}/1.yaml:2: is written twice, at {tmp}/1.yaml:1"),
        (["rounds: 1", "round: 2"], [], [], "round: {tmp}/1.yaml:1: there is no such key; did you mean rounds?"),
        (["rounds: 1", ""], [], [], "config: {tmp}/1.yaml: is empty"),
        (
            ["clients:\n  num: 3\n", "clients: {per_round: 4}"],
            [],
            [],
            "clients.per_round: {tmp}/1.yaml:1: more clients per round than there are, got 4 with clients.num=3; "
            "choose at most clients.num, or null for all; "
            "clients.num is set at {tmp}/0.yaml:2",
        ),
        (
            ["clients: {num: 3}"],
            [],
            ["--clients.per_round=4"],
            "clients.per_round: more clients per round than there are, got 4 with clients.num=3; "
            "choose at most clients.num, or null for all; "
            "clients.num is set at {tmp}/0.yaml:1",
        ),
        (
            ["clients: {per_round: 4}", "seed: 1"],
            [],
            ["--clients.num=3"],
            "clients.per_round: {tmp}/0.yaml:1: more clients per round than there are, got 4 with clients.num=3",
        ),
        (["rounds: 1"], [], ["more.yaml"], "config: more.yaml follows another argument's value; write --config before"),
    ],
)
def test_errors_name_the_layer_that_sets_the_key(
    layers: Any, tmp_path: Path, contents: list[str], before: list[str], after: list[str], said: str
) -> None:
    arguments = [*before, *layers(*contents), *after]
    if not said:
        assert with_arguments(Config(), arguments).rounds == 1
        return
    with pytest.raises((ValueError, ArgumentError), match="^" + re.escape(said.replace("{tmp}", str(tmp_path)))):
        with_arguments(Config(), arguments)


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


def test_a_section_from_a_file_has_lines_too(layers: Any, tmp_path: Path) -> None:
    layers("num: 5\nlr: 0.5\n", "clients: {lr: 0.1}")
    section = f"--clients={tmp_path}/0.yaml"
    assert with_arguments(Config(), [f"--config={tmp_path}/1.yaml", section]).clients.lr == 0.5
    assert with_arguments(Config(), [section, f"--config={tmp_path}/1.yaml"]).clients.lr == 0.1
    with pytest.raises(
        ValueError, match=rf"^clients\.per_round: .* got 6 .*; clients\.num is set at {tmp_path}/0.yaml:1$"
    ):
        with_arguments(Config(), [section, "--clients.per_round=6"])


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
    }
    assert set(differing_keys(as_dict(resolved), as_dict(saved))) <= settled
