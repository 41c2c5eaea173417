"""Clients that are not finite are left out, and buffers are averaged."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up
from flare_dist.rounds.diverged import DivergedError
from tests.helpers.rounds import DATA, DENSE, SPARSE, flat, play
from tests.oracle import train_in_one_process
from tests.ranks import run_ranks, single


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_clients_that_are_not_finite_are_left_out_and_keep_their_residual(config: Config) -> None:
    torch.set_num_threads(1)
    expected = flat(train_in_one_process(config, reject=frozenset({1, 4})))
    for parameters, _, states, reports in run_ranks(play, 2, config, (1, 4)):
        torch.testing.assert_close(parameters, expected, rtol=1e-4, atol=1e-6)
        rejected = [report["rejected_clients"] for report in reports]
        assert sum(rejected) > 0
        for report in reports:
            assert report["clients"] == 4
            assert math.isfinite(report["train_loss"])
        for client in {1, 4} & set(states) if config is SPARSE else ():
            assert not states[client]["residual"].any()


def fails(world: World, config: Config, poisoned: tuple[int, ...]) -> str:
    with pytest.raises(DivergedError) as caught:
        play(world, config, poisoned)
    return str(caught.value)


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_all_ranks_stop_together_when_every_client_is_rejected(config: Config) -> None:
    everyone = dataclasses.replace(config, clients=dataclasses.replace(config.clients, per_round=None))
    messages = run_ranks(fails, 2, everyone, (0, 1, 2, 3, 4))
    assert messages[0] == messages[1]
    assert messages[0].startswith("round 1: ")
    assert "(0, 1, 2, 3, 4)" in messages[0]


def test_batchnorm_buffers_travel_and_are_averaged() -> None:
    config = dataclasses.replace(
        SPARSE, rounds=1, model=ModelConfig(name="tests.helpers.rounds:norm_net", norm="batch"), data=DATA
    )
    ranks = run_ranks(play, 2, config)
    alone = single(play, config)
    for parameters, buffers, _, reports in ranks:
        assert torch.equal(parameters, alone[0])
        assert torch.equal(buffers, alone[1])
        assert reports[0]["buffer_bytes"] == 4 * buffers.numel() * reports[0]["clients"]
    assert alone[1].numel() == 8
    assert not torch.equal(alone[1], set_up(config, World()).server.buffers)
