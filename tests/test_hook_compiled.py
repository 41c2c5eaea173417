"""A DDP model that torch.compile compiles exchanges as the same model does uncompiled, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from tests.ranks import run_ranks

STEPS = 3


class Net(nn.Module):
    """Large enough for two buckets; that of a class of torch.nn, torch.compile would not enter from DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 520)
        self.middle = nn.Linear(520, 520)
        self.last = nn.Linear(520, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.middle(self.first(inputs).tanh()).tanh())
        return outputs


def trained(world: World, backend: str | None) -> tuple[dict[str, Tensor], int, int]:
    """The parameters and the memory behind a few steps, the buckets of the last step, and the compiled graphs."""
    torch.manual_seed(0)
    model = Net()
    ddp: Any = DistributedDataParallel(model, bucket_cap_mb=1)  # less is not for torch.compile
    counters.clear()
    if backend:
        ddp = torch.compile(ddp, backend=backend)
    state = flare_dist.attach(ddp, density=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(world.rank)
    for _ in range(STEPS):
        inputs = torch.randn(8, 20, generator=draws)
        targets = torch.randint(10, (8,), generator=draws)
        before = state.traffic.collectives
        nn.functional.cross_entropy(ddp(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, own in state.state_dict()["memory"].items():
        found |= {f"{kind} of {name}": vector.flatten() for kind, vector in own.items()}
    return found, state.traffic.collectives - before, counters["stats"]["unique_graphs"]


def compared(world: World, backend: str) -> tuple[list[str], list[int], list[int]]:
    """What is not alike, and the buckets and graphs without and with the compiler."""
    expected, *plain = trained(world, None)
    found, *compiled = trained(world, backend)
    return [name for name in expected if not torch.equal(found[name], expected[name])], plain, compiled


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_ddp_gives_the_bits_of_an_uncompiled_one(backend: str) -> None:
    for different, plain, compiled in run_ranks(compared, 2, backend):
        assert not different
        assert plain == [2, 0]
        assert compiled == [2, 1]
