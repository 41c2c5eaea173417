"""Seeds are a pure function of what they are for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flare_dist.compression.config import CompressionConfig
from flare_dist.models.config import ModelConfig
from flare_dist.run.evaluation import evaluate_run
from flare_dist.seeding import derive_seed, draws_kept, generator, seed_draws, seeded, states_outside_torch
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from tests.helpers.runs import assert_same_run, start, tiny


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ((0, "shuffle"), 5011543754173312540),
        ((0, "shuffle", 3, 17), 8894184947264117610),
        ((1, "model"), 9170347345600110061),
    ],
)
def test_seeds_are_pinned(arguments: tuple[int, str, int, int], seed: int) -> None:
    """Whoever changes these numbers changes every result that was ever published with this package."""
    assert derive_seed(*arguments) == seed


def test_every_use_has_its_own_seed() -> None:
    """Seeds, rounds and clients whose digits run together (1 and 11, 11 and 1) included."""
    uses = list(product([0, 1, 11, 111], ["shuffle", "dropout", "cohort"], range(13), [*range(13), 111]))
    seeds = {derive_seed(*use) for use in uses}
    assert len(seeds) == len(uses)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bits_are_even() -> None:
    seeds = [derive_seed(0, "bits", round_) for round_ in range(2000)]
    for bit in range(63):
        assert 0.45 < sum(seed >> bit & 1 for seed in seeds) / 2000 < 0.55


def test_what_a_model_draws_is_seeded_as_by_torch() -> None:
    torch.manual_seed(5)
    expected = torch.rand(8)
    drawn = []
    for _ in range(2):
        seed_draws(5, torch.device("cpu"))
        assert torch.equal(torch.rand(8), expected)
        drawn.append((np.random.normal(), random.gauss(0, 1)))
    assert drawn[0] == drawn[1]


def test_generators_repeat_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again, other = (torch.rand(8, generator=generator(0, "shuffle", 2, client)) for client in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generator(0, "shuffle").device.type == "cpu"


def states() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), *states_outside_torch()


def test_callers_generators_are_given_back() -> None:
    before = states()
    with draws_kept():
        seed_draws(3, torch.device("cpu"))
    with contextlib.suppress(KeyError), seeded(4):
        _ = torch.rand(3), np.random.normal(), random.gauss(0, 1)
        raise KeyError
    assert states() == before


class Drawing(nn.Module):
    """A model that draws its weights, and noise in both modes, from torch, numpy and `random` alike."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), num_classes)
        self.linear.weight.data.mul_(np.random.normal()).add_(random.gauss(0, 0.1))

    def forward(self, inputs: Tensor) -> Tensor:
        noise = torch.rand(()) + np.random.normal() + random.random()
        scores: Tensor = self.linear(inputs.flatten(1) * (1 + 0.1 * noise))
        return scores


DRAWING = ModelConfig(name="tests.test_seeding:Drawing")


def test_one_seed_is_one_run(tmp_path: Path) -> None:
    """Of a model that draws everywhere: one after another in one process, interrupted, and on several ranks."""
    config = tiny(tmp_path / "first", model=DRAWING)
    before = states()
    start(config)
    assert states() == before
    torch.rand(1), np.random.normal(), random.gauss(0, 1)
    start(dataclasses.replace(config, output_dir=str(tmp_path / "again")))
    start(dataclasses.replace(config, output_dir=str(tmp_path / "killed")), kill_in_round=5)
    start(dataclasses.replace(config, output_dir=str(tmp_path / "killed")), 3)
    assert_same_run(tmp_path / "first", tmp_path / "again")
    assert_same_run(tmp_path / "first", tmp_path / "killed", wire=False)
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert evaluate_run(tmp_path / "first", "final", None) == {
        name: summary[f"test_{name}"] for name in ("accuracy", "loss")
    }
    assert evaluate_run(tmp_path / "first", "best", None)["accuracy"] == summary["best_accuracy"]


@pytest.mark.parametrize("mode", ["centralised", "gradient", "pruned", "stage one"])
def test_one_seed_is_one_run_in_every_way_to_train(tmp_path: Path, mode: str) -> None:
    changes: dict[str, Any] = {"mode": mode}
    if mode in ("pruned", "stage one"):
        method = {"pruned": "pruned", "stage one": "spdst"}[mode]
        compression = CompressionConfig(sparsifier="dense")
        sparse = SparseTrainingConfig(method=method, density=0.5, layers="all", init_epochs=1)
        changes = {"compression": compression, "sparse_training": sparse, "server": ServerConfig()}
    for directory in ("one", "two"):
        random.random(), np.random.random(), torch.rand(1)
        start(tiny(tmp_path / directory, rounds=2, model=DRAWING, **changes), 2 if mode == "gradient" else 1)
    assert_same_run(tmp_path / "one", tmp_path / "two")
