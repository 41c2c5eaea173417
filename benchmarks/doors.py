"""Count what each way of exchanging sends a step, and how long that takes on some links: which door for which link?

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/doors.py

torchvision's resnet18 with 10 classes. Bytes are those that the collectives really moved, in one backward or one outer
step; seconds of a link are computed from them (flare_dist/analysis/links.py), each rank with a link of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from timing import print_table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.analysis.links import Link
from flare_dist.models.registry import build
from flare_dist.tasks.builtin import CLASSIFICATION

LINKS = ("10Mbps/20ms", "100Mbps/5ms", "1Gbps/1ms", "10Gbps")
Moved = tuple[float, float]  # bytes over all ranks and collectives, of one optimizer step


def of_hook(model: nn.Module, inputs: Tensor, **settings: Any) -> Moved:
    """Measure the second backward, behind which DDP has formed its buckets."""
    ddp = DistributedDataParallel(model)
    state = flare_dist.attach(ddp, **settings)
    for _ in range(2):
        before = state.traffic
        ddp(inputs).square().mean().backward()
    moved = state.traffic.since(before)
    return moved.wire_bytes, moved.collectives


def of_outer(model: nn.Module, inputs: Tensor, every: int, **settings: Any) -> Moved:
    outer = flare_dist.outer(model, every=every, **settings)
    for _ in range(every):
        outer.step()
    return outer.wire_bytes / every, outer.traffic.collectives / every


WAYS: dict[str, Callable[[nn.Module, Tensor], Moved]] = {
    "plain DDP": lambda model, inputs: of_hook(model, inputs, density=1),
    "hook, 1 %": lambda model, inputs: of_hook(model, inputs, density=0.01),
    "hook, 0.1 %": lambda model, inputs: of_hook(model, inputs, density=0.001),
    "outer, every 30 (DiLoCo)": lambda model, inputs: of_outer(model, inputs, 30, preset="diloco"),
    "outer, every 500 (DiLoCo)": lambda model, inputs: of_outer(model, inputs, 500, preset="diloco"),
    "outer, every 30 (SparseLoCo)": lambda model, inputs: of_outer(model, inputs, 30, preset="sparseloco"),
}


def shown(number: float) -> str:
    """Write a number to three digits, without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="torchvision:resnet18")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    rows = []
    for name, measure in WAYS.items():
        torch.manual_seed(0)
        model = build(options.model, "batch", (3, 32, 32), 10, 0, CLASSIFICATION)
        wire, collectives = measure(model, torch.randn(2, 3, 32, 32))
        links = [Link.parse(text) for text in LINKS]
        times = [1000 * link.seconds(wire, collectives, ranks) for link in links]
        rows.append([name, shown(wire / ranks / 1e6), *map(shown, times)])
    if dist.get_rank() == 0:
        print(f"{ranks} ranks; MB that a rank sends, and ms of its link, for each optimizer step.\n")
        print_table(["", "MB", *LINKS], rows)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
