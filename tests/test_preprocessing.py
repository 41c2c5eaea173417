"""What a model expects stands beside it, and gives the inputs that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flare_dist.config.config import Config
from flare_dist.data.batches import first_batch
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.records.rundir import PREPROCESSING
from flare_dist.run.preprocessing import as_json, describe, of_run
from tests.helpers.images import write_tree

DIGITS = load(DataConfig(), 0)


def test_pixels_between_0_and_1_become_what_the_model_was_trained_on() -> None:
    described = json.loads(as_json(describe(DIGITS)))
    assert described["task"] == "classification"
    assert described["input_shape"] == [1, 8, 8]
    assert described["classes"] == list("0123456789")
    by = described["normalization"]
    mean, std = (torch.tensor(by[name]).view(-1, 1, 1) for name in ("mean", "std"))
    pixels = DIGITS.test.inputs[:4] / 16.0  # as somebody else reads them
    inputs, _ = first_batch(DIGITS.test, DIGITS.mean, DIGITS.std, size=4)
    torch.testing.assert_close((by["scale"] * pixels - mean) / std, inputs)


@pytest.mark.parametrize(("normalize", "mean", "std"), [("none", [0.0], [1.0]), ("unit", [0.0], [16.0])])
def test_other_normalizations_are_told_in_the_same_form(normalize: str, mean: list[float], std: list[float]) -> None:
    by = describe(load(DataConfig(normalize=normalize), 0))["normalization"]
    assert (by["mean"], by["std"], by["scale"]) == (mean, std, 16.0)


def test_classes_of_folders_are_told_by_name(tmp_path: Path) -> None:
    write_tree(tmp_path)
    described = describe(load(DataConfig(name="image_folder", root=str(tmp_path)), 0))
    assert described["classes"] == sorted(folder.name for folder in (tmp_path / "train").iterdir())
    assert described["normalization"]["scale"] == 255.0


def test_what_a_run_has_written_needs_no_data(tmp_path: Path) -> None:
    config = Config(data=DataConfig(name="mnist", root=str(tmp_path / "gone")))
    (tmp_path / PREPROCESSING).write_text(as_json(describe(DIGITS)), encoding="utf-8")
    assert of_run(tmp_path, config, None) == describe(DIGITS)
    (tmp_path / PREPROCESSING).write_text("{")
    with pytest.raises(ValueError, match=r"^export: .*preprocessing.json is damaged: .*; remove it, and it is made"):
        of_run(tmp_path, config, None)


def test_an_older_run_is_described_by_its_data(tmp_path: Path) -> None:
    assert of_run(tmp_path, Config(data=DataConfig(name="digits")), None) == describe(DIGITS)
    with pytest.raises(ValueError, match=r"^data.root: mnist needs "):
        of_run(tmp_path, Config(data=DataConfig(name="mnist")), str(tmp_path))
