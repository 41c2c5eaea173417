"""Exported models and masks: zero outside the mask, and in the format of torch.nn.utils.prune."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

from flare_dist import Part, Source
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.models.registry import build
from flare_dist.run.preprocessing import describe, header
from flare_dist.server.config import ServerConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.masks import BASE, BUDGET, TOPK
from tests.helpers.sparse_runs import checkpointed, of_rank_0


def test_checkpoints_and_exports_are_zero_outside_the_mask(tmp_path: Path) -> None:
    used = dataclasses.replace(BASE, compression=TOPK, server=ServerConfig(momentum=0.5))
    directory = checkpointed(tmp_path / "run", used)
    for round_ in (2, 3):
        saved = of_rank_0(directory, round_)
        outside = ~saved["server"]["masks"]["mask"]
        assert not saved["server"]["parameters"][outside].any()
        assert not saved["server"]["optimizer"]["state"][0]["momentum_buffer"][outside].any()
    for stem in ("model", "best"):
        weights = load_file(directory / f"{stem}.safetensors")
        masks = load_file(directory / f"{stem}.masks.safetensors")
        assert sorted(masks) == ["3.weight_mask", "7.weight_mask"]
        for name, mask in masks.items():
            assert not weights[name.removesuffix("_mask")][mask == 0].any()
        assert sum(int(mask.sum()) for mask in masks.values()) == BUDGET


def test_exported_masks_are_those_of_nn_utils_prune(tmp_path: Path) -> None:
    directory = checkpointed(tmp_path / "run", dataclasses.replace(BASE, rounds=1))
    weights, masks = load_file(directory / "model.safetensors"), load_file(directory / "model.masks.safetensors")
    model = build("cnn", "group", (1, 8, 8), 4, 0, CLASSIFICATION)
    model.load_state_dict(weights)  # a plain state_dict, with zeros
    pruned = build("cnn", "group", (1, 8, 8), 4, 1, CLASSIFICATION)
    for name in masks:
        prune.identity(pruned.get_submodule(name.split(".")[0]), "weight")
    renamed = {f"{key}_orig" if f"{key}_mask" in masks else key: value for key, value in weights.items()}
    pruned.load_state_dict(renamed | masks)
    inputs = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(inputs), pruned(inputs))


def test_models_say_what_their_inputs_and_outputs_are(tmp_path: Path) -> None:
    config = dataclasses.replace(BASE, rounds=1)
    directory = checkpointed(tmp_path / "run", config)
    data = load(config.data, config.seed)
    for stem in ("model", "best"):
        with safe_open(directory / f"{stem}.safetensors", "pt") as file:
            assert file.metadata() == header(describe(data))
    assert json.loads((directory / "preprocessing.json").read_text()) == describe(data)


def test_names_reach_the_header_and_tensors_as_they_are_have_no_statistics() -> None:
    part = Part(TensorDataset(torch.zeros(2, 3), torch.tensor([0, 1])), groups=["Zürich", "bern"])
    texts = header(describe(load(DataConfig(), 0, source=Source(part, part, classes=["cat", "Möwe"]))))
    assert texts["format"] == "pt"
    assert "Möwe" in texts["preprocessing"]
    found = json.loads(texts["preprocessing"])
    assert (found["task"], found["input_shape"], found["num_classes"]) == ("classification", [3], 2)
    assert (found["classes"], found["groups"]) == (["cat", "Möwe"], ["Zürich", "bern"])
    assert found["normalization"] is None
