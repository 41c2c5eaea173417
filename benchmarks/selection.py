"""Time exact top-k and the compress step on a CPU, against torch.topk and against moving the vector through memory.

    python benchmarks/selection.py [--numel 11181642] [--turns 15] [--threads 1]

Selection: positions of the k largest magnitudes, `largest(x, k)` against `x.abs().topk(k)`, on normal values and on
inputs made to mislead it. Compress step: residual add, selection, packing and residual update, as a client does them
(`Compressor.compress`), with the whole vector as one tensor and as ResNet-18's 62, against one copy plus one in-place
add of the same vector. Everything alternates; ratios are medians over turns. Selections are checked to be exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import alternate, machine, milliseconds, print_table, ratio
from torch import Tensor

from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.segments import count_kept
from flare_dist.compression.sparsifiers import _EVERY, _LINE, largest
from flare_dist.layout import Entry, ParameterLayout, parameter_layout
from flare_dist.models.registry import build
from flare_dist.tasks.builtin import CLASSIFICATION

DENSITIES = {1e-4: (15, 2), 1e-3: (15, 2), 1e-2: (8, 4)}  # target of the selection, and of the compress step


def one_huge(n: int, draws: torch.Generator) -> Tensor:
    vector = torch.randn(n, generator=draws)
    vector[n // 3] = 1e30
    return vector


def large_beside_the_sample(n: int, draws: torch.Generator) -> Tensor:
    vector = torch.randn(n, generator=draws)
    vector[: n // _EVERY * _EVERY].view(-1, _EVERY)[:, _LINE:].mul_(100)
    return vector


INPUTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "all equal": lambda n, draws: torch.ones(n),
    "all zero": lambda n, draws: torch.zeros(n),
    "heavy tail": lambda n, draws: torch.randn(n, generator=draws).pow_(7),
    "sorted up": lambda n, draws: torch.linspace(0, 1, n),
    "sorted down": lambda n, draws: torch.linspace(1, 0, n),
    "one huge value": one_huge,
    "large beside the sample": large_beside_the_sample,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--numel", type=int, default=11_181_642, help="entries (ResNet-18 has as many)")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draws = torch.Generator().manual_seed(0)
    print(f"{options.numel:,} float32 on a CPU; {machine()}; medians over {options.turns} turns.\n")
    print_selection(torch.randn(options.numel, generator=draws), options.turns)
    print_adversarial(options.numel, draws, max(3, options.turns // 3))
    print_compress_step(options.numel, draws, options.turns)


def print_selection(vector: Tensor, turns: int) -> None:
    """Compare ours with torch.topk on normal values."""
    rows = []
    for density, (target, _) in DENSITIES.items():
        k = count_kept(vector.numel(), density)
        straight = _race(vector, k, turns, warm_caches=False)
        seconds = _race(vector, k, turns, warm_caches=True)
        ms = [f"{milliseconds(seconds, name):.1f}" for name in ("ours", "torch")]
        faster = [f"{ratio(each, 'torch', 'ours'):.1f} x" for each in (straight, seconds)]
        rows.append([f"{density:g}", *ms, *faster, f"≥ {target} x"])
    print_table(["density", "ours, ms", "torch.topk, ms", "faster, caches emptied", "faster", "target"], rows)
    print(
        "In the last comparison each way runs twice in a turn, and the second run counts. Otherwise ours comes right "
        "after torch.topk, whose temporaries of several times the vector's size have emptied the caches.\n"
    )


def print_adversarial(numel: int, draws: torch.Generator, turns: int) -> None:
    """Compare them on inputs that mislead a sample, and for k = n."""
    rows = []
    for name, make in INPUTS.items():
        vector = make(numel, draws)
        takes = {d: ratio(_race(vector, count_kept(numel, d), turns), "ours", "torch") for d in DENSITIES}
        rows.append([name, *(f"{taken:.2f} x" for taken in takes.values()), "≤ 1.5 x"])
    everything = ratio(_race(torch.randn(numel, generator=draws), numel, turns), "ours", "torch")
    rows.append(["k = n", *[f"{everything:.2f} x"] * len(DENSITIES), "≤ 1.5 x"])
    header = ["time of torch.topk at density", *(f"{d:g}" for d in DENSITIES), "target"]
    print_table(header, rows)


def _race(vector: Tensor, k: int, turns: int, warm_caches: bool = False) -> dict[str, list[float]]:
    """Check that both selections agree, and time them."""
    magnitudes = vector.abs()
    chosen = largest(vector, k)
    threshold = magnitudes.topk(k, sorted=False).values.amin()
    left_out = magnitudes.index_fill(0, chosen, -1.0).amax() if k < vector.numel() else threshold
    assert chosen.numel() == k, "not as many as asked for"
    assert (chosen.diff() > 0).all(), "not ascending"
    assert left_out <= threshold == magnitudes[chosen].amin(), "not the largest"
    ways = {"ours": lambda: largest(vector, k), "torch": lambda: vector.abs().topk(k)}
    return alternate(ways, turns, warm_caches=warm_caches)


def print_compress_step(numel: int, draws: torch.Generator, turns: int) -> None:
    """Compare the whole compress step with one copy plus one in-place add."""
    delta, other = torch.randn(numel, generator=draws), torch.zeros(numel)
    layouts = {"one tensor": ParameterLayout((Entry("all", (numel,), 0),))}
    resnet = parameter_layout(build("torchvision:resnet18", "batch", (3, 32, 32), 10, 0, CLASSIFICATION))
    if resnet.total <= numel:
        layouts["ResNet-18"] = resnet
    rows = []
    for density, (_, target) in DENSITIES.items():
        for name, layout in layouts.items():
            compressor = Compressor(CompressionConfig(density=density), layout, seed=0)
            state = {"residual": torch.randn(layout.total, generator=draws)}
            part = delta[: layout.total]
            compress = partial(compressor.compress, 1, 0, part, state)
            seconds = alternate({"step": compress, "memory": lambda: other.copy_(delta).add_(delta)}, turns)
            ms = [f"{milliseconds(seconds, way):.1f}" for way in ("step", "memory")]
            rows.append([f"{density:g}, {name}", *ms, f"{ratio(seconds, 'step', 'memory'):.2f} x", f"≤ {target} x"])
    print_table(["compress step at density", "ms", "copy + add, ms", "ratio", "target"], rows)


if __name__ == "__main__":
    main()
