"""A federated round in one process and in plain PyTorch: no flat vectors, no payloads, no process group.

It shares with the package only what defines the experiment: the data, the model, the seeds and the draw of the cohort.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.data.batches import BatchSource
from flare_dist.data.datasets import load
from flare_dist.data.partition import partition
from flare_dist.models.registry import build
from flare_dist.run.config import Config
from flare_dist.seeding import derive_seed, generator
from flare_dist.server.server import sample_cohort


def train_in_one_process(config: Config, reject: frozenset[int] = frozenset()) -> nn.Module:
    """Top-k per tensor with error feedback (or nothing where dense), local SGD, weighted mean, server rate 1.

    Clients in `reject` are drawn but their updates are not used.
    """
    data = load(config.data, config.seed)
    parts = partition(config.data, data.train, data.num_classes, config.clients.num, config.seed)
    source = BatchSource(data.train, data.mean, data.std, torch.device("cpu"))
    model = build(config.model.name, config.model.norm, data.input_shape, data.num_classes, config.seed)
    residuals: dict[int, list[Tensor]] = {}
    for round_ in range(1, config.rounds + 1):
        cohort = sample_cohort(config.seed, round_, config.clients.num, config.clients.cohort_size)
        present = [client for client in cohort if client not in reject]
        examples = math.fsum(len(parts[client]) for client in present)
        mean = [torch.zeros_like(p) for p in model.parameters()]
        for client in present:
            delta = _local_delta(copy.deepcopy(model), source, parts[client], config, round_, client)
            residual = residuals.setdefault(client, [torch.zeros_like(d) for d in delta])
            for total, update, memory in zip(mean, delta, residual):
                sent = _top(update + memory, config)
                memory.copy_(update + memory - sent)
                total.add_(sent.mul(len(parts[client]) / examples))
        with torch.no_grad():
            for parameter, step in zip(model.parameters(), mean):
                parameter.add_(step)
    return model


def _local_delta(
    model: nn.Module, source: BatchSource, examples: Tensor, config: Config, round_: int, client: int
) -> list[Tensor]:
    torch.manual_seed(derive_seed(config.seed, "dropout", round_, client))
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=config.clients.lr, momentum=config.clients.momentum)
    shuffle = generator(config.seed, "shuffle", round_, client)
    model.train()
    for _ in range(config.clients.local_epochs):
        for inputs, labels in source.batches(examples, config.clients.batch_size, shuffle):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return [p.detach() - s for p, s in zip(model.parameters(), start)]


def _top(update: Tensor, config: Config) -> Tensor:
    """`update` with all but its largest magnitudes zeroed, the first of equals kept."""
    if config.compression.is_dense:
        return update
    flat = update.flatten()
    kept = flat.abs().sort(descending=True, stable=True).indices[: math.ceil(flat.numel() * config.compression.density)]
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(update)
