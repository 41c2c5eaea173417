"""Your own loop under Accelerate, with sparse gradients: one line more.

accelerate launch --num_processes 2 --cpu hook_accelerate.py   # without --cpu on GPUs; dense: --density 1
torchrun --nproc_per_node 2 hook_accelerate.py
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import flare_dist


def main(density: float, epochs: int) -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
    loader = DataLoader(Subset(data, range(1400)), batch_size=20, shuffle=True)
    inner = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    inputs, labels = (tensor.to(accelerator.device) for tensor in data[1400:])

    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
    hook = flare_dist.attach(accelerator, model, optimizer=optimizer, world_of_one="warn", density=density)  # the line

    for epoch in range(epochs):
        for batch, classes in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(batch), classes))
            optimizer.step()
        accuracy = (accelerator.unwrap_model(model)(inputs).argmax(1) == labels).float().mean()
        accelerator.print(f"epoch {epoch}  accuracy {accuracy:.3f}  {hook.wire_bytes:,} bytes on the wire")
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
