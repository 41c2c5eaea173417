"""Measure bits for each kept entry and the time of every index codec, beside log2 C(n, k) / k and torch's top-k.

The index sets are those of a real top-k: of the gradient of ResNet-18 (n = 11.2 million) on a batch of images, selected
per tensor. Times are medians of five, in turns, on one thread.

    python benchmarks/index_codecs.py [--root data/cifar10]     # train/CLASS/*, test/CLASS/*; without it made-up images
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.compression.compressor import plan
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.index_codecs import INDEX_CODECS, bound_bits
from flare_dist.data.batches import BatchSource
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.layout import ParameterLayout, parameter_layout
from flare_dist.models.registry import build


def gradient(root: str | None) -> tuple[Tensor, ParameterLayout]:
    """Compute the gradient of a fresh ResNet-18 on a batch of 64, flat."""
    config = DataConfig(name="image_folder", root=root) if root else DataConfig(name="synthetic")
    data = load(config, 0)
    model = build("resnet18", "group", data.input_shape, data.num_classes, 0, data.task)
    source = BatchSource(data.train, data.mean, data.std, torch.device("cpu"))
    inputs, labels = next(iter(source.batches(torch.arange(64), 64, None)))
    F.cross_entropy(model(inputs), labels).backward()
    layout = parameter_layout(model)
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return flat, layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="directory of class folders (train/ and test/)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vector, layout = gradient(options.root)
    n = vector.numel()
    print(f"n = {n}; bits an entry (encode + decode in ms)")
    print("| density | kept | bound | best / bound | topk, ms | " + " | ".join(INDEX_CODECS) + " |")
    print("|---" * (5 + len(INDEX_CODECS)) + "|")
    for density in (1e-1, 5e-2, 1e-2, 1e-3, 1e-4, 1e-5):
        planned = plan(CompressionConfig(), layout, density, vector.device)
        chosen = planned.choose(vector, lambda segment: torch.Generator())
        k = chosen.numel()
        bound = bound_bits(n, k) / k
        sizes: dict[str, float] = {}
        times: dict[str, list[float]] = {name: [] for name in INDEX_CODECS}
        selecting: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            vector.abs().topk(k)
            selecting.append(time.perf_counter() - start)
            for name, codec in INDEX_CODECS.items():
                start = time.perf_counter()
                data = codec.encode(chosen, n)
                decoded = codec.decode(data, n, k)
                times[name].append(time.perf_counter() - start)
                assert torch.equal(decoded, chosen)
                sizes[name] = 8 * data.numel() / k
        cells = [f"{sizes[name]:.2f} ({1e3 * median(times[name]):.1f})" for name in INDEX_CODECS]
        best = min(sizes.values()) / bound
        print(
            f"| {density:g} | {k} | {bound:.2f} | {best:.3f} | {1e3 * median(selecting):.0f} | "
            + " | ".join(cells)
            + " |"
        )


if __name__ == "__main__":
    main()
