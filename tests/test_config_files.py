"""A configuration file is read as it is written, or refused in one line that names the key, the file and the line."""

from __future__ import annotations

import importlib.util
import re
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flare_dist import cli
from flare_dist.cli.sweeps import sweep_parser
from flare_dist.config.config import Config, as_dict, build_config, config_parser, load_config, to_yaml, with_arguments
from flare_dist.config.parser import ConfigParser

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz_configs.py"


@pytest.fixture(scope="module")
def parser() -> ConfigParser:
    return config_parser()


@pytest.fixture
def read(parser: ConfigParser, tmp_path: Path) -> Any:
    """Make a function from the content of my.yaml to the configuration."""
    path = tmp_path / "my.yaml"

    def read(content: str | bytes) -> Config:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return build_config(parser, parser.parse_args(["--config", str(path)]))

    return read


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize(
    ("content", "key", "line", "said"),
    [
        ("clients: {num: 3}\nrounds: 2\nclients: {lr: 0.5}\n", "clients", 3, "is written twice, at {path}:1"),
        ("rounds: 2\nrounds: 2\n", "rounds", 2, "is written twice, at {path}:1"),
        ("clients:\n  flare:\n    tau: 1\n  flare: {decay: 2}\n", "clients.flare", 4, "is written twice"),
        ("clients: {lr: 0.5}\nclients.lr: 0.1\n", "clients.lr", 2, "is written twice"),
        ("clients:\n  num: 3\n  lr:\n", "clients.lr", 3, "expected a number, got nothing; write a value, or leave"),
        ("output_dir: null\n", "output_dir", 1, "expected text, got null"),
        ("clients:\nrounds: 2\n", "clients", 1, "expected keys and values, got nothing"),
        ("clients: 3\n", "clients", 1, "expected keys and values, got a value"),
        ("rounds: true\n", "rounds", 1, "expected a whole number, got true"),
        ("rounds: 2.5\n", "rounds", 1, "expected a whole number, got 2.5"),
        ('rounds: "2"\n', "rounds", 1, "expected a whole number, got the text '2'; write it without quotation marks"),
        ("rounds: 1:30\n", "rounds", 1, "expected a whole number, got 1:30"),
        ("seed: 9223372036854775808\n", "seed", 1, "within the range of 64 bits"),
        ("clients: {lr: .nan}\n", "clients.lr", 1, "expected a finite number, got .nan"),
        ("compression: {threshold: .inf}\n", "compression.threshold", 1, "expected a finite number, got .inf"),
        ("clients: {lr: [0.1]}\n", "clients.lr", 1, "expected a number, got a list of 1"),
        ("clients: {per_round: None}\n", "clients.per_round", 1, "expected a whole number or null, got None"),
        ("data: {download: 1}\n", "data.download", 1, "expected true or false, got 1"),
        ("data:\n  synthetic:\n    shape: [8, 8]\n", "data.synthetic.shape", 3, "expected a list of 3 whole numbers"),
        ("clients: {flare: {exclude: a.*}}\n", "clients.flare.exclude", 1, "expected a list of texts, got a.*"),
        ("clients: {nmu: 3}\n", "clients.nmu", 1, "there is no such key; did you mean clients.num?"),
        ("lr: 0.1\n", "lr", 1, "there is no such key; did you mean clients.lr or server.lr?"),
        ("clinets: {num: 3}\n", "clinets", 1, "there is no such key; did you mean clients?"),
        ("rounds: !my 3\n", "rounds", 1, "the tag !my is not known"),
        ("rounds: 2\nclients: {lr: -1}\n", "clients.lr", 2, "must be positive and below 1e38, got -1"),
    ],
)
def test_wrong_content_is_refused_by_key_and_line(
    read: Any, tmp_path: Path, content: str, key: str, line: int, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "my.yaml"))) as caught:
        read(content)
    message = str(caught.value)
    assert message.startswith(f"{key}: {tmp_path / 'my.yaml'}:{line}: ")
    assert said.replace("{path}", str(tmp_path / "my.yaml")) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "place", "said"),
    [
        ("", "", "is empty"),
        ("# nothing yet\n", "", "is empty"),
        ("- rounds: 2\n", "", "expected keys and values, got a list"),
        ("rounds", "", "expected keys and values, got a single value"),
        ("# café\nrounds: 2\n".encode("latin-1"), ":1", "is not UTF-8 (byte 0xe9); save the file as UTF-8"),
        ("rounds: 2\n---\nrounds: 3\n", ":2", "expected a single document, got a second one after ---"),
        ("clients:\n\tnum: 3\n", ":2", "indent with spaces, not tabs"),
        ("rounds: 2\nx: \0\n", ":2", "is no text"),
        ("rounds: *other\n", ":1", "found undefined alias 'other'"),
        ("[" * 1500, "", "is nested too deeply"),
        ("engine: {deepspeed_config: &a {b: *a}}\n", "", "an alias contains itself"),
        ("? [a]\n: b\n", ":1", "a key must be a word"),
    ],
)
def test_a_file_without_a_configuration_is_refused_by_path(
    read: Any, tmp_path: Path, content: str | bytes, place: str, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "my.yaml"))) as caught:
        read(content)
    message = str(caught.value)
    assert message.startswith(f"config: {tmp_path / 'my.yaml'}{place}: ")
    assert said in message


