"""One bad site among eight, whom the mean accuracy hides and the evaluation by group names.

    python benchmarks/bad_site.py --data DIR      # DIR/MNIST as torchvision lays it out

Each site has 500 digits of MNIST to train on and 250 to test on; at one of them every seventh label is wrong. Top-k of
2 % with error feedback, three seeds, each with another bad site.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from torchvision.datasets import MNIST

import flare_dist

SITES = ("Bern", "Cadiz", "Espoo", "Genoa", "Lille", "Oslo", "Porto", "Turin")
PARTS = {"train": 500, "test": 250}
WRONG = 7  # every so many labels of the bad site
CONFIG: dict[str, Any] = {
    "rounds": 30,
    "eval_every": 30,
    "data": {"name": "image_folder", "layout": "sites", "partition": "natural", "image_channels": 1},
    "model": {"name": "2nn"},
    "clients": {"num": "auto", "batch_size": 10, "lr": 0.05},
    "compression": {"sparsifier": "topk", "density": 0.02},
    "evaluation": {"by_group": True},
    "engine": {"threads": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", default="data", help="the folder in which MNIST/ lies")
    options = parser.parse_args()
    digits = MNIST(options.data, train=True)
    images = digits.data.numpy()
    labels = digits.targets.numpy()
    console = Console(width=120)
    for seed in range(3):
        bad = SITES[3 * seed]
        with tempfile.TemporaryDirectory() as directory:
            write_sites(Path(directory) / "sites", images, labels, bad, seed)
            keys: dict[str, Any] = {"data.root": f"{directory}/sites", "seed": seed, "output_dir": f"{directory}/run"}
            row = flare_dist.train(CONFIG, **keys).metrics[-1]
        others = [found["accuracy"] for name, found in row["groups"].items() if name != bad]
        console.print(
            f"seed {seed}: accuracy {row['test_accuracy']:.3f}, worst {row['worst_group_accuracy']:.3f} at "
            f"{row['worst_group_name']} (bad: {bad}), the others {min(others):.3f} to {max(others):.3f}, "
            f"mean {fmean(others):.3f}"
        )


def write_sites(root: Path, images: np.ndarray, labels: np.ndarray, bad: str, seed: int) -> None:
    """Write SITE/PART/CLASS/NUMBER.png, with wrong labels at the bad site."""
    draws = np.random.default_rng(seed)
    order = iter(draws.permutation(len(images)))
    for site in SITES:
        for part, count in PARTS.items():
            for number in range(count):
                chosen = next(order)
                label = int(labels[chosen])
                if site == bad and number % WRONG == 0:
                    label = (label + int(draws.integers(1, 10))) % 10
                folder = root / site / part / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[chosen]).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
