"""Six clinics predict how diabetes progresses from ten numbers of each patient; errors are in deviations of the target.

python regression.py
torchrun --nproc_per_node 2 regression.py   # any number of ranks, with the same bits
"""

from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import flare_dist

CONFIG = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 12,
    "output_dir": "runs/regression",
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "task": {"loss": "huber", "metrics": ["r2"]},
    "data": {"partition": "natural"},
    "clients": {"num": "auto", "batch_size": 16, "lr": 0.1},
    "compression": {"sparsifier": "topk", "density": 0.25},
    "evaluation": {"by_group": True},
}


def patients() -> flare_dist.Source:
    """Read 442 patients; each clinic treats another age."""
    table = load_diabetes()
    inputs = torch.tensor(table.data).float()
    targets = torch.tensor(table.target).float()[:, None]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[:342], order[342:]
    inputs = inputs / inputs[train].std(0)
    targets = (targets - targets[train].mean()) / targets[train].std()
    ages = inputs[:, 0].contiguous()
    clinics = torch.bucketize(ages, ages.quantile(torch.linspace(0, 1, 7)[1:-1]))

    def part(rows: Tensor) -> flare_dist.Part:
        return flare_dist.Part(TensorDataset(inputs[rows], targets[rows]), [f"clinic {c}" for c in clinics[rows]])

    return flare_dist.Source(part(train), part(test), classes=1, task="regression")


def show(row: dict[str, Any]) -> None:
    if row["round"] % 3 == 0:
        worst = f"{row['worst_group_rmse']:.3f} at {row['worst_group_name']}"
        print(f"round {row['round']:2}  rmse {row['test_rmse']:.3f}  r2 {row['test_r2']:.3f}  worst rmse {worst}")


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
    flare_dist.train(CONFIG, data=patients(), model=net, on_round=show)
