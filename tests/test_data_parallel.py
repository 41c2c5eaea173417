"""A model in DDP exchanges its gradients by the hook that the configuration names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.hook.library import LibraryHookState
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.engines import CPU, sgd, small_net
from tests.ranks import run_ranks


class HalfUsed(nn.Module):
    """One layer that is used and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used = small_net()
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Any:
        return self.used(inputs)


def batch(rank: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rank)
    return torch.randn(6, 1, 4, 4, generator=rng), torch.randint(3, (6,), generator=rng)


def trained(
    world: World, model: nn.Module, gradients: GradientsConfig, steps: int = 1, **settings: Any
) -> tuple[str, Tensor]:
    """(the type of the hook's state, parameters) after steps in two pieces on a batch of this rank's own."""
    used = AccelerateModel(EngineConfig(threads=1, gradient_accumulation_steps=2), model, CPU, sgd, CLASSIFICATION)
    state = used.distribute(gradients, 0, lambda count: 1.0, **settings)
    for _ in range(steps):
        if isinstance(state, LibraryHookState):
            state.begin_step()
        used.step(batch(world.rank))
    return type(state).__name__, used.parameters.clone()


def everything(world: World) -> dict[str, Any]:
    """All cases in one start of the ranks. DDP finds a parameter without a gradient when the next step begins."""
    with pytest.raises(RuntimeError, match=r".") as caught:
        trained(world, HalfUsed(), GradientsConfig(), steps=2, density=1.0)
    return {
        "sparse": trained(world, small_net(), GradientsConfig(), density=1.0),
        "fp16": trained(world, small_net(), GradientsConfig(hook="fp16")),
        "half used": trained(world, HalfUsed(), GradientsConfig(find_unused_parameters=True), density=1.0),
        "error": str(caught.value),
    }


def test_each_hook_exchanges_the_mean_gradient() -> None:
    model = small_net()
    inputs, labels = (torch.cat(parts) for parts in zip(batch(0), batch(1)))
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    sgd(list(model.parameters())).step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    for found in run_ranks(everything, 2):
        assert [found[name][0] for name in ("sparse", "fp16")] == ["SparseHookState", "LibraryHookState"]
        torch.testing.assert_close(found["sparse"][1], expected)
        torch.testing.assert_close(found["fp16"][1], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["half used"][1][: len(expected)], expected)
        assert found["error"].startswith("gradients.find_unused_parameters: must be true")
