"""Clients learn to outline discs in noisy images: a class for each pixel, judged by intersection over union.

python segmentation.py
torchrun --nproc_per_node 2 segmentation.py   # any number of ranks, with the same bits
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import flare_dist

CONFIG = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 10,
    "output_dir": "runs/segmentation",
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "clients": {"num": 4, "batch_size": 8, "optimizer": "adam", "lr": 0.02},
    "compression": {"sparsifier": "topk", "density": 0.1, "value_codec": "fp16"},
}


def discs(n: int, seed: int, size: int = 16) -> TensorDataset:
    """Draw images float32 [n, 1, size, size], and the class of each pixel, int64 [n, size, size]."""
    draws = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centre = torch.randint(size // 4, size - size // 4, (n, 2, 1, 1), generator=draws)
    radius = torch.randint(2, size // 4 + 1, (n, 1, 1), generator=draws)
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 <= radius**2).long()
    images = masks + torch.randn(n, size, size, generator=draws)
    return TensorDataset(images[:, None], masks)


class SmallUNet(nn.Module):
    """See every pixel at full and at half resolution."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        coarse = (nn.AvgPool2d(2), nn.Conv2d(width, width, 5, padding=2), nn.ReLU(), nn.Upsample(scale_factor=2))
        self.coarse = nn.Sequential(*coarse)
        self.head = nn.Conv2d(2 * width, classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        return self.head(torch.cat([fine, self.coarse(fine)], 1))


def show(row: dict[str, Any]) -> None:
    print(f"round {row['round']:2}  iou {row['test_iou']:.3f}  pixels right {row['test_accuracy']:.3f}")


if __name__ == "__main__":
    source = flare_dist.Source(discs(160, 1), discs(40, 2), classes=["background", "disc"], task="segmentation")
    torch.manual_seed(0)
    flare_dist.train(CONFIG, data=source, model=SmallUNet(2), on_round=show)
