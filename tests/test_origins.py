"""Errors name the file and line, or the argument, that sets the key."""

from __future__ import annotations

import re
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest

from flare_dist.config.config import Config
from flare_dist.config.load import build_config, with_arguments
from tests.helpers.configs import cached_parser


@pytest.mark.parametrize(
    ("contents", "before", "after", "said"),
    [
        (["rounds: 0", "rounds: 1"], [], [], ""),
        (["rounds: 1", "\nrounds: 0"], [], [], "rounds: {tmp}/1.yaml:2: out of range, got 0; choose at least 1"),
        (["rounds: 0", "seed: 1"], [], [], "rounds: {tmp}/0.yaml:1: out of range, got 0; choose at least 1"),
        (["rounds: 1", "seed: 1"], [], ["--rounds=0"], "rounds: out of range, got 0; choose at least 1"),
        (["rounds: 0"], ["--rounds=1"], [], ""),
        (["rounds: 1"], ["--rounds=0"], [], "rounds: out of range, got 0; choose at least 1"),
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


def test_a_section_from_a_file_has_lines_too(layers: Any, tmp_path: Path) -> None:
    layers("num: 5\nlr: 0.5\n", "clients: {lr: 0.1}")
    section = f"--clients={tmp_path}/0.yaml"
    assert with_arguments(Config(), [f"--config={tmp_path}/1.yaml", section]).clients.lr == 0.5
    assert with_arguments(Config(), [section, f"--config={tmp_path}/1.yaml"]).clients.lr == 0.1
    with pytest.raises(
        ValueError, match=rf"^clients\.per_round: .* got 6 .*; clients\.num is set at {tmp_path}/0.yaml:1$"
    ):
        with_arguments(Config(), [section, "--clients.per_round=6"])


def test_a_key_that_an_argument_sets_has_no_line(tmp_path: Path) -> None:
    parser = cached_parser()
    (tmp_path / "my.yaml").write_text("clients: {lr: 0.1}\nrounds: 3\n")
    options = parser.parse_args(["--config", str(tmp_path / "my.yaml"), "--clients.lr", "-2"])
    with pytest.raises(ValueError, match=r"^clients\.lr: out of range, got "):
        build_config(parser, options)
