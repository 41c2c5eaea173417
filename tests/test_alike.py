"""Ranks begin with rank 0's model whatever drew it, and a rank that comes to hold another is found and named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.alike import share_start
from flare_dist.rounds.build_run import set_up
from flare_dist.run import trainer
from flare_dist.run.trainer import ROUNDS
from flare_dist.server.config import ServerConfig
from tests.helpers.runs import start_rank, tiny
from tests.ranks import run_ranks


class Unseeded(nn.Module):
    """A linear model all of whose tensors come from a generator that nobody can seed."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        rng = np.random.default_rng()
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.linear = nn.Linear(features, num_classes)
        self.linear.weight.data = torch.from_numpy(rng.normal(size=(num_classes, features))).float()
        self.frozen = nn.Parameter(torch.from_numpy(rng.normal(size=3)), requires_grad=False)
        self.register_buffer("running", torch.from_numpy(rng.normal(size=3)).float())
        self.register_buffer("precise", torch.from_numpy(rng.normal(size=3)))
        self.register_buffer("count", torch.tensor(int(rng.integers(2**60))))
        self.register_buffer("chosen", torch.from_numpy(rng.random(64) < 0.5))
        self.register_buffer("turned", torch.from_numpy(rng.integers(99, size=(2, 9))).t())
        self.register_buffer("mask", torch.from_numpy(np.where(rng.random(64) < 0.5, -np.inf, 0.0)).float())
        self.register_buffer("waves", torch.from_numpy(rng.normal(size=3) + 1j).to(torch.complex64).conj())
        self.register_buffer("none", torch.empty(0))

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.linear(inputs.flatten(1))
        return scores


def begin(world: World, config: Config) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The model before, and the parameters after a round of each mode."""
    found = []
    for mode in ("federated", "gradient"):
        own = dataclasses.replace(config, mode=mode)
        run = set_up(own, world)
        state = {name: value.resolve_conj().clone() for name, value in run.model.module.state_dict().items()}
        report = ROUNDS[mode](1, run)
        assert report["round"] == 1
        found.append((state, run.server.parameters.detach().clone()))
    return found


def test_ranks_begin_with_the_model_of_rank_0() -> None:
    config = tiny(Path("unused"), model=ModelConfig(name="tests.test_alike:Unseeded"))
    first, second = run_ranks(begin, 2, config)
    for (state, after), (other, other_after) in zip(first, second):
        assert all(torch.equal(value, other[name]) for name, value in state.items())
        assert torch.equal(after, other_after)
    fresh = Unseeded((1, 5, 5), 3)
    assert not any(
        torch.equal(value, first[0][0][name]) for name, value in fresh.state_dict().items() if value.dim() > 1
    )


def drift(world: World, config: Config) -> str:
    """The error of a run in which ranks 1 and 2 lose a bit of a weight in the third of six rounds."""
    play = trainer.ROUNDS[config.mode]

    def play_and_lose(round_: int, run: Any) -> dict[str, Any]:
        row = play(round_, run)
        if round_ == 3 and world.rank:
            held = run.server.parameters.data if world.rank == 1 else run.server.buffers
            held.view(torch.int32)[0] ^= 1
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trainer.ROUNDS, config.mode, play_and_lose)
        with pytest.raises(ValueError, match="than rank 0") as error:
            start_rank(world, config, None)
    return str(error.value)


def test_a_run_stops_where_a_rank_holds_another_model(tmp_path: Path) -> None:
    model = ModelConfig(name="tests.helpers.rounds:norm_net", norm="batch")
    messages = run_ranks(drift, 3, tiny(tmp_path, model=model, server=ServerConfig()))
    assert len(set(messages)) == 1
    assert messages[0].startswith(
        "checkpoint: after round 4 ranks 1 and 2 held other parameters or buffers than rank 0"
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-00000002"]


def build_other(world: World) -> str:
    with pytest.raises(ValueError, match="than rank 0") as error:
        share_start(world, nn.Linear(3, 5, bias=world.rank != 1))
    return str(error.value)


def test_a_model_that_depends_on_the_rank_is_refused() -> None:
    messages = run_ranks(build_other, 2)
    assert messages[0] == messages[1]
    assert messages[0].startswith("model.name: rank 1 built parameters or buffers of other names, shapes or dtypes")
