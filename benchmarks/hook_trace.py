"""Count what the hook adds to a step of ResNet-18 on a GPU, and look for memory that grows and ranks that differ.

    torchrun --nproc_per_node 1 benchmarks/hook_trace.py --trace step.json       # one GPU; the trace of one step
    torchrun --nproc_per_node gpu benchmarks/hook_trace.py --steps 100           # every GPU of this machine

docs/gpu.md says what to expect. Without a GPU there are no kernels to count, and the other lines are those of the CPU.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from hook_step import NAMES, Way, draw_batch, open_group
from timing import machine, print_table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

KERNELS = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize",)  # the profiler itself waits for the whole device
SETTLED = 3  # steps, after which buckets and memory have their final form


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--batch_size", type=int, default=8, help="of a rank")
    parser.add_argument("--steps", type=int, default=40, help="before the step that is traced")
    parser.add_argument("--trace", type=Path, help="file to which rank 0 writes the trace of a step with the hook")
    options = parser.parse_args()
    device = open_group()
    batch = draw_batch(options.batch_size, device)
    dense = measure(Way("dense", options.density, device), batch, options.steps, None)
    sparse = measure(Way("sparse", options.density, device), batch, options.steps, options.trace)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks on {device.type}, {machine()}, density {options.density:g}\n")
        print_table(["", NAMES["dense"], NAMES["sparse"]], zip(rows(options.steps), dense, sparse))
    gc.collect()  # hooks hold collectives; a process group destroyed before them aborts the process at times
    dist.destroy_process_group()


def rows(steps: int) -> list[str]:
    """Name what `measure` returns."""
    memory = [f"MiB allocated after step {step}" for step in (SETTLED, max(steps, SETTLED))]
    return ["kernels launched in a step", "times that the host waited in it", *memory, "ranks with other parameters"]


def measure(way: Way, batch: tuple[Tensor, Tensor], steps: int, trace: Path | None) -> list[str]:
    """Take so many steps, and then one that is traced."""
    for _ in range(SETTLED):
        way.step(*batch)
    memory = [allocated()]
    for _ in range(steps - SETTLED):
        way.step(*batch)
    memory.append(allocated())
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]) as traced:
        way.step(*batch)
    if trace and dist.get_rank() == 0:
        traced.export_chrome_trace(str(trace))
    counts = [counted(traced, names) for names in (KERNELS, WAITS)]
    return [*counts, *memory, str(differing(way.model))]


def counted(traced: profile, names: Sequence[str]) -> str:
    """Count the calls of CUDA by these names."""
    called = [event.name for event in traced.events() or []]
    return str(sum(map(called.count, names))) if torch.cuda.is_available() else "no GPU"


def allocated() -> str:
    """Tell how many MiB tensors take on this GPU."""
    return f"{torch.cuda.memory_allocated() / 2**20:.1f}" if torch.cuda.is_available() else "no GPU"


def differing(model: nn.Module) -> int:
    """Count the ranks whose parameters are not those of rank 0, bit for bit."""
    own = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    first = own.clone()
    dist.broadcast(first, 0)
    differs = torch.tensor([not torch.equal(own, first)], dtype=torch.int32, device=own.device)
    dist.all_reduce(differs)
    return int(differs)


if __name__ == "__main__":
    main()
