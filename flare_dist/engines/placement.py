"""Place a model on its device, in its precision, by Hugging Face Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from torch import nn

from flare_dist.engines.config import EngineConfig

# `accelerate launch` tells by these what to wrap the model in. The launcher only starts ranks: we choose the engine.
WRAPPERS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_DYNAMO_")


def place(config: EngineConfig, model: nn.Module, device: torch.device) -> tuple[Accelerator, nn.Module]:
    """Move `model` to `device`, and run its forward pass under autocast if the precision asks for it.

    Sets torch's number of threads, and removes from the environment what `accelerate launch` says of wrappers. The
    process group, if any, must exist before: Accelerate would start its own.
    """
    for name in [name for name in os.environ if name.startswith(WRAPPERS)]:
        del os.environ[name]
    if "OMP_NUM_THREADS" not in os.environ:  # Accelerate would warn of it, and choose a number of its own
        os.environ["OMP_NUM_THREADS"] = str(config.threads or 1)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.mixed_precision)
    assert accelerator.device.type == device.type, f"Accelerate chose {accelerator.device}, not {device}"
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # Accelerate sets its own number while it starts on CPUs
    return accelerator, accelerator.prepare_model(model, evaluation_mode=True)
