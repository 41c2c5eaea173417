"""Your own loop under Lightning Fabric, with sparse gradients: one line more (pip install 'flare_dist[lightning]').

python hook_fabric.py --devices 2          # Fabric starts the ranks; dense: --density 1
"""

import argparse

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import flare_dist


def main(density: float, epochs: int, devices: int) -> None:
    fabric = Fabric(accelerator="auto", devices=devices, strategy="ddp")
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
    loader = fabric.setup_dataloaders(DataLoader(Subset(data, range(1400)), batch_size=20, shuffle=True))
    inner = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model, optimizer = fabric.setup(inner, torch.optim.SGD(inner.parameters(), lr=0.1))
    hook = flare_dist.attach(model, optimizer=optimizer, density=density)  # the line

    inputs, labels = (tensor.to(fabric.device) for tensor in data[1400:])
    for epoch in range(epochs):
        for batch, classes in loader:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(batch), classes))
            optimizer.step()
        accuracy = (inner(inputs).argmax(1) == labels).float().mean()
        fabric.print(f"epoch {epoch}  accuracy {accuracy:.3f}  {hook.wire_bytes:,} bytes on the wire")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--devices", type=int, default=2)
    main(**vars(parser.parse_args()))
