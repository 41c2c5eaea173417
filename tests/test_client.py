"""Local training equals the loop that anybody would write, and depends on nobody else's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, Penalty
from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.seeding import generator
from flare_dist.tasks.builtin import CLASSIFICATION

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


ROUNDS, CLASSES = 4, 3
EXAMPLES = torch.arange(22)  # in batches of 5 the last one has 2
BASE = ClientsConfig(batch_size=5, lr=0.1)


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0, norm_momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4, momentum=norm_momentum)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(F.relu(self.norm(self.conv(x))).flatten(1)))


def net(**settings: Any) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(**settings)


def batch_source() -> BatchSource:
    rng = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(40, 1, 4, 4, generator=rng), torch.randint(CLASSES, (40,), generator=rng)
    return BatchSource(Examples(inputs, labels), torch.zeros(1), torch.ones(1), "cpu")


def trainer(
    config: ClientsConfig = BASE,
    model: nn.Module | None = None,
    seed: int = 0,
    penalty: Callable[[LocalContext], Penalty | None] | None = None,
) -> LocalTrainer:
    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        return OPTIMIZERS[config.optimizer](parameters, config.lr, config.momentum, config.weight_decay)

    local_model = AccelerateModel(
        EngineConfig(threads=1), model or net(), torch.device("cpu"), make_optimizer, CLASSIFICATION
    )
    algorithm = Algorithm(penalty=penalty) if penalty else None
    return LocalTrainer(local_model, batch_source(), config, ROUNDS, seed, algorithm)


def as_built(used: LocalTrainer) -> tuple[Tensor, Tensor]:
    """Copies of the model's parameters and buffers."""
    return used.model.parameters.clone(), used.model.buffers.clone()


def local(
    used: LocalTrainer,
    start: tuple[Tensor, Tensor] | None = None,
    client: int = 1,
    round_: int = 2,
    examples: Tensor = EXAMPLES,
) -> ClientResult:
    """One round from `start` (parameters, buffers), by default the model as it was built; vectors are copies."""
    parameters, buffers = start or as_built(trainer())
    result = used.train(client, round_, examples, parameters, buffers, {})
    return replace(result, model_delta=result.model_delta.clone(), buffer_delta=result.buffer_delta.clone())


def same(first: ClientResult, second: ClientResult) -> bool:
    return (first.num_examples, first.train_loss) == (second.num_examples, second.train_loss) and all(
        torch.equal(a, b)
        for a, b in [(first.model_delta, second.model_delta), (first.buffer_delta, second.buffer_delta)]
    )


def ordinary_loop(optimizer: Optimizer, model: Net, epochs: int, mu: float = 0.0) -> tuple[Tensor, Tensor, float]:
    """The same round by torch.optim on the model's own tensors; (delta, buffers, mean loss)."""
    start = [p.detach().clone() for p in model.parameters()]
    shuffle, losses = generator(0, "shuffle", 2, 1), []
    for _ in range(epochs):
        for inputs, labels in batch_source().batches(EXAMPLES, 5, shuffle):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            losses += [loss.item()] * len(labels)
            for p, at in zip(model.parameters(), start):
                loss = loss + mu / 2 * (p - at).square().sum()
            loss.backward()
            optimizer.step()
    delta = torch.cat([(p.detach() - at).flatten() for p, at in zip(model.parameters(), start)])
    assert isinstance(model.norm.running_mean, Tensor)
    assert isinstance(model.norm.running_var, Tensor)
    return delta, torch.cat([model.norm.running_mean, model.norm.running_var]), math.fsum(losses) / len(losses)


