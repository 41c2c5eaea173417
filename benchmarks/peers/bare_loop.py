"""Run a bare autograd loop of the same SGD steps, split over the ranks of torchrun: the least that PyTorch needs."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from common import CLIENTS, COHORT, Clock, Task, options, train_epoch
from torch import nn


def main() -> None:
    given = options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    task = Task(given.task)
    model = task.model()
    vector = task.start.clone()
    draws = torch.Generator().manual_seed(0)
    clients = [task.client(number) for number in range(CLIENTS)]
    clock = Clock()
    clock.lap()
    for round_ in range(given.rounds):
        cohort = torch.randperm(CLIENTS, generator=draws)[:COHORT].tolist()
        total = torch.zeros_like(vector)
        for client in cohort[rank::size]:
            nn.utils.vector_to_parameters(vector.clone(), model.parameters())  # which become views of the copy
            train_epoch(model, *clients[client], torch.Generator().manual_seed(1000 * round_ + client))
            total += nn.utils.parameters_to_vector(model.parameters()).detach()
        if dist.is_initialized():
            dist.all_reduce(total)
        vector = total / COHORT
        clock.lap()
    nn.utils.vector_to_parameters(vector, model.parameters())
    clock.write(given.report, given.warm_up, task.accuracy(model))


if __name__ == "__main__":
    main()
