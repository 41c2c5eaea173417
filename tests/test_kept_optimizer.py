"""Optimizers that stay with clients: as if each client had one of its own, in memory, in files and after a kill."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adafactor, AdamW, NAdam, Optimizer

from flare_dist.clients.kept_optimizer import OPTIMIZER, KeptOptimizer
from flare_dist.clients.optimizers import find_optimizer
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.engines import CPU, small_net
from tests.helpers.rounds import SPARSE, play
from tests.helpers.runs import assert_same_run, start, tiny
from tests.ranks import single

Make = Callable[[Any], Optimizer]


class Counting(AdamW):
    """Counts its steps in its group, as some optimizers do, and keeps a number beside tensors."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.01)
        self.param_groups[0] |= {"k": 0, "d": 0.1}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        group["k"] += 1
        group["d"] *= 1.1
        group["lr"] = group["d"] / group["k"]
        super().step()
        for state in self.state.values():
            state["last"] = group["d"]


class Adaptive(SGD):
    """Changes its distance with its gradients, and not if these are zero, as some optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.01, momentum=0.9)
        self.param_groups[0]["d"] = 0.1

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        if any(parameter.grad.any() for parameter in group["params"]):
            group["d"] *= 1.1
        super().step()


MAKE: dict[str, tuple[Make, bool]] = {  # and whether it is given each parameter by its name
    "momentum": (lambda given: SGD(given, lr=0.1, momentum=0.9), False),
    "adamw": (lambda given: AdamW(given, lr=0.01), False),
    "nadam": (lambda given: NAdam(given, lr=0.01), True),
    "adafactor": (lambda given: Adafactor(given, lr=0.01), True),
    "counting": (Counting, True),
    "muon": (lambda given: find_optimizer("muon", {})(given, 0.02, 0.0, 0.1), True),
}


def model_of(make: Make, by_name: bool) -> AccelerateModel:
    return AccelerateModel(EngineConfig(), small_net(), CPU, make, CLASSIFICATION, by_name=by_name)


def batch(client: int, round_: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(100 * client + round_)
    return torch.randn(6, 1, 4, 4, generator=draws), torch.randint(3, (6,), generator=draws)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("name", MAKE)
def test_clients_in_turn_train_as_if_each_had_an_optimizer_of_its_own(name: str) -> None:
    shared = model_of(*MAKE[name])
    before = shared.parameters.clone()
    kept = KeptOptimizer.of(shared)
    assert torch.equal(shared.parameters, before)
    assert not shared.optimizer.state
    own = [model_of(*MAKE[name]) for _ in range(2)]
    vectors = [torch.zeros(kept.size) for _ in own]
    at = [before.clone() for _ in own]
    for round_ in range(3):
        for client, (alone, vector) in enumerate(zip(own, vectors)):
            shared.load(at[client], shared.buffers)
            shared.reset()
            kept.read(vector)
            for step in range(2):
                shared.step(batch(client, 2 * round_ + step))
                alone.step(batch(client, 2 * round_ + step))
            kept.write(vector)
            at[client] = shared.parameters.clone()
            assert torch.equal(shared.parameters, alone.parameters)
    assert not torch.equal(at[0], at[1])


class Listing(SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["seen"] = [parameter.clone()]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda given: SGD(given, lr=0.1),
            "clients.keep_optimizer: SGD keeps nothing between two steps, got true",
        ),
        (lambda given: Listing(given, lr=0.1), "clients.keep_optimizer: Listing keeps seen, a list, and only tensors"),
    ],
)
def test_what_cannot_be_kept_is_said(make: Make, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        KeptOptimizer.of(model_of(make, True))


@pytest.mark.usefixtures("fresh_accelerate")
def test_settings_that_a_gradient_of_zero_does_not_change_are_not_lost_unseen() -> None:
    model = model_of(Adaptive, True)
    kept = KeptOptimizer.of(model)
    vector = torch.zeros(kept.size)
    model.optimizer.param_groups[0]["lr"] = 0.005  # as a schedule does
    model.step(batch(0, 0))
    with pytest.raises(ValueError, match=r"^clients\.keep_optimizer: Adaptive keeps other tensors or settings than"):
        kept.write(vector)


@pytest.mark.usefixtures("fresh_accelerate")
def test_another_optimizer_s_state_is_not_taken_over() -> None:
    used = model_of(*MAKE["adamw"])
    other = model_of(lambda given: NAdam(given, lr=0.01), False)
    kept = KeptOptimizer.of(used)
    vector = torch.zeros(kept.size)
    used.step(batch(0, 0))
    kept.write(vector)
    with pytest.raises(ValueError, match=r"^clients\.optimizer: .*, got that of NAdam; go on"):
        KeptOptimizer.of(other).read(torch.nn.functional.pad(vector, (0, 2)))


KEPT = dataclasses.replace(SPARSE.clients, optimizer="adamw", lr=0.01, momentum=0.0, keep_optimizer=True)


def test_a_client_that_diverges_keeps_what_it_had() -> None:
    config = dataclasses.replace(SPARSE, clients=KEPT)
    _, _, healthy, _ = single(play, config)
    _, _, states, _ = single(play, config, (2,))
    assert all(state[OPTIMIZER].any() for client, state in states.items() if client != 2)
    assert healthy[2][OPTIMIZER].any()
    assert not states[2][OPTIMIZER].any()


def kept_run(directory: Path, states: Path | None = None, **changes: Any) -> Config:
    base = tiny(directory)
    clients = dataclasses.replace(base.clients, optimizer="adamw", lr=0.01, keep_optimizer=True)
    clients = dataclasses.replace(clients, state_dir=str(states) if states else None)
    return dataclasses.replace(base, clients=clients, **changes)


def test_runs_resume_bitwise_from_memory_and_from_files_on_other_ranks(tmp_path: Path) -> None:
    start(kept_run(tmp_path / "straight"))
    start(kept_run(tmp_path / "killed"), kill_in_round=5)
    start(kept_run(tmp_path / "killed"))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    files = kept_run(tmp_path / "files", tmp_path / "states")
    start(files, kill_in_round=5)
    start(files, 2)
    assert_same_run(tmp_path / "straight", tmp_path / "files", wire=False)
    plain = kept_run(tmp_path / "plain")
    start(dataclasses.replace(plain, clients=dataclasses.replace(plain.clients, keep_optimizer=False)))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "straight", tmp_path / "plain")
    other = kept_run(tmp_path / "other", rounds=8, checkpoint=CheckpointConfig(resume=str(tmp_path / "straight")))
    momentum = dataclasses.replace(other.clients, optimizer="sgd", momentum=0.9)
    with pytest.raises(ValueError, match=r"^clients\.optimizer: clients have kept \d+ numbers of theirs, got one that"):
        start(dataclasses.replace(other, clients=momentum))
