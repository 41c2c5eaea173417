"""A sparsifier of one's own, between top-k and random-k: entries are drawn with odds that grow with their size.

python own_sparsifier.py
torchrun --nproc_per_node 2 own_sparsifier.py   # any number of ranks, with the same bits

The same function works in your own loop: flare_dist.attach(ddp, density=0.01, sparsifier=drawn).
"""

from typing import Any

import torch
from torch import Tensor

import flare_dist

CONFIG = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 10,
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "2nn"},
    "clients": {"num": 4, "batch_size": 20, "lr": 0.1},
    "compression": {"density": 0.01, "value_codec": "fp16"},
}


def drawn(vector: Tensor, k: int, generator: torch.Generator, power: float = 1.0) -> Tensor:
    """Draw k positions, each with odds of its size to this power; they are returned in ascending order."""
    odds = vector.abs().cpu().double() ** power + 1e-12
    return odds.multinomial(k, generator=generator).sort().values.to(vector.device)


def compression(sparsifier: str, **options: Any) -> dict[str, Any]:
    return {"compression.sparsifier": sparsifier, "compression.sparsifier_options": options}


WAYS = {
    "topk": compression("topk"),
    "randk": compression("randk"),
    "drawn": compression("own_sparsifier:drawn"),  # this file, as a module
    "drawn by squares": compression("own_sparsifier:drawn", power=2),
}

if __name__ == "__main__":
    for name, keys in WAYS.items():

        def show(row: dict[str, Any], name: str = name) -> None:
            if row["round"] == CONFIG["rounds"]:
                print(f"{name:16}  accuracy {row['test_accuracy']:.3f}  {row['uplink_bytes']:,} bytes up a round")

        flare_dist.train(CONFIG, on_round=show, output_dir=f"runs/own_sparsifier/{name.replace(' ', '_')}", **keys)
