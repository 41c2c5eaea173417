"""Recorded steps have the bits of those that autograd takes, and what cannot be recorded is not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from flare_dist.engines import recorded
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.recorded import Recordings, record, why_not_recorded
from flare_dist.models.registry import build
from flare_dist.seeding import states_outside_torch
from flare_dist.tasks.builtin import CLASSIFICATION

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CPU = torch.device("cpu")
Penalty = Callable[[Tensor, Tensor], None]


def batches(shape: tuple[int, ...], sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for seed, size in enumerate(sizes):
        draws = torch.Generator().manual_seed(seed)
        yield torch.randn(size, *shape, generator=draws), torch.randint(0, 5, (size,), generator=draws)


def shrink(gradient: Tensor, parameters: Tensor) -> None:
    gradient.add_(parameters, alpha=0.1)


@pytest.mark.parametrize(("name", "shape"), [("2nn", (1, 8, 8)), ("lenet", (3, 32, 32)), ("cnn", (3, 32, 32))])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("penalty", [None, shrink])
def test_recorded_steps_have_the_same_bits(
    name: str, shape: tuple[int, ...], momentum: float, penalty: Penalty | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for records in (True, False):
        if not records:
            monkeypatch.setattr(Recordings, "step", lambda self, values, batch: None)
        net = build(name, "batch", shape, 5, 0, CLASSIFICATION)
        used = AccelerateModel(
            EngineConfig(), net, CPU, lambda flat: torch.optim.SGD(flat, lr=0.1, momentum=momentum), CLASSIFICATION
        )
        losses = [used.step(batch, penalty)[0] for batch in batches(shape, [6, 6, 6, 4, 6, 4])]
        ends.append((used.parameters.clone(), torch.stack(losses)))
        if records:
            assert used._recordings is not None
            assert [made is not None for made in used._recordings._by_shape.values()] == [True, True]
        AcceleratorState._reset_state(True)
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_only_a_few_shapes_are_recorded() -> None:
    net = nn.Linear(3, 5)
    weights = list(net.parameters())
    recordings = Recordings(net, weights, CLASSIFICATION)
    made = [recordings.step(weights, batch) is not None for batch in batches((3,), [9, 8, 7, 6, 5, 9, 6])]
    assert made == [True] * recorded.SHAPES + [False, True, True]
    net.eval()
    assert recordings.step(weights, next(batches((3,), [9]))) is None


class Own(nn.Module):
    """A user's module, whose forward pass may do anything."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(3, 5), forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self.then(self.layer(inputs))


def changed(change: Callable[[nn.Linear], object]) -> nn.Module:
    net = nn.Linear(3, 5)
    change(net)
    return net


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), "buffers"),
        (Own(torch.relu), "its Own may do something else"),
        (changed(lambda net: net.register_forward_hook(lambda *given: None)), "its Linear has hooks"),
        (changed(lambda net: net.compile(backend="eager")), "its Linear has hooks or is compiled"),
        (changed(lambda net: setattr(net, "forward", torch.relu)), "its Linear has been given a function"),
        (changed(lambda net: net.weight.register_hook(lambda gradient: None)), "hooks on its parameters"),
        (
            changed(lambda net: net.weight.register_post_accumulate_grad_hook(lambda weight: None)),
            "hooks on its parameters",
        ),
        (torch.fx.symbolic_trace(nn.Linear(3, 5)), "may do something else at every call"),
        (nn.Linear(1024, 1024), "large"),
        (nn.Linear(3, 5), None),
    ],
)
def test_models_that_may_not_repeat_their_operations_are_not_recorded(model: nn.Module, reason: str | None) -> None:
    found = why_not_recorded(model)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_hooks_on_all_modules_are_seen() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        assert why_not_recorded(nn.Linear(3, 5)) is not None
    finally:
        handle.remove()


def test_a_function_of_torch_s_that_means_something_else_is_not_called() -> None:
    """The short one averages by default, where the operation, whose default arguments are left out, does not."""

    def scaled(scores: Tensor) -> Tensor:
        fixed = scores.detach()
        return scores * nn.functional.binary_cross_entropy_with_logits(fixed, fixed.sigmoid())

    model = Own(scaled)
    tensors = list(model.parameters())
    recording = record(model, tensors, *next(batches((3,), [4])), CLASSIFICATION)
    assert recording is not None
    inputs, labels = list(batches((3,), [4, 4]))[1]
    loss = nn.functional.cross_entropy(model(inputs), labels)
    expected = (loss, *torch.autograd.grad(loss, tensors))
    count, *results = recording(*[t.detach() for t in tensors], inputs, labels)
    assert count == 4
    assert all(map(torch.equal, results, expected))


CONSTANT = torch.ones(5)


@pytest.mark.parametrize(
    "then",
    [
        lambda scores: nn.functional.dropout(scores, 0.5),
        lambda scores: scores if scores.sum() > 0 else -scores,  # depends on what is in the batch
        lambda scores: scores * CONSTANT,  # neither parameter nor input, and so it may change
        lambda scores: scores.clone().relu_(),
        lambda scores: scores[scores[:, 0] > -100],
        lambda scores: scores * float("nan"),  # no bits to compare
        lambda scores: scores.detach().requires_grad_(),  # no gradient for the parameters
        lambda scores: scores * random.random(),
        lambda scores: scores if np.random.random() < 2 else -scores,
    ],
    ids=["dropout", "branch", "constant", "in place", "selection", "nan", "no gradient", "random", "numpy"],
)
def test_passes_that_a_list_of_operations_cannot_repeat_are_not_recorded(then: Callable[[Tensor], Tensor]) -> None:
    model, before = Own(then), states_outside_torch()
    assert record(model, list(model.parameters()), *next(batches((3,), [4])), CLASSIFICATION) is None
    assert states_outside_torch() == before


def test_neither_weights_nor_gradients_nor_draws_change_while_recording() -> None:
    model = build("2nn", "batch", (1, 8, 8), 5, 0, CLASSIFICATION)
    before, state = [parameter.clone() for parameter in model.parameters()], torch.get_rng_state()
    assert record(model, list(model.parameters()), *next(batches((1, 8, 8), [4])), CLASSIFICATION) is not None
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
