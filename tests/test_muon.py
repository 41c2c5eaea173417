"""Muon steps the hidden matrices of a model, AdamW the rest, each at its own rate."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.muon import Both, MuonConfig
from flare_dist.clients.optimizers import find_optimizer
from flare_dist.schedules import set_lr

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch.optim.Muon")

LR = 0.02


class Text(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 1)
        self.hidden = nn.Linear(6, 6)
        self.up = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 11)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        moved = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(self.up(self.hidden(moved).tanh()))


def made(model: nn.Module, settings: MuonConfig | None = None) -> Both:
    make = find_optimizer("muon", {}, settings, model)
    optimizer = make(list(model.named_parameters()), LR, 0.0, 0.1)
    assert isinstance(optimizer, Both)
    return optimizer


def by_muon(model: nn.Module, **settings: Any) -> list[str]:
    stepped = {id(p) for p in made(model, MuonConfig(**settings)).param_groups[0]["params"]}
    return [name for name, weight in model.named_parameters() if id(weight) in stepped]


def test_muon_steps_hidden_matrices() -> None:
    assert by_muon(Text()) == by_muon(Text(tied=True)) == ["hidden.weight", "up.weight"]
    assert by_muon(Text(), adamw=("*embed*", "up.*")) == ["hidden.weight", "head.weight"]
    assert by_muon(Text(), adamw=()) == ["embed.weight", "hidden.weight", "up.weight", "head.weight"]


def test_a_step_is_that_of_both_optimizers_and_goes_on_after_loading() -> None:
    one, other = Text(), Text()
    settings = MuonConfig(momentum=0.9, adjust_lr="match_rms_adamw", adamw_lr=0.003)
    both = made(one, settings)
    hidden = [other.hidden.weight, other.up.weight]
    rest = [weight for weight in other.parameters() if all(weight is not one for one in hidden)]
    parts = [
        torch.optim.Muon(hidden, LR, 0.1, 0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, 0.003, (0.9, 0.95), weight_decay=0.1),
    ]
    tokens = torch.arange(22).view(2, 11) % 11
    for step in range(4):
        if step == 2:  # as a resumed run does
            saved = copy.deepcopy(both.state_dict())
            both = made(one, settings)
            both.load_state_dict(saved)
        for model in (one, other):
            model.zero_grad()
            model(tokens).square().sum().backward()
        both.step()
        for part in parts:
            part.step()
    for name, weight in one.named_parameters():
        torch.testing.assert_close(weight, dict(other.named_parameters())[name])
    set_lr(both, LR / 2)
    assert [group["lr"] for group in both.param_groups] == [LR / 2, 0.0015]


def test_a_model_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^clients\.optimizer: Muon steps matrices, and .*, got muon; use adamw$"):
        made(nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_options": {"lr": 1.0}}, "clients.optimizer_options"),
        ({"momentum": 0.9}, "clients.momentum: only sgd takes momentum, got 0.9 with clients.optimizer=muon; set 0"),
    ],
)
def test_settings_that_muon_does_not_take_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ClientsConfig(optimizer="muon", **settings)


@pytest.mark.parametrize(
    ("key", "value"), [("momentum", 1.0), ("adjust_lr", "shape"), ("adamw_lr", 0.0), ("adamw_betas", (0.9, 1.0))]
)
def test_errors_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^clients\.muon\.{key}: "):
        dataclasses.replace(MuonConfig(), **{key: value})


def test_a_pytorch_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"^clients\.optimizer: torch\.optim of PyTorch .* install torch 2\.9 or"):
        ClientsConfig(optimizer="muon")
