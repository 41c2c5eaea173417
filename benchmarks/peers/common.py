"""Define the task and the report that all contestants of benchmarks/rounds.py share. Needs NumPy and PyTorch only.

The task, FedAvg on MNIST as in McMahan et al. 2017: 10 of 100 clients a round, an epoch of batches of 10, SGD at 0.05.
The examples, the clients' shares of them and the initial weights are files that rounds.py writes once for all.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIENTS, COHORT, BATCH, LR = 100, 10, 10, 0.05


class Task:
    """Hold the data as tensors, and build the model."""

    def __init__(self, directory: Path) -> None:
        def read(name: str) -> Tensor:
            return torch.from_numpy(np.load(directory / f"{name}.npy"))

        self.inputs, self.labels = read("inputs"), read("labels")  # float32 [60000, 784], int64 [60000]
        self.test_inputs, self.test_labels = read("test_inputs"), read("test_labels")
        self.parts = read("parts")  # int64 [100, 600]
        self.start = read("start")  # float32 [199210]

    def model(self) -> nn.Sequential:
        """Build the 2NN with the initial weights."""
        model = nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
        nn.utils.vector_to_parameters(self.start.clone(), model.parameters())  # which become views of the copy
        return model

    def client(self, number: int) -> tuple[Tensor, Tensor]:
        """Look up one client's examples."""
        return self.inputs[self.parts[number]], self.labels[self.parts[number]]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        return float((model(self.test_inputs).argmax(1) == self.test_labels).float().mean())


def train_epoch(model: nn.Module, inputs: Tensor, labels: Tensor, shuffle: torch.Generator) -> None:
    """Train one client for a round, in plain PyTorch."""
    order = torch.randperm(len(labels), generator=shuffle)
    train_batches(model, ((inputs[batch], labels[batch]) for batch in order.split(BATCH)))


def train_batches(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Take a step of SGD on each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for inputs, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


class Clock:
    """Measure wall and CPU seconds of rounds on one rank; call `lap` at the very beginning and after each round."""

    def __init__(self) -> None:
        self.laps: list[tuple[float, float]] = []

    def lap(self, cpu: float | None = None) -> None:
        self.laps.append((time.perf_counter(), time.process_time() if cpu is None else cpu))

    def write(self, path: Path, warm_up: int, accuracy: float) -> None:
        """Write the report of the rounds after the warm-up, a file for each rank."""
        laps = self.laps[warm_up:]
        wall = [after[0] - before[0] for before, after in pairwise(laps)]
        cpu = (laps[-1][1] - laps[0][1]) / (len(laps) - 1)
        report = {"wall": wall, "cpu": cpu, "accuracy": accuracy}
        path.with_suffix(f".{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report))


def options() -> argparse.Namespace:
    """Parse the arguments that rounds.py gives to each contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path, help="directory with the data")
    parser.add_argument("root", type=Path, help="directory of MNIST itself")
    parser.add_argument("report", type=Path, help="path of the report")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm_up", type=int, default=2, help="rounds of these that do not count")
    parser.add_argument("--loader", action="store_true", help="of flower.py alone")
    return parser.parse_args()
