"""Time an exact top-k on a GPU, beside moving the vector three times and beside torch.topk.

Three moves are `a.add_(b)`: two readings and one writing. `select` is our selection as a hook calls it, from Python;
`replayed` is the same as a CUDA graph: the GPU's own time without the launches. `add, select` is a step of error
feedback before anything is written: the residual plus the delta, and the selection from it. torch.topk is given the
magnitudes, unsorted. The second table has vectors that are hard to select from, at one density.

    python benchmarks/selection_gpu.py [--turns 20] [--numel 11173962 1000000000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from timing import alternate, machine, milliseconds, print_table, ratio
from torch import Tensor

from flare_dist.compression.gpu_selection import largest_on_gpu
from flare_dist.compression.segments import count_kept

HARD_DENSITY = 1e-3


def replayed(run: Callable[[], object]) -> Callable[[], object]:
    """Capture the kernels of `run`; returns a function that launches them by one call."""
    run()  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def hard_vectors(n: int) -> Iterator[tuple[str, Tensor, int]]:
    """Yield a name, a vector, and how many of its entries are kept."""
    k = count_kept(n, HARD_DENSITY)
    yield "all equal", torch.full((n,), -0.3, device="cuda"), k
    yield "all zero", torch.zeros(n, device="cuda"), k
    yield "heavy tail", torch.empty(n, device="cuda").cauchy_().pow_(3), k
    yield "ascending", torch.linspace(0, 1, n, device="cuda"), k
    yield "descending", torch.linspace(1, 0, n, device="cuda"), k
    vector = torch.randn(n, device="cuda")
    yield "normal, k = n / 2", vector, n // 2
    yield "normal, k = n", vector, n
    vector[n - 2] = 1e30
    yield "one huge value", vector, k
    vector[:: max(1, n // 2**14)] += 100
    yield "sampled entries are large", vector, k


def table(n: int, turns: int) -> None:
    """Compare selections at several densities with three moves of the vector."""
    vector, other = torch.randn(n, device="cuda"), torch.randn(n, device="cuda")
    residual = vector.clone()
    rows = []

    def add_and_select(k: int) -> Tensor:
        return largest_on_gpu(residual.add_(other, alpha=1e-9), k)

    for density in (1e-4, 1e-3, 1e-2):
        k = count_kept(n, density)
        magnitudes = vector.abs()
        ways: dict[str, Callable[[], object]] = {
            "moves": lambda: residual.add_(other, alpha=1e-9),
            "topk": partial(magnitudes.topk, k, sorted=False),
            "select": partial(largest_on_gpu, vector, k),
            "replayed": replayed(partial(largest_on_gpu, vector, k)),
            "add, select": partial(add_and_select, k),
        }
        seconds = alternate(ways, turns, warm_up=3)
        times = [f"{milliseconds(seconds, way):.3f}" for way in ways]
        ratios = [f"{ratio(seconds, way, 'moves'):.2f}" for way in ("select", "replayed", "add, select")]
        rows.append([f"{density:g}", *times, *ratios, f"{ratio(seconds, 'select', 'topk'):.2f}"])
    header = ["density", "three moves, ms", "torch.topk, ms", "select, ms", "replayed, ms", "add, select, ms"]
    print(f"n = {n:,}\n")
    print_table([*header, "select / moves", "replayed / moves", "add, select / moves", "select / topk"], rows)


def hard_table(n: int, turns: int) -> None:
    """Compare selections from hard vectors with torch.topk, in time and in what is selected."""
    rows = []
    for name, vector, k in hard_vectors(n):
        magnitudes = vector.abs()
        chosen = largest_on_gpu(vector, k)
        assert chosen.numel() == k
        assert (chosen.diff() > 0).all()
        assert torch.equal(magnitudes[chosen].sort().values, magnitudes.topk(k).values.flip(0))
        del chosen
        ways: dict[str, Callable[[], object]] = {
            "topk": partial(magnitudes.topk, k, sorted=False),
            "select": partial(largest_on_gpu, vector, k),
        }
        seconds = alternate(ways, turns, warm_up=2)
        times = [f"{milliseconds(seconds, way):.3f}" for way in ways]
        rows.append([name, k, *times, f"{ratio(seconds, 'select', 'topk'):.2f}"])
    print(f"n = {n:,}\n")
    print_table(["vector", "k", "torch.topk, ms", "select, ms", "select / topk"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--numel", type=int, nargs="+", default=[11_173_962, 10**9], help="lengths of the vectors")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: selection_gpu.py needs a GPU, and PyTorch finds none")
    print(machine() + "\n")
    for n in options.numel:
        needed = 80 * n  # bytes: mostly what torch.topk and the check need if k = n
        if needed > torch.cuda.mem_get_info()[0]:
            print(f"n = {n:,} needs about {needed / 1e9:.0f} GB on the GPU: left out.\n")
            continue
        table(n, options.turns)
        hard_table(n, options.turns)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
