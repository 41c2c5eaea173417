"""Lay CIFAR-10 out as the class folders of images that the studies read: train/<class>/*.png, test/<class>/*.png.

python benchmarks/cifar10_folders.py data data/cifar10      # downloads CIFAR-10 to data/ if it is missing
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchvision.datasets import CIFAR10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("root", type=Path, help="directory of CIFAR-10, or to which it is downloaded")
    parser.add_argument("folder", type=Path, help="directory in which the folders are made")
    options = parser.parse_args()
    for part in ("train", "test"):
        data = CIFAR10(str(options.root), train=part == "train", download=True)
        for name in data.classes:
            (options.folder / part / name).mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(data):
            image.save(options.folder / part / data.classes[label] / f"{number:05d}.png")
        print(f"{options.folder / part}: {len(data)} images")


if __name__ == "__main__":
    main()