@pytest.mark.parametrize(
    ("settings", "optimizer", "arguments"),
    [
        ({}, SGD, {"lr": 0.1}),
        ({"momentum": 0.9, "weight_decay": 0.01}, SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        ({"lr_schedule": "step:0.5@2,3"}, SGD, {"lr": 0.05}),
        ({"optimizer": "adam", "lr": 0.02, "weight_decay": 0.1}, Adam, {"lr": 0.02, "weight_decay": 0.1}),
        ({"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.1}, AdamW, {"lr": 0.02, "weight_decay": 0.1}),
        ({"optimizer": "adamw", "lr": 0.02}, AdamW, {"lr": 0.02, "weight_decay": 0.0}),
    ],
)
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_local_training_is_the_ordinary_loop(
    settings: dict[str, Any], optimizer: type[Optimizer], arguments: dict[str, float], mu: float
) -> None:
    config = replace(BASE, local_epochs=3, objective="fedprox", fedprox=FedProxConfig(mu), **settings)
    used = trainer(config)
    _, initial_buffers = as_built(used)
    result = local(used)
    model = net()
    delta, buffers, loss = ordinary_loop(optimizer(model.parameters(), **arguments), model, 3, mu)  # type: ignore[arg-type]
    torch.testing.assert_close(result.model_delta, delta, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.buffer_delta, buffers - initial_buffers)
    assert result.train_loss == pytest.approx(loss, rel=1e-5)
    assert (result.client, result.num_examples) == (1, 22)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("norm_momentum", [0.1, None])  # None: the plain average over all batches so far
def test_a_client_does_not_depend_on_the_one_before(optimizer: str, norm_momentum: float | None) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = replace(BASE, optimizer=optimizer, lr=0.02, momentum=momentum)

    def fresh() -> LocalTrainer:
        return trainer(config, net(dropout=0.5, norm_momentum=norm_momentum))

    used = fresh()
    first = local(used, client=0, examples=torch.arange(30, 40))
    after, alone = local(used), local(fresh())
    assert same(after, alone)
    assert not torch.equal(first.model_delta, after.model_delta)


def test_training_starts_where_it_is_told() -> None:
    used = trainer()
    start = torch.full_like(used.model.parameters, 0.1), torch.cat([torch.full((4,), 3.0), torch.full((4,), 2.0)])
    kept = tuple(vector.clone() for vector in start)
    result = local(used, start, examples=EXAMPLES[:5])
    assert all(map(torch.equal, start, kept))
    assert torch.equal(used.model.parameters - start[0], result.model_delta)
    assert torch.equal(used.model.buffers - start[1], result.buffer_delta)
    assert result.num_examples == 5
    assert result.model_delta.any()
    batch_mean = (used.model.buffers[:4] - 0.9 * 3.0) / 0.1
    expected = F.conv2d(batch_source().inputs[:5], torch.full((4, 1, 3, 3), 0.1), torch.full((4,), 0.1)).mean((0, 2, 3))
    torch.testing.assert_close(batch_mean, expected, rtol=1e-3, atol=1e-4)


def test_a_vanishing_rate_leaves_the_model_and_measures_its_loss() -> None:
    """The mean is over examples, not batches, of which the last is smaller."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    used = trainer(replace(BASE, lr=1e-30), model)
    result = local(used, as_built(used))
    assert not result.model_delta.any()
    source = batch_source()
    expected = F.cross_entropy(model(source.inputs[EXAMPLES]), source.labels[EXAMPLES]).item()
    assert result.train_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 2])
def test_steps_may_be_counted_instead_of_epochs(epochs: int) -> None:
    by_epochs = local(trainer(replace(BASE, local_epochs=epochs)))
    by_steps = local(trainer(replace(BASE, local_epochs=7, local_steps=5 * epochs)))
    assert same(by_epochs, by_steps)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 5), ({"local_epochs": 2}, 10)] + [({"local_steps": steps}, steps) for steps in (1, 4, 7, 13)],
)
def test_as_many_steps_as_asked_for(settings: dict[str, Any], steps: int) -> None:
    model, batches = net(), []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    local(trainer(replace(BASE, **settings), model))
    assert batches == ([5, 5, 5, 5, 2] * 3)[:steps]


def test_a_result_s_vectors_are_the_trainer_s_own() -> None:
    """No vector of the model's size is allocated for a client; the next one overwrites them."""
    used = trainer()
    start = as_built(used)
    first = used.train(0, 2, EXAMPLES, *start, {})
    before = first.model_delta.clone()
    second = used.train(1, 2, EXAMPLES, *start, {})
    assert first.model_delta is second.model_delta is used.model_delta
    assert not torch.equal(first.model_delta, before)


def test_steps_without_a_fresh_start_go_on_where_the_last_ones_ended() -> None:
    """Centralised training: parameters and momentum stay from round to round."""
    used = trainer(replace(BASE, momentum=0.9))
    model, end = net(), []
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        loss = used.run_steps(1, 2, EXAMPLES)
        _, buffers, expected = ordinary_loop(optimizer, model, 1)
        assert loss == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(used.model.buffers, buffers)
        end.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(used.model.parameters, end[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(end[0], end[1])


@pytest.mark.parametrize("steps", [None, 3, 9])
def test_penalties_are_added_for_their_steps(steps: int | None) -> None:
    seen: list[Tensor] = []

    def penalty(context: LocalContext) -> Penalty:
        assert torch.equal(context.global_parameters, start[0])
        assert (list(context.memory), list(context.server)) == (["memory"], ["told"])
        assert (context.round, context.lr) == (2, 0.25)
        assert context.layout is used.model.layout
        return Penalty(lambda gradient, local: seen.append(local.clone()), steps)

    used = trainer(replace(BASE, local_steps=7, lr=0.25), penalty=penalty)
    start = as_built(used)
    used.train(1, 2, EXAMPLES, *start, {"memory": torch.zeros(1)}, told={"told": torch.zeros(1)})
    assert len(seen) == min(steps or 7, 7)
    assert torch.equal(seen[0], start[0])
    assert not torch.equal(seen[1], start[0])


def test_the_velocity_restarts_when_the_penalty_ends() -> None:
    """A penalty of nothing for two steps: two steps of momentum, then three from rest."""
    ends = Penalty(lambda gradient, local: None, 2)
    used = trainer(replace(BASE, local_steps=5, momentum=0.9), penalty=lambda context: ends)
    start = as_built(used)
    restarted = used.train(1, 2, EXAMPLES, *start, {}).model_delta.clone()
    model = net()
    batches = list(batch_source().batches(EXAMPLES, 5, generator(0, "shuffle", 2, 1)))
    model.train()
    for part in (batches[:2], batches[2:]):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        for inputs, labels in part:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach() - start[0]
    torch.testing.assert_close(restarted, expected, rtol=1e-4, atol=1e-6)


def test_what_a_penalty_has_moved_is_not_in_the_delta() -> None:
    used = trainer()
    start = as_built(used)
    plain = used.train(1, 2, EXAMPLES, *start, {}).model_delta.clone()
    moved = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    moving = Penalty(lambda gradient, local: None, moved=moved)
    used = trainer(penalty=lambda context: moving)
    assert torch.equal(used.train(1, 2, EXAMPLES, *start, {}).model_delta, plain - moved)


def test_a_step_ahead_starts_at_the_residual_and_measures_from_there() -> None:
    """w_start = w + a * A and Delta = w_end - w_start: plain training from another start."""
    used = trainer(replace(BASE, step_ahead=0.25))
    parameters, buffers = as_built(used)
    residual = torch.randn(parameters.shape, generator=torch.Generator().manual_seed(0))
    ahead = used.train(1, 2, EXAMPLES, parameters, buffers, {"residual": residual}).model_delta.clone()
    plain = trainer().train(1, 2, EXAMPLES, parameters.add(residual, alpha=0.25), buffers, {})
    assert torch.equal(ahead, plain.model_delta)


def test_epochs_are_shuffled_afresh() -> None:
    model, seen = net(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    local(trainer(replace(BASE, local_epochs=2), model))
    first, second = torch.cat(seen[:5]).flatten(1), torch.cat(seen[5:]).flatten(1)
    assert not torch.equal(first, second)
    assert torch.equal(torch.unique(first, dim=0), torch.unique(second, dim=0))


def test_dropout_and_order_belong_to_seed_round_and_client() -> None:
    def drop(seed: int = 0, **place: int) -> ClientResult:
        torch.manual_seed(99)
        torch.rand(seed)  # wherever the global generator stands
        return local(trainer(model=net(dropout=0.5), seed=seed), **place)  # type: ignore[arg-type]

    first = drop()
    assert same(first, drop())
    for other in (drop(seed=1), drop(client=2), drop(round_=3)):
        assert not torch.equal(first.model_delta, other.model_delta)


def test_a_model_that_was_just_evaluated_trains_all_the_same() -> None:
    assert same(local(trainer(model=net(dropout=0.5).eval())), local(trainer(model=net(dropout=0.5))))


def test_dropout_drops() -> None:
    """With one batch that holds every example, the order hardly matters: what differs is what was dropped."""
    config = replace(BASE, batch_size=22)
    kept, dropped, again = (local(trainer(config, net(dropout=p)), client=c) for p, c in [(0, 1), (0.5, 1), (0.5, 2)])
    assert not torch.allclose(kept.model_delta, dropped.model_delta, rtol=0.1)
    assert not torch.allclose(dropped.model_delta, again.model_delta, rtol=0.1)


def test_a_zero_coefficient_is_plain_training_and_memory_is_left_alone() -> None:
    plain = local(trainer())
    assert same(plain, local(trainer(replace(BASE, objective="fedprox", fedprox=FedProxConfig(0.0)))))
    pulled = local(trainer(replace(BASE, objective="fedprox", fedprox=FedProxConfig(5.0))))
    assert pulled.model_delta.norm() < plain.model_delta.norm()
    state = {"residual": torch.ones_like(plain.model_delta)}
    used = trainer()
    used.train(1, 2, EXAMPLES, *as_built(used), state)
    assert (state["residual"] == 1).all()


def test_frozen_parameters_neither_train_nor_travel() -> None:
    model = net()
    model.conv.requires_grad_(False)
    frozen = copy.deepcopy(model.conv)
    used = trainer(model=model)
    result = local(used, as_built(used))
    assert result.model_delta.shape == (4 + 4 + 16 * CLASSES + CLASSES,)
    assert result.model_delta.any()
    assert torch.equal(model.conv.weight, frozen.weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["loss", "delta", "buffers"])
@pytest.mark.parametrize("position", [0, 500, 999])
def test_results_know_that_they_are_not_finite(bad: float, place: str, position: int) -> None:
    rng = torch.Generator().manual_seed(0)
    delta, buffers = torch.randn(2, 1000, generator=rng)
    assert ClientResult(0, 1, 1.0, delta, buffers).is_finite
    assert ClientResult(0, 1, 1.0, delta, torch.empty(0)).is_finite
    if place != "loss":
        (delta if place == "delta" else buffers)[position] = bad
    assert not ClientResult(0, 1, bad if place == "loss" else 1.0, delta, buffers).is_finite


def test_a_large_finite_delta_is_finite() -> None:
    """No sum that could overflow decides."""
    assert ClientResult(0, 1, 1.0, torch.full((1000,), 3e38), torch.full((5,), -3e38)).is_finite


def test_divergence_is_seen() -> None:
    assert local(trainer()).is_finite
    assert not local(trainer(replace(BASE, lr=1e30, local_epochs=3))).is_finite


def test_rounding_to_bfloat16_is_no_delta() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES).to(torch.bfloat16))
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].bfloat16(),))
    used = trainer(replace(BASE, lr=1e-30), model)
    parameters = torch.linspace(0.5, 1.5, used.model.layout.total)  # a step of 1e-30 moves none of them
    assert not torch.equal(parameters, parameters.bfloat16().float())
    result = local(used, (parameters, used.model.buffers.clone()))
    assert not result.model_delta.any()
    assert result.model_delta.dtype == torch.float32
