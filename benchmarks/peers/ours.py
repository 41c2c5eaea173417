"""Run flare_dist's federated rounds, as `flare-dist train --config configs/mnist_2nn.yaml` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from common import BATCH, CLIENTS, COHORT, LR, Clock, Task, options

from flare_dist.comm.group import open_world
from flare_dist.comm.launch import Launch
from flare_dist.config.load import load_config
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round

CONFIG = Path(__file__).parent.parent.parent / "configs" / "mnist_2nn.yaml"


def main() -> None:
    given = options()
    config = load_config(CONFIG)
    config = dataclasses.replace(
        config,
        rounds=given.rounds,
        data=dataclasses.replace(config.data, root=str(given.root)),
        engine=dataclasses.replace(config.engine, device="cpu", threads=1),
    )
    clients = config.clients
    assert (clients.num, clients.per_round, clients.batch_size, clients.lr) == (CLIENTS, COHORT, BATCH, LR)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with open_world(Launch.from_environment(), torch.device("cpu"), config.engine.timeout_seconds) as world:
        fed = set_up_federation(config, world)
        clock = Clock()
        clock.lap()
        for round_ in range(1, given.rounds + 1):
            federated_round(round_, fed)
            clock.lap()
        model = fed.clients.trainer.model
        model.load(fed.server.parameters.data, fed.server.buffers)
        task = Task(given.task)
        images = task.test_inputs.view(-1, 1, 28, 28)
        accuracy = float((model.module(images).argmax(1) == task.test_labels).float().mean())
        clock.write(given.report, given.warm_up, accuracy)


if __name__ == "__main__":
    main()
