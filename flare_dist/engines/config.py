"""Choose where local training runs, and in which precision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.errors import check_choice, check_least, check_range
from flare_dist.exclusion import refuse

NAMES = ("accelerate", "deepspeed", "fsdp")
PRECISIONS = ("no", "fp16", "bf16")
DEVICES = ("auto", "cpu", "cuda")
RECORDED = ("auto", "off")


@dataclass(frozen=True)
class EngineConfig:
    """Choose where local training runs, and in which precision.

    Args:
        name: accelerate (placement and mixed precision by Hugging Face Accelerate) or deepspeed (the same by an engine
            of DeepSpeed on each rank: ZeRO 0 to 2, in mode gradient 0 and 1; with `shards` ZeRO 1 to 3) or fsdp (FSDP2,
            with `shards`).
        shards: consecutive ranks that make up a host, on which a client is trained by fsdp or deepspeed; each holds its
            part of the model, of what clients remember and of the server, and exchanges it with the same part
            elsewhere. A batch is divided among them. With fsdp and compression.scope row what is sent does not depend
            on it; other scopes are per shard.
        shard_blocks: class names of the model's layers that fsdp gathers one by one while it computes (none = those
            that a model of transformers names; otherwise the whole model at once).
        mixed_precision: no, bf16 or fp16 (fp16 needs a GPU); weights, deltas and residuals stay float32.
        device: auto (a GPU if there is one), cpu or cuda.
        gradient_accumulation_steps: pieces in which a mini-batch goes through the model, to save memory; the optimizer
            takes one step for all of them.
        recorded: auto (steps of a small model on a CPU are recorded and called without autograd, with the same bits) or
            off.
        deepspeed_config: JSON file of DeepSpeed's own settings, or the settings themselves, for name: deepspeed; "auto"
            in it is what the keys here and under clients say, and a value that contradicts them is refused.
        threads: intra-op threads of each rank (null = cores divided by the ranks of this machine); the bits of a run
            depend on it, so a resumed run keeps what it started with.
        timeout_seconds: how long a rank may give no sign of life before it counts as hung and the run ends.
        step_timeout_seconds: how long a rank may take no step while the others wait for it before it is named and the
            run ends (null = off: as long as a collective may take, half an hour). Batches of evaluations count as
            steps, and saving and torch.compile's compiling do not count; choose several times the slowest step.
        deterministic: whether a GPU computes the same bits every time, at a cost (cuBLAS and cuDNN deterministic, no
            TF32, clients.together by the GPU's whole memory); an operation that cannot is named, and the run ends.
    """

    name: str = "accelerate"
    shards: int = 1
    shard_blocks: tuple[str, ...] = ()
    mixed_precision: str = "no"
    device: str = "auto"
    gradient_accumulation_steps: int = 1
    recorded: str = "auto"
    deepspeed_config: str | dict[str, Any] = "deepspeed_config.json"
    threads: int | None = None
    timeout_seconds: float = 60.0
    step_timeout_seconds: float | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_choice("engine.name", self.name, NAMES)
        check_range("engine.shards", self.shards, "[1, 65536]")
        check_choice("engine.mixed_precision", self.mixed_precision, PRECISIONS)
        check_choice("engine.device", self.device, DEVICES)
        check_least("engine.gradient_accumulation_steps", self.gradient_accumulation_steps, 1)
        check_choice("engine.recorded", self.recorded, RECORDED)
        check_range("engine.threads", self.threads, "[1, 1024]")
        check_range("engine.timeout_seconds", self.timeout_seconds, "[1, 1e7]")
        check_range("engine.step_timeout_seconds", self.step_timeout_seconds, "[1, 1e7]")


def resolve_device(config: EngineConfig) -> str:
    """Choose cpu or cuda; raises ValueError that names the key if this machine cannot do what is asked for."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("engine.device: PyTorch sees no GPU, got cuda; choose auto or cpu")
    device = config.device if config.device != "auto" else "cuda" if has_gpu else "cpu"
    refuse(EXCLUSIONS, engine=config, device=device)
    return device


def default_threads(local_ranks: int) -> int:
    """Divide the cores that this process may use by the ranks on this machine; at least one."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // local_ranks)
