"""A configuration file is read whole, or one line says what is wrong with it, and in which line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz_configs.py"


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
        ("rounds: 2\nclients: {lr: -1}\n", "clients.lr", 2, "out of range, got -1"),
    ],
)
def test_wrong_content_is_refused_by_key_and_line(
    read_yaml: Any, tmp_path: Path, content: str, key: str, line: int, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "my.yaml"))) as caught:
        read_yaml(content)
    message = str(caught.value)
    assert message.startswith(f"{key}: {tmp_path / 'my.yaml'}:{line}: ")
    assert said.replace("{path}", str(tmp_path / "my.yaml")) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "where", "said"),
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
def test_a_file_that_is_no_configuration_is_refused_by_path(
    read_yaml: Any, tmp_path: Path, content: str | bytes, where: str, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "my.yaml"))) as caught:
        read_yaml(content)
    message = str(caught.value)
    assert message.startswith(f"config: {tmp_path / 'my.yaml'}{where}: ")
    assert said in message


def test_damaged_files_are_read_or_refused_with_their_path() -> None:
    """A part of what `python benchmarks/fuzz_configs.py` reads; the seed stands there."""
    spec = importlib.util.spec_from_file_location("fuzz_configs", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counts, wrong = module.fuzz(80, module.SEED)
    assert not wrong
    assert counts["accepted"]
    assert counts["refused"]
