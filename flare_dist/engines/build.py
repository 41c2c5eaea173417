"""Build the engine that the configuration names; its library is imported when it is needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from flare_dist.comm.world import World
from flare_dist.engines.config import EngineConfig
from flare_dist.tasks.task import Task

if TYPE_CHECKING:
    from flare_dist.engines.accelerate import AccelerateModel
    from flare_dist.engines.deepspeed import DeepSpeedModel
    from flare_dist.engines.deepspeed_host import ZeroModel
    from flare_dist.engines.fsdp import ShardedModel

    EngineModel = AccelerateModel | DeepSpeedModel | ShardedModel | ZeroModel


def build_model(
    config: EngineConfig,
    model: nn.Module,
    world: World,
    make_optimizer: Callable[[list[Any]], Optimizer],
    gradient_clipping: float | None,
    alone: bool,
    task: Task,
    smallest_batch: int = 1,
    by_name: bool = False,
) -> EngineModel:
    """Put `model` on this rank's device, in its engine; `alone` if each rank trains by itself, as federated clients do.

    No piece of a step is taken on fewer than `smallest_batch` examples, if there are so many. `make_optimizer` is given
    parameters, or (name, parameter) pairs if `by_name`.
    For DeepSpeed `config.deepspeed_config` must hold the settings (`deepspeed_settings`), and all ranks call together.
    """
    if config.name == "accelerate":
        from flare_dist.engines.accelerate import AccelerateModel

        return AccelerateModel(
            config, model, world.device, make_optimizer, task, gradient_clipping, smallest_batch, by_name
        )
    assert not by_name, "compatibility.py refuses an optimizer of one's own with DeepSpeed and with shards"
    if config.name == "fsdp":
        from flare_dist.engines.fsdp import ShardedModel

        return ShardedModel(config, model, world.device, make_optimizer, task, world.host, gradient_clipping)
    _prepare_deepspeed(world)
    assert isinstance(config.deepspeed_config, dict)
    if config.shards > 1:
        from flare_dist.engines.deepspeed_host import ZeroModel

        return ZeroModel(config.deepspeed_config, model, world.device, make_optimizer, task, world.host)
    from flare_dist.engines.deepspeed import DeepSpeedModel

    return DeepSpeedModel(config.deepspeed_config, model, world.device, make_optimizer, task, alone, smallest_batch)


def _prepare_deepspeed(world: World) -> None:
    """Tell DeepSpeed by the environment what it would ask its own launcher for; the process group is there already."""
    ours = {"RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.device.index or 0}
    for name, value in ours.items():
        os.environ.setdefault(name, str(value))
    if world.device.type == "cpu":  # or ZeRO 3 starts a program that counts the cores, for each bucket of each step
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(world.size)))
    if world.device.type == "cuda":
        # DeepSpeed takes this for the number of the GPU; a rank that sees one GPU alone has another local rank.
        os.environ["LOCAL_RANK"] = str(world.device.index)
        if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:  # which must be the same
            os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(world.device.index)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ["DS_ACCELERATOR"] = world.device.type
    # DeepSpeed calls them by names that torch 2.14 warns of; nobody who trains can do anything about it.
    renamed = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
    warnings.filterwarnings("ignore", renamed, FutureWarning)
