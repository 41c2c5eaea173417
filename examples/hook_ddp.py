"""Your own loop under DistributedDataParallel, with sparse gradients: one line more.

torchrun --nproc_per_node 2 hook_ddp.py          # dense: --density 1
"""

import argparse
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import flare_dist


def main(density: float, epochs: int) -> None:
    dist.init_process_group("gloo")  # nccl on GPUs
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
    train, test = torch.utils.data.Subset(data, range(1400)), data[1400:]
    sampler: DistributedSampler[Any] = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=20, sampler=sampler)

    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    hook = flare_dist.attach(ddp, optimizer=optimizer, density=density)  # the line

    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(ddp(inputs), labels).backward()
            optimizer.step()
        if dist.get_rank() == 0:
            accuracy = (ddp.module(test[0]).argmax(1) == test[1]).float().mean()
            print(f"epoch {epoch}  accuracy {accuracy:.3f}  {hook.wire_bytes:,} bytes on the wire")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