def test_an_empty_value_is_refused_unless_its_type_takes_none(parser: ConfigParser, tmp_path: Path) -> None:
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
def test_a_value_is_read_by_the_type_of_its_key(read: Any, content: str, key: str, value: object) -> None:
    found: Any = as_dict(read(content))
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
def test_the_command_line_refuses_what_a_file_refuses(read: Any, tmp_path: Path, key: str, text: str) -> None:
    with pytest.raises(ValueError, match="expected") as in_file:
        read(f"{key}: {text}\n")
    with pytest.raises(ValueError, match="expected") as in_argument:
        with_arguments(Config(), [f"--{key}", text])
    assert str(in_file.value).replace(f" {tmp_path / 'my.yaml'}:1:", "") == str(in_argument.value)


@pytest.mark.parametrize("key", ["output_dir", "clients.state_dir", "checkpoint.resume"])
def test_an_impossible_path_is_refused_by_key(read: Any, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: .*no path has a byte of value 0"):
        read(f'{key}: "a\\0b"\n')


def test_the_command_line_takes_texts_as_they_are() -> None:
    given = ["--output_dir", "2024", "--clients.state_dir=no", "--clients.flare.exclude", "[a.*, no]", "--rounds=1e2"]
    config = with_arguments(Config(), [*given, "--data.synthetic", "{shape: [1, 2, 3]}", "--clients.per_round", "null"])
    assert (config.output_dir, config.clients.state_dir, config.rounds) == ("2024", "no", 100)
    assert (config.clients.flare.exclude, config.data.synthetic.shape) == (("a.*", "no"), (1, 2, 3))


def test_a_key_that_an_argument_sets_has_no_line(parser: ConfigParser, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("clients: {lr: 0.1}\nrounds: 3\n")
    options = parser.parse_args(["--config", str(tmp_path / "my.yaml"), "--clients.lr", "-2"])
    with pytest.raises(ValueError, match=r"^clients\.lr: must be positive"):
        build_config(parser, options)


def test_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text(
        "output_dir: ~/out\ndata: {root: ~/data}\nclients: {state_dir: ~/st}\ncheckpoint: {resume: ~/old}\n"
        "engine: {deepspeed_config: ~/ds.json}\n"
    )
    config = load_config(tmp_path / "my.yaml")
    found = [config.output_dir, config.data.root, config.clients.state_dir, config.checkpoint.resume]
    assert found == [str(tmp_path / name) for name in ("out", "data", "st", "old")]
    assert config.engine.deepspeed_config == str(tmp_path / "ds.json")
    assert "~" not in to_yaml(config)
    assert with_arguments(Config(), ["--output_dir=~/x"]).output_dir == str(tmp_path / "x")
    assert with_arguments(Config(), ["--config=~/my.yaml"]) == config
    with pytest.raises(ValueError, match=r"^data\.root: no home directory is known for ~nobody-here"):
        with_arguments(Config(), ["--data.root", "~nobody-here/data"])


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; returns its one line."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["partition", "--clients.l", "1"],
            "--clients.l: there is no such option; did you mean --clients.l",
        ),
        (["compare", "--lr", "1"], "--lr: there is no such option; did you mean --clients.lr or --server.lr?"),
        (["bandwidth", "run", "--out", "x"], "--out: there is no such option; did you mean --output_dir?"),
        (["bandwidth", "run", "--ranks", "x"], "--ranks: expected a whole number, got x"),
        (["train", "--conf", "my.yaml"], "--conf: there is no such option; did you mean --config?"),
        (["train", "--config", "{tmp}"], "config: {tmp}: is a directory"),
        (["sweep", "--config", "{tmp}/none.yaml"], "config: {tmp}/none.yaml: there is no such file"),
        (["evaluate", "~/none"], "{tmp}/none/config.yaml does not exist"),
        (["partition", "--output_dir", "{tmp}/my.yaml/x"], "output_dir: cannot write to {tmp}/my.yaml/x"),
        (["partition", "--config", "{tmp}/my.yaml"], "clients.num: {tmp}/my.yaml:1: must be in"),
        (["sweep", "--config", "{tmp}/my.yaml", "--grid", "clients.num=-1"], "clients.num: must be at least 1, got -1"),
    ],
)
def test_commands_refuse_wrong_files_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("clients: {num: 5000}\n")
    message = failed(capsys, *[argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    assert said.replace("{tmp}", str(tmp_path)) in message


def test_a_sweep_reads_its_own_options_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("seeds: 1,2\nranks: 2\nrounds: 3\n")
    options = sweep_parser().parse_args(["--config", str(tmp_path / "my.yaml")])
    assert (options.seeds, options.ranks, options.rounds) == ("1,2", 2, 3)
    (tmp_path / "my.yaml").write_text("ranks: two\n")
    with pytest.raises((ValueError, ArgumentError), match=rf"^ranks: {tmp_path}/my.yaml:1: expected a whole number"):
        sweep_parser().parse_args(["--config", str(tmp_path / "my.yaml")])


def test_saved_configurations_read_back(read: Any, tmp_path: Path) -> None:
    config = Config(output_dir="2024")
    assert read(to_yaml(config)) == config
    assert yaml.safe_load(to_yaml(config))["output_dir"] == "2024"


def test_damaged_files_are_read_or_refused_with_their_path() -> None:
    """Read the first files that `python benchmarks/fuzz_configs.py` makes, with its seed."""
    spec = importlib.util.spec_from_file_location("fuzz_configs", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counts, wrong = module.fuzz(80, module.SEED)
    assert not wrong
    assert counts["accepted"]
    assert counts["refused"]
