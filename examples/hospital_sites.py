"""Six hospitals train one classifier; the evaluation by site names the one whose labels are not to be trusted.

python hospital_sites.py FOLDER     # <site>/train/<class>/*.png and <site>/test/<class>/*.png; made if it is missing
torchrun --nproc_per_node 2 hospital_sites.py FOLDER   # any number of ranks, with the same bits
"""

import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import flare_dist

SITES = ("Eastgate", "Harbour", "Lakeside", "Northfield", "Riverbend", "Westhill")
CONFIG = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 10,
    "output_dir": "runs/hospital_sites",
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "data": {"name": "image_folder", "layout": "sites", "partition": "natural", "image_size": 16, "image_channels": 1},
    "clients": {"num": "auto", "batch_size": 16, "lr": 0.1},
    "compression": {"sparsifier": "topk", "density": 0.02},
    "evaluation": {"by_group": True},
}


def make_sites(root: Path) -> None:
    """Draw noisy scans, some with a bright lesion; Lakeside swaps a third of its labels."""
    draws = np.random.default_rng(0)
    made = Path(tempfile.mkdtemp(dir=root.parent))
    for number in range(len(SITES) * 75):
        has_lesion, site = number // len(SITES) % 2, SITES[number % len(SITES)]
        pixels = draws.normal(90, 25, (20, 20))
        y, x = draws.integers(2, 12, 2)
        pixels[y : y + 6, x : x + 6] += 70 * has_lesion
        is_wrong = site == "Lakeside" and draws.random() < 1 / 3
        part = made / site / ("test" if draws.random() < 1 / 3 else "train")
        folder = part / ("healthy", "lesion")[has_lesion ^ is_wrong]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    with suppress(OSError):  # another rank was faster
        made.rename(root)
    shutil.rmtree(made, ignore_errors=True)


def show(row: dict[str, Any]) -> None:
    worst = f"{row['worst_group_accuracy']:.3f} at {row['worst_group_name']}"
    print(f"round {row['round']:2}  accuracy {row['test_accuracy']:.3f}  worst {worst}")


if __name__ == "__main__":
    keys: dict[str, Any] = {"data.root": sys.argv[1]}
    if not Path(sys.argv[1]).exists():
        make_sites(Path(sys.argv[1]))
    flare_dist.train(CONFIG, on_round=show, **keys)
