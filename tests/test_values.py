"""A value is read by the type of its key, in a file and on the command line alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flare_dist.config.config import Config
from flare_dist.config.load import with_arguments
from flare_dist.config.saved import as_dict
from tests.helpers.configs import cached_parser


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_an_empty_value_is_refused_where_the_type_has_none(tmp_path: Path) -> None:
    parser = cached_parser()
    path = tmp_path / "my.yaml"
    defaults = dict(leaves(as_dict(Config())))
    for key, default in defaults.items():
        path.write_text(f"{key}:\n")
        nullable = default is None or key in ("clients.flare.steps",)
        if nullable:
            assert parser.parse_args(["--config", str(path)])[key] is None
        else:
            with pytest.raises(ValueError, match=rf"^{key}: {path}:1: expected .*, got nothing"):
                parser.parse_args(["--config", str(path)])
    assert len(defaults) > 80


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ("engine: {mixed_precision: no}\n", "engine.mixed_precision", "no"),
        ("output_dir: 2024\n", "output_dir", "2024"),
        ("output_dir: 12:30:15\n", "output_dir", "12:30:15"),
        ("output_dir: 2024-01-31\n", "output_dir", "2024-01-31"),
        ("output_dir: 007\n", "output_dir", "007"),
        ("output_dir: 1e3\n", "output_dir", "1e3"),
        ("data: {root: 2E-5}\n", "data.root", "2E-5"),
        ("output_dir: 'a: é \U0001f600 #b'\n", "output_dir", "a: é \U0001f600 #b"),
        ("clients: {objective: none}\n", "clients.objective", "none"),
        ("clients: {flare: {exclude: [1, no]}}\n", "clients.flare.exclude", ["1", "no"]),
        ("data: {download: yes}\n", "data.download", True),
        ("clients: {lr: 1e-3}\n", "clients.lr", 1e-3),
        ("clients: {lr: 1}\n", "clients.lr", 1.0),
        ("rounds: 1e3\n", "rounds", 1000),
        ("rounds: 010\n", "rounds", 10),
        ("clients.lr: 0.5\n", "clients.lr", 0.5),
        ("\ufeffrounds: 7\n", "rounds", 7),
        ("clients: {per_round: null}\n", "clients.per_round", None),
        ("clients: {}\n", "clients.num", 8),
        ("{}\n", "rounds", 40),
        ("clients: {fedprox: &p {decay: 2}, flare: {<<: *p, tau: 1}}\n", "clients.flare.decay", 2.0),
        ("clients: {fedprox: &p {decay: 2}, flare: {<<: *p, decay: 3}}\n", "clients.flare.decay", 3.0),
        ("engine: {deepspeed_config: {a: [1, true, auto]}}\n", "engine.deepspeed_config", {"a": [1, True, "auto"]}),
    ],
)
def test_a_value_is_read_by_the_type_of_its_key(read_yaml: Any, content: str, key: str, value: object) -> None:
    found: Any = as_dict(read_yaml(content))
    for name in key.split("."):
        found = found[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [("rounds", "2.5"), ("rounds", "true"), ("rounds", "x"), ("rounds", "null"), ("clients.lr", "nan"),
     ("clients.lr", "yes"), ("data.download", "1"), ("data.synthetic.shape", "[1, 2]"), ("server.betas", "[a, b]"),
     ("clients.flare.exclude", "a")],
)  # fmt: skip
def test_the_command_line_refuses_what_a_file_refuses(read_yaml: Any, tmp_path: Path, key: str, text: str) -> None:
    with pytest.raises(ValueError, match="expected") as in_file:
        read_yaml(f"{key}: {text}\n")
    with pytest.raises(ValueError, match="expected") as in_argument:
        with_arguments(Config(), [f"--{key}", text])
    assert str(in_file.value).replace(f" {tmp_path / 'my.yaml'}:1:", "") == str(in_argument.value)


def test_the_command_line_takes_texts_as_they_stand() -> None:
    given = ["--output_dir", "2024", "--clients.state_dir=no", "--clients.flare.exclude", "[a.*, no]", "--rounds=1e2"]
    config = with_arguments(Config(), [*given, "--data.synthetic", "{shape: [1, 2, 3]}", "--clients.per_round", "null"])
    assert (config.output_dir, config.clients.state_dir, config.rounds) == ("2024", "no", 100)
    assert (config.clients.flare.exclude, config.data.synthetic.shape) == (("a.*", "no"), (1, 2, 3))
