"""Options of a callable: a later file replaces them, an argument changes one value, typed as in YAML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flare_dist.config.config import Config
from flare_dist.config.load import build_config, with_arguments
from flare_dist.config.option_layers import OptionLayers
from flare_dist.config.saved import to_yaml
from tests.helpers.configs import cached_parser

OPEN = "model: {name: 'tests.test_option_layers:net', options: %s}\n"


def net(input_shape: Any, num_classes: int, **options: Any) -> None: ...


def read(*arguments: str) -> dict[str, Any]:
    parser = cached_parser()
    return dict(build_config(parser, parser.parse_args(list(arguments))).model.options)


def test_a_later_file_replaces_options_and_arguments_change_them(layers: Any) -> None:
    files = layers(OPEN % "{a: 1, lora: {r: 4, targets: [q, v]}}", "rounds: 3\n")
    assert read(*files) == {"a": 1, "lora": {"r": 4, "targets": ["q", "v"]}}
    changed = ["--model.options.lora.r", "8", "--model.options.b=2"]
    assert read(*changed, *files) == {"a": 1, "lora": {"r": 8, "targets": ["q", "v"]}, "b": 2}
    assert read(*files, "--model.options={c: 3}", "--model.options.d=4") == {"c": 3, "d": 4}
    assert read(*files, "--model.options.d=4", "--model.options={c: 3}") == {"c": 3}
    assert read(*files, "--model={options: {e: 5}}", "--model.options.f=6") == {"e": 5, "f": 6}
    assert read(*layers(OPEN % "{a: 1}", "model: {options: {b: 2}}\n")) == {"b": 2}
    assert read(*files, "--model.options.a.deep=1")["a"] == {"deep": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("1.0", 1.0),
        ("0x10", 16),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
        ("word", "word"),
        ('"8"', "8"),
        ("'true'", "true"),
        ("[1, '2', {a: 1e3}]", [1, "2", {"a": 1000.0}]),
        ("{a: {b: no}}", {"a": {"b": False}}),
        (".inf", float("inf")),
        ("12:30:15", "12:30:15"),
        ("", None),
    ],
)
def test_a_value_is_typed_as_in_yaml_wherever_it_is_written(layers: Any, text: str, value: object) -> None:
    argument = read(*layers(OPEN % "{}"), f"--model.options.x.y={text}")
    assert argument == {"x": {"y": value}}
    assert type(argument["x"]["y"]) is type(value)
    assert read(*layers(OPEN % f"{{x: {{y: {text}}}}}")) == argument


def test_options_are_saved_and_read_as_they_are(tmp_path: Path) -> None:
    options = {"text": "1e3", "digits": "8", "no": "no", "null": "null", "list": ["1", 1, 1.5, None, {"a": ".inf"}]}
    base = with_arguments(Config(), ["--model.name=tests.test_option_layers:net"])
    config = replace(base, model=replace(base.model, options=options))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read("--config", str(tmp_path / "config.yaml")) == options
    assert with_arguments(config, ["--rounds=3"]).model.options == options
    assert with_arguments(config, ["--model.options.list=2"]).model.options == options | {"list": 2}


def test_merge_keys_work_and_nothing_is_written_twice(layers: Any) -> None:
    assert read(*layers("data: {}\n" + OPEN % "{a: &x {r: 1, s: 2}, b: {<<: *x, r: 3}}"))["b"] == {"r": 3, "s": 2}
    with pytest.raises(ValueError, match=r"^model\.options: .*0\.yaml:1: expected each key once, got a twice"):
        read(*layers(OPEN % "{a: 1, a: 2}"))
    with pytest.raises(ValueError, match=r"^model\.options: .*: expected keys and values, got 3"):
        read(*layers(OPEN % "3"))


def test_an_option_that_is_refused_is_located_in_its_file(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"^model\.options\.a: .*0\.yaml:1: 2nn takes no such option, got 1; leave it"):
        read(*layers("model: {options: {a: 1}}\n"))
    with pytest.raises(ValueError, match=r"^model\.options\.a: 2nn takes no such option, got 1; leave it out"):
        read("--model.options.a=1")


def test_keys_without_options_have_no_owner() -> None:
    layers = OptionLayers({"model.options": {}})
    assert layers.owner("model.options") == layers.owner("model.options.a.b") == "model.options"
    assert layers.owner("model.optionsx") == layers.owner("model") == ""
