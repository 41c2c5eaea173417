"""Adapters are what is trained of a pretrained model, and PEFT models of the user's are understood alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from flare_dist.fixed import fixed_of
from flare_dist.models.adapters import base_of_peft, with_lora
from flare_dist.models.registry import build
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.vocabulary import Vocabulary
from tests.helpers.hugging_face import tiny_bert

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("default")  # of other people's code


def layers() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))


def trained(model: nn.Module) -> set[str]:
    found = (name.split(".") for name, value in model.named_parameters() if value.requires_grad)
    return {part for parts in found for part in parts if part.startswith("lora_")}


def test_lora_trains_two_factors_and_ffa_the_one_that_begins_with_zeros() -> None:
    options = {"r": 2, "target_modules": ["0", "1"]}
    both = with_lora(layers(), options, None)
    assert trained(both) == {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
    ffa = with_lora(layers(), options | {"freeze_a": True}, None)
    assert trained(ffa) == {"lora_B", "lora_embedding_A"}
    assert not any(value.any() for value in ffa.parameters() if value.requires_grad)


def test_the_mean_of_ffa_clients_is_the_mean_of_what_they_do() -> None:
    clients = [with_lora(layers(), {"r": 2, "target_modules": ["1"], "freeze_a": True}, None) for _ in range(3)]
    mean = with_lora(layers(), {"r": 2, "target_modules": ["1"], "freeze_a": True}, None)
    for client in clients:
        client.load_state_dict(mean.state_dict())
        for value in client.parameters():
            if value.requires_grad:
                nn.init.normal_(value)
    with torch.no_grad():
        for name, value in mean.named_parameters():
            if value.requires_grad:
                value.copy_(torch.stack([dict(client.named_parameters())[name] for client in clients]).mean(0))
    tokens = torch.arange(9)
    outputs = torch.stack([client(tokens) for client in clients]).double().mean(0)
    torch.testing.assert_close(mean(tokens).double(), outputs, rtol=1e-4, atol=1e-5)


def test_the_base_is_what_is_no_adapter() -> None:
    assert not base_of_peft(layers())
    base = set(base_of_peft(with_lora(layers(), {"r": 2, "target_modules": ["1"]}, None)))
    assert base == {f"base_model.model.{name}" for name in ("0.weight", "1.base_layer.weight", "1.base_layer.bias")}


class Wrapped(nn.Module):
    """A PEFT model of somebody's, in a module of theirs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
        self.net = peft.get_peft_model(net, peft.LoraConfig(r=1, target_modules=["1"]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(inputs)
        return scores


def wrapped(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Wrapped(num_classes)


def test_a_peft_model_of_the_user_s_has_a_base_too() -> None:
    model = build("tests.test_adapters:wrapped", "keep", (1, 2, 2), 3, 0, CLASSIFICATION)
    assert {name.rpartition("base_layer.")[2] for name in fixed_of(model).base} == {"weight", "bias"}


@pytest.mark.parametrize("lora", [True, 8, ["r"]])
def test_settings_are_a_mapping(tmp_path: Path, lora: object) -> None:
    name = f"hf:{tiny_bert(tmp_path)}"
    with pytest.raises(ValueError, match=r"^model.options.lora: must be arguments of peft.LoraConfig, got "):
        build(name, "keep", (8,), 2, 0, CLASSIFICATION, torch.int64, {"lora": lora}, vocabulary=Vocabulary(257, 256))
