"""Centralised rounds are plain training on the pooled data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from flare_dist.comm.world import World
from flare_dist.rounds.build_run import set_up
from flare_dist.rounds.centralised import Centralised, centralised_round
from tests.helpers.rounds import DATA, DENSE, flat
from tests.oracle import train_in_one_process


def test_centralised_rounds_are_plain_training_on_the_pooled_data(tmp_path: Path) -> None:
    config = dataclasses.replace(DENSE, mode="centralised")
    run = set_up(config, World())
    assert isinstance(run, Centralised)
    reports = [centralised_round(round_, run) for round_ in range(1, 4)]

    federated = dataclasses.replace(DENSE, rounds=1, clients=dataclasses.replace(DENSE.clients, num=1, per_round=1))
    data = dataclasses.replace(DATA, partition="iid")
    first = flat(train_in_one_process(dataclasses.replace(federated, data=data)))
    again = set_up(config, World())
    assert isinstance(again, Centralised)
    centralised_round(1, again)
    torch.testing.assert_close(again.server.parameters.detach(), first, rtol=1e-5, atol=1e-7)
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert reports[-1]["uplink_bytes"] == 0
    assert run.trainer.model.optimizer.state  # momentum is kept from round to round
