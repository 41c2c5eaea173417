"""Compute the matrix products of the same SGD steps and nothing else, split over the ranks of torchrun: a floor."""

from __future__ import annotations

import math
import os
from itertools import pairwise

import torch
from common import BATCH, COHORT, Clock, Task, options
from torch import Tensor, nn


def main() -> None:
    given = options()
    torch.set_num_threads(1)
    task = Task(given.task)
    weights = [layer.weight.detach() for layer in task.model() if isinstance(layer, nn.Linear)]
    widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
    layers = [torch.zeros(BATCH, width) for width in widths]
    errors, gradients = [torch.zeros_like(layer) for layer in layers], [torch.zeros_like(weight) for weight in weights]
    batches = task.client(0)[0].split(BATCH)
    clock = Clock()
    clock.lap()
    for _ in range(given.rounds):
        for _ in range(int(os.environ.get("RANK", "0")), COHORT, int(os.environ.get("WORLD_SIZE", "1"))):
            for batch in batches:
                multiply(batch, weights, layers, errors, gradients)
        clock.lap()
    clock.write(given.report, given.warm_up, accuracy=math.nan)


def multiply(
    batch: Tensor, weights: list[Tensor], layers: list[Tensor], errors: list[Tensor], gradients: list[Tensor]
) -> None:
    """Compute the products of one forward and one backward pass, into memory that is already allocated."""
    layers = [batch, *layers[1:]]
    for weight, (below, above) in zip(weights, pairwise(layers)):
        torch.mm(below, weight.t(), out=above)
    for place in reversed(range(len(weights))):
        torch.mm(errors[place + 1].t(), layers[place], out=gradients[place])
        if place:
            torch.mm(errors[place + 1], weights[place], out=errors[place])


if __name__ == "__main__":
    main()
