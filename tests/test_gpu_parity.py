"""The hook's path on a GPU gives the bits of its path on a CPU, on two ranks; the GPU is pretended (pretend_gpu/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.hook import memory
from flare_dist.hook.ddp import sparse_hook
from flare_dist.hook.state import SparseHookState
from tests.pretend_gpu.cuda import pretend_gpu
from tests.pretend_gpu.ddp import PretendBucket, buckets_of
from tests.pretend_gpu.hook_steps import Parameters
from tests.pretend_gpu.kernels import triton
from tests.pretend_gpu.nccl import nccl
from tests.pretend_gpu.streams import STREAMS
from tests.pretend_gpu.tensors import raw, to_gpu
from tests.ranks import run_ranks

SHAPES = [(60, 500), (50,), (300, 40), (7,), (1,), (4, 4, 3, 3), (0, 3)]
STEPS = 3
Case = tuple[dict[str, Any], dict[str, Any]]  # settings of the hook; what happens
CASES: list[Case] = [
    ({}, {}),
    ({"error_feedback": "dgc"}, {}),
    ({"error_feedback": "none", "value_codec": "int8"}, {}),
    ({"value_codec": "int8"}, {}),
    ({"value_codec": "2bit"}, {}),
    ({"value_codec": "fp16", "index_codec": "packed"}, {}),
    ({"sparsifier": "randk"}, {}),
    ({"scope": "block", "block": 64}, {}),
    ({"scope": "block"}, {}),
    ({"dense_below": 60}, {}),
    ({"residual_decay": 0.9}, {}),
    ({"index_codec": "bitmap"}, {}),
    ({"index_codec": "int32"}, {}),
    ({"warmup": [0.5, 0.1]}, {}),
    ({"density": 1.0}, {}),
    ({"preconditioner": "adam"}, {}),
    ({"density": 1.0, "preconditioner": "adam"}, {}),
    ({"clip_norm": 0.5}, {}),
    ({}, {"works": False}),
    ({"density": 0.2}, {"room": 1}),
    ({"density": 0.2}, {"works": False, "room": 1}),
    ({}, {"scaled": True}),
    ({}, {"poison": (1, 1)}),
    ({"error_feedback": "dgc"}, {"poison": (0, 2)}),
    ({"preconditioner": "adam"}, {"poison": (1, 2)}),
    ({}, {"dtype": torch.bfloat16}),
    ({"preconditioner": "adam"}, {"dtype": torch.bfloat16}),
    ({}, {"dtype": torch.float16, "scaled": True}),
    ({}, {"unused": True}),
    ({"error_feedback": "dgc"}, {"unused": True}),
    ({"residual_decay": 0.9}, {"unused": True}),
    ({"value_codec": "int8", "dense_below": 60}, {}),
]


def take_steps(device: str, rank: int, settings: dict[str, Any], options: dict[str, Any]) -> list[Tensor]:
    """What some steps make of the gradients, and then the memory."""
    dtype = options.get("dtype", torch.float32)
    model: torch.nn.Module = Parameters(SHAPES)
    if device == "cuda":
        model = model.to("cuda")
    is_scaled = options.get("scaled", False)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0) if is_scaled else None
    state = SparseHookState(model, **({"density": 0.05} | settings), scaler=scaler)
    groups = buckets_of(list(model.parameters()), cap=30_000, first=10_000)
    draws = torch.Generator().manual_seed(100 + rank)
    found = []
    for step in range(STEPS):
        futures = []
        for number, group in enumerate(groups):
            parts = [torch.randn(p.numel(), generator=draws) for p in group]
            if options.get("unused") and number == 0 and step % 2 == rank:
                parts[0].zero_()
            flat = torch.cat(parts).mul(1024 if is_scaled else 1).to(dtype)
            if options.get("poison") == (rank, step) and number == 1:
                flat[3] = float("nan")
            flat = to_gpu(flat) if device == "cuda" else flat
            bucket: Any = PretendBucket(number, group is groups[-1], group, flat)
            futures.append(sparse_hook(state, bucket))
        found.append(torch.cat([raw(future.wait()).float().clone() for future in futures]))
    memory = state.state_dict()["memory"]
    return [*found, *(raw(memory[name][kind]) for name in memory for kind in memory[name])]


def compared(world: World, cases: Sequence[Case] = CASES) -> list[tuple[Case, str]]:
    """The cases that are not alike, and why not."""
    wrong = []
    for settings, options in cases:
        expected = take_steps("cpu", world.rank, settings, options)
        room = patch.object(memory, "_ROOM", options.get("room", memory._ROOM))  # 1: a rank at a time
        with pretend_gpu() as did, nccl(), triton(options.get("works", True)), room:
            found = take_steps("cuda", world.rank, settings, options)
            hazards = dict(STREAMS.hazards)
        if not did.launches:
            wrong.append(((settings, options), "nothing was launched"))
        if hazards:
            wrong.append(((settings, options), str(hazards)))
        pairs = [(a.nan_to_num(7, 8, 9), b.nan_to_num(7, 8, 9)) for a, b in zip(expected, found, strict=True)]
        different = [place for place, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
        if different:
            wrong.append(((settings, options), f"other bits in {different} of {len(pairs)}"))
    return wrong


def compared_and_planted(world: World) -> tuple[list[tuple[Case, str]], list[str]]:
    """Also what is found if the last bit of each mean of the GPU's path is another."""
    real = memory.BucketMemory.mean_on_gpu

    def off_by_a_bit(self: Any, buffer: Tensor, slots: Tensor, *rest: Any) -> Tensor:
        mean = real(self, buffer, slots, *rest)
        return mean.mul_(1 + 2**-23)

    wrong = compared(world)
    with patch.object(memory.BucketMemory, "mean_on_gpu", off_by_a_bit):
        return wrong, [why for _, why in compared(world, CASES[:1])]


def test_the_hook_gives_the_bits_of_a_cpu_and_one_wrong_bit_is_found() -> None:
    for wrong, (planted,) in run_ranks(compared_and_planted, 2, seconds=300.0):
        assert wrong == []
        assert planted.startswith("other bits in")
