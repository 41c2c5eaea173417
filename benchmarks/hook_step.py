"""Time a data-parallel step of ResNet-18 with each exchange of gradients, side by side, on the link at hand.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/hook_step.py                          # unshaped loopback
    OMP_NUM_THREADS=1 bash benchmarks/link.sh 100mbit torchrun --nproc_per_node 2 benchmarks/hook_step.py
    OMP_NUM_THREADS=1 bash benchmarks/veth.sh 100mbit benchmarks/hook_step.py         # one rank at each end of a cable
    OMP_NUM_THREADS=1 bash benchmarks/link.sh 100mbit torchrun --nproc_per_node 2 benchmarks/hook_step.py \
        --ways compute sparse clipped --density 0.01 --turns 15                       # does clip_norm cost overlap?

torchvision's resnet18 with 10 classes on 32 x 32 images, 8 a rank, SGD; compute alone (no exchange), plain DDP,
PyTorch's fp16 and PowerSGD (rank 1) hooks, and the sparse hook with error feedback at density 0.001; with --ways also
the sparse hook that clips by the norm. Each turn takes --steps steps of every way, one way after another. The slowest
rank's time counts. Ratios are medians over turns.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timing import machine, milliseconds, print_table, ratio
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import flare_dist
from flare_dist.comm.config import GradientsConfig
from flare_dist.hook.library import LibraryHookState, bucket_cap_mb, library_hook
from flare_dist.models.registry import build
from flare_dist.tasks.builtin import CLASSIFICATION

NAMES = {
    "compute": "compute alone",
    "dense": "plain DDP",
    "fp16": "fp16 hook",
    "powersgd": "PowerSGD hook, rank 1",
    "sparse": "sparse hook",
    "clipped": "sparse hook, clip_norm",
}
DEFAULT = [name for name in NAMES if name != "clipped"]
CLIP_NORM = 0.5


class Way:
    """Hold one model with its exchange and its optimizer."""

    def __init__(self, name: str, density: float, device: torch.device) -> None:
        model = build("torchvision:resnet18", "batch", (3, 32, 32), 10, 0, CLASSIFICATION).to(device)
        self.model: nn.Module = model
        if name != "compute":
            gpus = [device] if device.type == "cuda" else None
            cap = bucket_cap_mb(name, dist.get_backend())  # which is what `flare-dist compare` gives it
            ddp = DistributedDataParallel(model, device_ids=gpus, bucket_cap_mb=cap)
            if name in ("fp16", "powersgd"):
                state = LibraryHookState(GradientsConfig(hook=name, powersgd_start=2), None, seed=0)
                ddp.register_comm_hook(state, library_hook)
            if name in ("sparse", "clipped"):
                flare_dist.attach(ddp, density=density, clip_norm=CLIP_NORM if name == "clipped" else None)
            self.model = ddp
        self.optimizer = SGD(self.model.parameters(), lr=0.01)

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()


def open_group() -> torch.device:
    """Open the process group of torchrun's ranks; returns this one's device."""
    gpus = torch.cuda.device_count()
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpus and gpus >= int(os.environ["WORLD_SIZE"]) else "gloo")
    return torch.device("cuda", dist.get_rank() % gpus) if gpus else torch.device("cpu")


def draw_batch(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw one batch of this rank: inputs [size, 3, 32, 32] and labels."""
    draws = torch.Generator().manual_seed(dist.get_rank())
    inputs = torch.randn(size, 3, 32, 32, generator=draws)
    return inputs.to(device), torch.randint(10, (size,), generator=draws).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--batch_size", type=int, default=8, help="of a rank")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="of each way in a turn")
    parser.add_argument("--ways", nargs="+", default=DEFAULT, choices=NAMES, help="that take turns")
    parser.add_argument("--link", default="unshaped loopback", help="name of the link in the table")
    parser.add_argument("--target", type=float, default=1.0, help="times as fast as plain DDP as ours must be")
    options = parser.parse_args()
    device = open_group()
    rank = dist.get_rank()
    batch = draw_batch(options.batch_size, device)
    ways = {name: Way(name, options.density, device) for name in options.ways}
    seconds: dict[str, list[float]] = {name: [] for name in options.ways}
    # The first turn warms up: buckets are formed anew after a step, and PowerSGD begins with two dense ones.
    for turn in range(-1, options.turns):
        for name, way in ways.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(options.steps if turn >= 0 else max(3, options.steps)):
                way.step(*batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken = torch.tensor([(time.perf_counter() - start) / options.steps], device=device)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if turn >= 0:
                seconds[name].append(float(taken))
        if rank == 0:
            print(f"{options.link}: turn {turn + 1} of {options.turns}", file=sys.stderr)
    if rank == 0:
        size = f"{dist.get_world_size()} ranks, batch {options.batch_size} a rank, density {options.density:g}"
        print(f"{options.link}; {size}; {machine()}; medians over {options.turns} turns of {options.steps} steps.\n")
        rows = []
        base = "dense" if "dense" in seconds else "sparse"
        for name in seconds:
            faster = f"{ratio(seconds, base, name):.2f} x"
            target = f"≥ {options.target:g} x" if name == "sparse" and base == "dense" else ""
            rows.append([NAMES[name], f"{milliseconds(seconds, name):.0f}", faster, target])
        print_table(["", "ms a step", f"as fast as {NAMES[base]}", "target"], rows)
    del ways
    gc.collect()  # hooks hold collectives; a process group destroyed before them aborts the process at times
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
