"""Time the hook alone, with Adam on each rank before error feedback and without, on the gradients of ResNet-18.

    OMP_NUM_THREADS=1 python benchmarks/preconditioner.py [--density 0.01] [--turns 15]

One process, whose group is itself: select, pack, gather, mean, in buckets of about 25 MB as DDP forms them. AdamW's own
step, which falls away, stands beside them. All ways alternate; ratios are medians over turns.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timing import alternate, machine, milliseconds, print_table, ratio
from torch import Tensor, nn

from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.state import SparseHookState
from flare_dist.models.registry import build
from flare_dist.tasks.builtin import CLASSIFICATION

BUCKET_NBYTES = 25 * 2**20
DIFFERENT = 4  # gradients
TARGET = 1.15  # times as long as ec


class Hook:
    """Hold one hook's state, and gradients to exchange."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.state = SparseHookState(model, **settings)
        self.buckets: list[list[Tensor]] = [[]]
        for parameter in reversed(list(model.parameters())):
            if sum(each.nbytes for each in self.buckets[-1]) >= BUCKET_NBYTES:
                self.buckets.append([])
            self.buckets[-1].append(parameter)
        draws = torch.Generator().manual_seed(0)
        sizes = [sum(parameter.numel() for parameter in bucket) for bucket in self.buckets]
        # In turn: updates of one and the same gradient would all be of one size, and selecting among them another task.
        steps = [[0.01 * torch.randn(size, generator=draws) for size in sizes] for _ in range(DIFFERENT)]
        self.gradients = itertools.cycle(steps)
        self.buffers = [torch.empty(size) for size in sizes]

    def __call__(self) -> None:
        self.state.begin_step()
        for bucket, gradient, buffer in zip(self.buckets, next(self.gradients), self.buffers):
            exchange_gradients(self.state, bucket, buffer.copy_(gradient)).wait()  # it changes the buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build("torchvision:resnet18", "batch", (3, 32, 32), 10, 0, CLASSIFICATION)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    adamw = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=(Path(directory) / "store").as_uri(), rank=0, world_size=1)
        ways: dict[str, Callable[[], object]] = {
            "ec": Hook(model, density=options.density),
            "adam and ec": Hook(model, density=options.density, preconditioner="adam"),
            "AdamW's step": adamw.step,
        }
        seconds = alternate(ways, options.turns, warm_up=3)
        del ways
        dist.destroy_process_group()
    print(f"density {options.density:g}; {machine()}; medians over {options.turns} turns.\n")
    rows = []
    for name in seconds:
        target = f"≤ {TARGET:g}" if name == "adam and ec" else ""
        rows.append([name, f"{milliseconds(seconds, name):.1f}", f"{ratio(seconds, name, 'ec'):.2f}", target])
    print_table(["", "ms", "times ec", "target"], rows)


if __name__ == "__main__":
    main()
