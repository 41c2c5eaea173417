"""A frozen base is known by its digest: it neither travels nor is saved; constants do not travel either."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.fixed import base_digest, check_base, fix_base, fix_constants, fixed_of, load_trained
from flare_dist.layout import buffer_layout
from flare_dist.models.trial import constant_buffers
from flare_dist.rounds.alike import share_start
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.ranks import run_ranks


class Adapted(nn.Module):
    """A frozen layer from elsewhere, a trained one, and buffers that never change, change, and are not saved."""

    def __init__(self, base: float = 1.0, trained: float = 2.0) -> None:
        super().__init__()
        self.base = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("scale", torch.tensor([3.0]))
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        with torch.no_grad():
            for part, value in ((self.base, base), (self.head, trained)):
                for parameter in part.parameters():
                    parameter.fill_(value)
        fix_base(self, ["base.weight", "base.bias", "head.bias"])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.norm(self.head(self.base(inputs)))


def test_only_what_is_frozen_is_base() -> None:
    assert fixed_of(Adapted()).base == {"base.weight", "base.bias"}
    assert fixed_of(nn.Linear(2, 2)).base == frozenset()
    assert base_digest(nn.Linear(2, 2)) is None


def test_the_digest_is_that_of_the_base_alone() -> None:
    assert base_digest(Adapted(1.0, 2.0)) == base_digest(Adapted(1.0, 5.0)) != base_digest(Adapted(1.5, 2.0))
    assert base_digest(Adapted().to(torch.bfloat16)) != base_digest(Adapted())


def test_a_model_brings_the_base_to_what_was_saved() -> None:
    saved = Adapted(trained=7.0)
    state = {name: value for name, value in saved.state_dict().items() if name not in fixed_of(saved).base}
    model = Adapted()
    load_trained("export", "a file", model, state, base_digest(saved))
    assert (model.head.weight == 7).all()
    assert (model.base.weight == 1).all()
    with pytest.raises(ValueError, match=r"^export: a file was trained on a base of SHA-256 [0-9a-f]{16}, and model"):
        load_trained("export", "a file", Adapted(base=2.0), state, base_digest(saved))
    with pytest.raises(
        ValueError, match=r"^export: a file holds another model .*\(head.weight is in one of them only\)"
    ):
        load_trained(
            "export", "a file", model, {k: v for k, v in state.items() if k != "head.weight"}, base_digest(saved)
        )
    with pytest.raises(ValueError, match="of SHA-256 none, and"):
        check_base("export", "an older file", base_digest(model), None)


def test_buffers_that_a_step_does_not_change_are_constants() -> None:
    model = Adapted()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    constants = constant_buffers(model, (inputs, torch.tensor([0, 1])), CLASSIFICATION)
    assert constants == ["scale", "table"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    fix_constants(model, constants)
    assert [entry.name for entry in buffer_layout(model).entries] == ["norm.running_mean", "norm.running_var"]
    assert fixed_of(model).base


def begin(world: World, base: float) -> float:
    model = Adapted(base if world.rank else 1.0, trained=world.rank)
    share_start(world, model)
    assert (model.head.weight == 0).all()
    return float(model.base.weight[0, 0])


@pytest.mark.parametrize("base", [1.0, 4.0])
def test_ranks_begin_with_the_base_of_rank_0(base: float) -> None:
    assert run_ranks(begin, 2, base) == [1.0, 1.0]


def test_a_base_that_all_ranks_have_does_not_travel() -> None:
    moved: list[int] = []

    class Two(World):
        def broadcast_to_all_(self, tensor: Tensor) -> Tensor:
            moved.append(tensor.numel())
            return tensor

    share_start(Two(), Adapted())
    whole = sum(tensor.nbytes for tensor in (*Adapted().parameters(), *Adapted().buffers()))
    assert sum(moved) == whole - Adapted().base.weight.nbytes - Adapted().base.bias.nbytes
