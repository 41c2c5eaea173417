"""Shards of an optimizer's weights and state make up whole vectors, and are filled from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD

from flare_dist.comm.world import World
from flare_dist.engines.deepspeed_shards import Shards
from tests.ranks import run_ranks

CPU = torch.device("cpu")
WHOLE = torch.arange(7.0)  # two ranks have four entries each, of which the last is padding


def sharded(world: World) -> tuple[Tensor, Tensor, Tensor, int]:
    """(own weights, the whole vector, the whole momentum, entries of the own share) after one step."""
    own = nn.Parameter(torch.full((4,), -1.0))
    shards = Shards(SGD([own], lr=1.0, momentum=0.5), len(WHOLE), world.size, CPU)
    shards.scatter(WHOLE, shards.weights)
    scattered = own.detach().clone()
    own.grad = scattered.clone()
    shards.optimizer.step()
    momentum = shards.optimizer_state()["momentum_buffer"]
    shards.load_optimizer_state({"momentum_buffer": momentum * 2})
    ((_, share),) = shards.shares(WHOLE, shards.weights)
    assert torch.equal(shards.optimizer_state()["momentum_buffer"], momentum * 2)
    return scattered, shards.gather([scattered]), momentum, len(share)


def test_two_shards_make_up_a_vector_without_the_padding() -> None:
    first, second = run_ranks(sharded, 2)
    assert first[0].tolist() == [0, 1, 2, 3]
    assert second[0].tolist() == [4, 5, 6, -1]
    for _, whole, momentum, _ in (first, second):
        assert torch.equal(whole, WHOLE)
        assert torch.equal(momentum, WHOLE)
    assert (first[3], second[3]) == (4, 3)


def test_one_shard_has_a_tensor_for_each_parameter() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]
    shards = Shards(SGD(weights, lr=1.0), len(WHOLE), 1, CPU)
    assert shards.optimizer_state() == {}
    shards.scatter(WHOLE, shards.weights)
    assert weights[0].tolist() == [[0, 1], [2, 3]]
    assert torch.equal(shards.gather(shards.weights), WHOLE)
