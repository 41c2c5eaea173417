"""A small model, its batches and training loops around the hook, for the tests of hook/ and of engines/attach.py."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.ddp import sparse_hook
from flare_dist.hook.state import SparseHookState

STEPS = 20
INPUTS = 12
CLASSES = 4


class Net(nn.Module):
    """An MLP whose middle layer can be left out of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, 40)
        self.middle = nn.Linear(40, 40)
        self.last = nn.Linear(40, CLASSES)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(x if skip else F.relu(self.middle(x)))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, INPUTS, generator=rng), torch.randint(CLASSES, (8,), generator=rng)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def with_hook(
    model: nn.Module, ddp: dict[str, Any] | None = None, **settings: Any
) -> tuple[DistributedDataParallel, SparseHookState]:
    wrapped = DistributedDataParallel(model, **(ddp or {}))
    state = SparseHookState(wrapped, **settings)
    wrapped.register_comm_hook(state, sparse_hook)
    return wrapped, state


def train(
    world: World,
    settings: dict[str, Any] | None = None,
    ddp: dict[str, Any] | None = None,
    steps: int = STEPS,
    accumulate: int = 1,
) -> tuple[Tensor, dict[str, Any]]:
    """(parameters, memory) after `steps` of SGD; plain DDP without settings."""
    model = net()
    wrapped, state = (
        (DistributedDataParallel(model, **(ddp or {})), None) if settings is None else with_hook(model, ddp, **settings)
    )
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            inputs, labels = batch(world.rank, accumulate * step + part)
            with nullcontext() if part == accumulate - 1 else wrapped.no_sync():
                F.cross_entropy(wrapped(inputs), labels).backward()
        optimizer.step()
    return flat(model), state.state_dict() if state else {}


def assert_same_memory(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["step"] == other["step"]
    assert one["memory"].keys() == other["memory"].keys()
    for name, own in other["memory"].items():
        assert all(torch.equal(one["memory"][name][kind], vector) for kind, vector in own.items())


def assert_resumed_is_straight(
    take: Callable[[nn.Module, range], None],
    directory: str,
    settings: dict[str, Any],
    kill_at: int,
    steps: int,
    resumed: dict[str, Any] | None = None,
) -> None:
    """Train `steps` steps straight, and killed after `kill_at` and resumed under DDP's settings `resumed`: same bits.

    `take(ddp, numbers)` takes the steps of these numbers.
    """
    straight, state = with_hook(net(), **settings)
    take(straight, range(steps))
    model = net()
    killed, hook = with_hook(model, **settings)
    take(killed, range(kill_at))
    flare_dist.save_hook_state(hook, directory)

    fresh, hook = with_hook(model, resumed, **settings)
    flare_dist.load_hook_state(hook, directory, step=kill_at)
    take(fresh, range(kill_at, steps))
    assert torch.equal(flat(fresh), flat(straight))
    assert_same_memory(hook.state_dict(), state.state_dict())


def break_off(gradient: Tensor) -> None:
    raise RuntimeError("broken off")


def step(model: nn.Module, optimizer: Any, rank: int, number: int, accelerator: Accelerator | None = None) -> None:
    inputs, labels = batch(rank, number)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), labels)
    accelerator.backward(loss) if accelerator else loss.backward()
    optimizer.step()


def make_accelerator(world: World, **settings: Any) -> Accelerator:
    """Make an accelerator as under a launcher; the process group is there already."""
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.rank),
        MASTER_ADDR="localhost",
        MASTER_PORT="1",
    )
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, **settings)
    assert accelerator.num_processes == world.size
    return accelerator


def steps_of(
    accelerator: Accelerator, rank: int, directory: str, until: int, start: int
) -> tuple[Tensor, dict[str, Any]]:
    """Take steps `start` to `until`, from the state in `directory` if start > 0, to the state there."""
    model = net()
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    state = flare_dist.attach(accelerator, prepared, density=0.05)
    if start:
        accelerator.load_state(directory)
    for number in range(start, until):
        step(prepared, optimizer, rank, number, accelerator)
    accelerator.save_state(directory)
    return flat(model), state.state_dict()


def attached(**settings: Any) -> tuple[DistributedDataParallel, flare_dist.SparseHookState]:
    ddp = DistributedDataParallel(net())
    return ddp, flare_dist.attach(ddp, **{"density": 0.05, **settings})


def backward(ddp: nn.Module, rank: int, numbers: range) -> None:
    for number in numbers:
        inputs, labels = batch(rank, number)
        F.cross_entropy(ddp(inputs), labels).backward()


def said_by(call: Callable[[], Any]) -> list[str]:
    """Return what a call warns of, and the one line of the ValueError that it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except ValueError as error:
            return [f"refused: {error}"]
    return [str(each.message) for each in caught if each.category is UserWarning]
