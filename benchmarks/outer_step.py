"""Time replicas of ResNet-18 that take outer steps: is the wire hidden behind compute, on the link at hand?

    OMP_NUM_THREADS=1 bash benchmarks/link.sh 100mbit torchrun --nproc_per_node 2 benchmarks/outer_step.py

torchvision's resnet18 with 10 classes on 32 x 32 images, 8 a replica, SGD. Ways, one after another in each turn of one
window of --every steps: compute alone; the exchange alone (what is sent in a window, and nothing trained); the whole
weights exchanged densely at the end of a window; fragments that are applied --delay steps later. The target is the
larger of compute and wire, and a tenth more. The slowest replica's time counts; medians over turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timing import machine, print_table
from torch import nn

import flare_dist
from flare_dist.models.registry import build
from flare_dist.tasks.builtin import CLASSIFICATION


def resnet() -> nn.Module:
    return build("torchvision:resnet18", "batch", (3, 32, 32), 10, 0, CLASSIFICATION)


class Way:
    """A replica of its own; without `settings` nothing is exchanged."""

    def __init__(self, every: int, batch: int, trains: bool, settings: dict[str, Any] | None) -> None:
        self.every = every
        self.trains = trains
        self.model = resnet()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.outer = None if settings is None else flare_dist.outer(self.model, every=every, **settings)
        draws = torch.Generator().manual_seed(dist.get_rank())
        self.inputs = torch.randn(batch, 3, 32, 32, generator=draws)
        self.labels = torch.randint(10, (batch,), generator=draws)

    def window(self) -> None:
        for _ in range(self.every):
            if self.trains:
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.inputs), self.labels).backward()
                self.optimizer.step()
            if self.outer is not None:
                self.outer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--every", type=int, default=30, help="steps of a window")
    parser.add_argument("--fragments", type=int, default=5)
    parser.add_argument("--delay", type=int, default=12, help="steps between sending and applying")
    parser.add_argument("--batch_size", type=int, default=8, help="of a replica")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    every, batch = options.every, options.batch_size
    hidden = {"fragments": options.fragments, "delay": options.delay}
    ways = {
        "compute alone": Way(every, batch, True, None),
        "exchange alone": Way(every, batch, False, {"fragments": 1}),
        "whole, at the end of a window": Way(every, batch, True, {"fragments": 1}),
        f"{options.fragments} fragments, {options.delay} steps later": Way(every, batch, True, hidden),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, options.turns):  # the first warms up
        for name, way in ways.items():
            dist.barrier()
            start = time.perf_counter()
            way.window()
            taken = torch.tensor([time.perf_counter() - start])
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if turn >= 0:
                seconds[name].append(float(taken))
        if dist.get_rank() == 0:
            print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
    if dist.get_rank() == 0:
        medians = {name: statistics.median(own) for name, own in seconds.items()}
        bound = max(medians["compute alone"], medians["exchange alone"])
        print(f"{dist.get_world_size()} replicas, {every} steps a window; {machine()}; medians of {options.turns}.\n")
        rows = [
            [name, f"{1000 * each / every:.0f}", f"{each / bound:.2f}", "≤ 1.10" if name == [*ways][-1] else ""]
            for name, each in medians.items()
        ]
        print_table(["", "ms a step", "of the larger of compute and exchange", "target"], rows)
    for way in ways.values():
        if way.outer is not None:
            way.outer.finish()  # a collective that is on the way must end before the group does
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
