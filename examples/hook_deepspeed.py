"""Your own loop under DeepSpeed, ZeRO stage 0 or 1, with sparse gradients: one line more.

deepspeed --num_gpus 2 hook_deepspeed.py          # dense: --density 1
torchrun --nproc_per_node 2 hook_deepspeed.py     # without a GPU: DS_ACCELERATOR=cpu before it
"""

import argparse
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import flare_dist

CONFIG = {
    "train_micro_batch_size_per_gpu": 20,
    "optimizer": {"type": "Adam", "params": {"lr": 0.003, "betas": [0.0, 0.999], "torch_adam": True}},
    "zero_optimization": {"stage": 1, "overlap_comm": False},
    "gradient_clipping": 0,  # DeepSpeed's default clips what was sent; attach(..., clip_norm=1.0) clips before
}


def main(density: float, epochs: int) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=CONFIG)
    hook = flare_dist.attach(engine, optimizer=engine.optimizer, density=density)  # the line

    train = Subset(data, range(1400))
    sampler: DistributedSampler[Any] = DistributedSampler(train, seed=0)
    inputs, labels = (tensor.to(engine.device) for tensor in data[1400:])
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch, classes in DataLoader(train, batch_size=20, sampler=sampler):
            engine.backward(F.cross_entropy(engine(batch.to(engine.device)), classes.to(engine.device)))
            engine.step()
        if engine.global_rank == 0:
            accuracy = (model(inputs).argmax(1) == labels).float().mean()
            print(f"epoch {epoch}  accuracy {accuracy:.3f}  {hook.wire_bytes:,} bytes on the wire")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local_rank", type=int)  # from DeepSpeed's launcher
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.density, arguments.epochs)
