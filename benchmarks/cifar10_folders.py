"""Lay CIFAR-10 out as the class folders of images that the studies read: train/<class>/*.png, test/<class>/*.png.

python benchmarks/cifar10_folders.py data data/cifar10      # downloads CIFAR-10 to data/ where it is not there
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchvision.datasets import CIFAR10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("root", type=Path, help="where CIFAR-10 is, or is to be downloaded to")
    parser.add_argument("folder", type=Path, help="where the folders are made")
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
