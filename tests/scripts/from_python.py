"""Train from Python on as many ranks as torchrun starts: argument 1 is the output directory."""

import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

import flare_dist


def source() -> flare_dist.Source:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 6, generator=draw)
    labels = (inputs.sum(1) > 0).long()
    return flare_dist.Source(TensorDataset(inputs[:90], labels[:90]), TensorDataset(inputs[90:], labels[90:]))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def main() -> None:
    rounds = []
    flare_dist.train(
        {"rounds": 2, "clients": {"num": 4, "batch_size": 10, "lr": 0.1}, "compression": {"density": 0.2}},
        data=source(),
        model=net(),
        on_round=lambda row: rounds.append(row["round"]),
        every_rank="all" in sys.argv,
        output_dir=sys.argv[1],
    )
    sys.stdout.write(f"rounds {rounds}\n")  # print may write the words and the line's end apart, between another rank's


if __name__ == "__main__":
    main()
