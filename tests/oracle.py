"""Federated rounds in one process and in plain PyTorch: no flat vectors, no payloads, no process group.

The package lends only the experiment: the data, the model, the seeds and the draw of the cohort.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.config.config import Config
from flare_dist.data.batches import BatchSource
from flare_dist.data.datasets import load
from flare_dist.data.partition import partition
from flare_dist.models.registry import build
from flare_dist.seeding import derive_seed, generator
from flare_dist.server.server import sample_cohort


def train_in_one_process(config: Config, reject: frozenset[int] = frozenset()) -> nn.Module:
    """Train by local SGD, top-k per tensor, the weighted mean and server rate 1; returns the global model.

    Error feedback is ec, dgc or ef21, and none if updates are dense. Local steps follow FLARE's pull if it is the
    objective. Clients in `reject` are drawn, but their updates are not used.
    """
    data = load(config.data, config.seed)
    parts = partition(config.data, data.train, data.task, data.num_classes, config.clients.count, config.seed)
    source = BatchSource(data.train, data.mean, data.std, torch.device("cpu"))
    model = build(config.model.name, config.model.norm, data.input_shape, data.num_classes, config.seed, data.task)
    memories: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for round_ in range(1, config.rounds + 1):
        cohort = sample_cohort(config.seed, round_, config.clients.count, config.clients.cohort_size)
        present = [client for client in cohort if client not in reject]
        examples = math.fsum(len(parts[client]) for client in present)
        # A few sparse values are added to the model client by client, anything else is summed up first.
        few = not config.compression.is_dense and config.compression.rule != "ef21"
        start = copy.deepcopy(model)
        mean = [p.detach() if few else torch.zeros_like(p) for p in model.parameters()]
        for client in present:
            zeros = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
            memory = memories.setdefault(client, zeros)
            residual = [first for first, _ in memory]
            delta = _local_delta(copy.deepcopy(start), source, parts[client], config, round_, client, residual)
            for total, update, vectors in zip(mean, delta, memory):
                weight, received = len(parts[client]) / examples, _fed_back(update, vectors, config)
                # A dense vector is added in one rounding, sparse values are weighted first.
                dense = config.compression.rule == "ef21"
                total.add_(received, alpha=weight) if dense else total.add_(received.mul(weight))
        with torch.no_grad():
            for parameter, step in zip(model.parameters(), mean):
                if not few:
                    parameter.add_(step)
    return model


def _local_delta(
    model: nn.Module,
    source: BatchSource,
    examples: Tensor,
    config: Config,
    round_: int,
    client: int,
    residual: list[Tensor],
) -> list[Tensor]:
    """Train `model` in place on the examples of one client; returns local minus global, for each parameter."""
    torch.manual_seed(derive_seed(config.seed, "dropout", round_, client))
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=config.clients.lr, momentum=config.clients.momentum)
    shuffle = generator(config.seed, "shuffle", round_, client)
    model.train()
    steps = 0
    flare = config.clients.flare
    pulls = config.clients.objective == "flare" and any(a.any() for a in residual)
    for _ in range(config.clients.local_epochs):
        for inputs, labels in source.batches(examples, config.clients.batch_size, shuffle):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            if pulls and (flare.steps is None or steps < flare.steps):
                for p, s, a in zip(model.parameters(), start, residual):
                    nearest_rank = np.sort(a.abs().flatten())[round(flare.percentile / 100 * (a.numel() - 1))]
                    mask = a.abs() > float(nearest_rank)
                    loss = loss + flare.tau * flare.decay**-round_ * (mask * (p - s - a).abs()).sum()
            if pulls and steps == flare.steps:
                optimizer.state.clear()
            loss.backward()
            optimizer.step()
            steps += 1
    return [p.detach() - s for p, s in zip(model.parameters(), start)]


def _fed_back(delta: Tensor, memory: tuple[Tensor, Tensor], config: Config) -> Tensor:
    """Compress `delta` with error feedback, which updates `memory`: the residual or EF21's estimate, and a velocity."""
    first, velocity = memory
    if config.compression.rule == "ef21":
        return first.add_(_top(delta - first, config))
    if config.compression.rule == "dgc":
        delta = velocity.mul_(config.compression.dgc_momentum).add_(delta)
    sent = _top(delta + first, config)
    first.copy_(delta + first - sent)
    velocity[sent != 0] = 0
    return sent


def _top(update: Tensor, config: Config) -> Tensor:
    """Zero all but the largest magnitudes of `update`; among equals the first is kept."""
    if config.compression.is_dense:
        return update
    flat = update.flatten()
    kept = flat.abs().sort(descending=True, stable=True).indices[: math.ceil(flat.numel() * config.compression.density)]
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(update)
