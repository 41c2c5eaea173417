"""The configuration of a run: what its dataclasses refuse, expand and mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config, with_values
from flare_dist.config.load import load_config, with_arguments
from flare_dist.config.saved import to_yaml


@pytest.mark.parametrize(("written", "rule"), [("true", "ec"), ("false", "none"), ("ec", "ec"), ("none", "none")])
def test_error_feedback_is_a_rule_or_a_switch(written: str, rule: str) -> None:
    compression = with_arguments(Config(), ["--compression.error_feedback", written]).compression
    assert compression.rule == rule


@pytest.mark.parametrize(
    ("sparsifier", "density", "dense"),
    [("dense", 0.01, True), ("topk", 1.0, True), ("topk", 0.5, False), ("threshold", 1.0, False)],
)
def test_a_compression_is_dense_if_it_sends_everything(sparsifier: str, density: float, dense: bool) -> None:
    assert CompressionConfig(sparsifier=sparsifier, density=density).is_dense == dense


@pytest.mark.parametrize("key", ["output_dir", "clients.state_dir", "checkpoint.resume"])
def test_a_path_that_no_system_takes_is_refused_by_key(read_yaml: Any, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: .*no path has a byte of value 0"):
        read_yaml(f'{key}: "a\\0b"\n')


def test_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text(
        "output_dir: ~/out\ndata: {root: ~/data, tokenizer: ~/tok}\nclients: {state_dir: ~/st}\n"
        "checkpoint: {resume: ~/old}\nengine: {deepspeed_config: ~/ds.json}\n"
    )
    config = load_config(tmp_path / "my.yaml")
    found = [config.output_dir, config.data.root, config.clients.state_dir, config.checkpoint.resume]
    assert found == [str(tmp_path / name) for name in ("out", "data", "st", "old")]
    assert config.data.tokenizer == str(tmp_path / "tok")
    assert config.engine.deepspeed_config == str(tmp_path / "ds.json")
    assert "~" not in to_yaml(config)
    assert with_arguments(Config(), ["--output_dir=~/x"]).output_dir == str(tmp_path / "x")
    assert with_arguments(Config(), ["--config=~/my.yaml"]) == config
    with pytest.raises(ValueError, match=r"^data\.root: no home directory is known for ~nobody-here"):
        with_arguments(Config(), ["--data.root", "~nobody-here/data"])


def test_values_are_replaced_by_dotted_key_and_validated_together() -> None:
    values = {"rounds": 3, "clients.num": 3, "clients.per_round": 3, "clients.flare.tau": 0.5, "engine.threads": 4}
    config = with_values(Config(), values)
    as_typed = with_arguments(Config(), [f"--{key}={value}" for key, value in values.items()])
    assert config == as_typed
    assert with_values(config, {}) == config
    assert (
        with_values(config.clients, {"num": 5, "flare.tau": 1.0})
        == with_values(config, {"clients.num": 5, "clients.flare.tau": 1.0}).clients
    )
    with pytest.raises(ValueError, match=r"^clients\.per_round: more clients per round than there are, got 4"):
        with_values(config, {"clients.per_round": 4})


def test_a_run_without_a_directory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^output_dir: must name a directory, got nothing; choose one"):
        Config(output_dir="")


def test_compression_takes_effect_only_as_the_mode_uses_it() -> None:
    config = Config(compression=CompressionConfig(density=0.5, downlink="topk"))
    assert config.exchanged == config.compression
    assert dataclasses.replace(config, mode="centralised").exchanged.downlink == "dense"
    fp16 = with_arguments(Config(), ["--mode=gradient", "--gradients.hook=fp16", "--compression.density=0.5"])
    assert fp16.exchanged.is_dense
