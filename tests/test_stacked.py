"""Clients in one batch have the steps of the ordinary loop of each."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.clients import batchable
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.clients.stacked import Step, train_stacked
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.engines import OPTIMIZER_SETTINGS


class Net(nn.Module):
    """A convolution, a buffer that is constant, a parameter that nobody uses and one used twice."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = norm or nn.GroupNorm(1, 3)
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.idle = nn.Parameter(torch.ones(2))
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(self.first(torch.tanh(self.first(x)))) * self.scale


@pytest.mark.parametrize("clipping", [None, 0.05])
@pytest.mark.parametrize("settings", OPTIMIZER_SETTINGS)
def test_in_double_precision_a_round_is_the_ordinary_loop_of_each_client(settings: str, clipping: float | None) -> None:
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = Net().double()
    initial = {name: value.detach().clone() for name, value in net.named_parameters()}
    clients = ClientsConfig(**{"lr": 0.1} | OPTIMIZER_SETTINGS[settings])

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return OPTIMIZERS[clients.optimizer](parameters, clients.lr, clients.momentum, clients.weight_decay)

    lengths = [[5, 5, 5, 5, 5, 2], [5, 5, 5, 5, 1], [5, 5, 5], [5, 3], [4], [1]]  # of each client's batches
    batches = [
        [(torch.randn(n, 1, 4, 4, generator=rng).double(), torch.randint(4, (n,), generator=rng)) for n in of_client]
        for of_client in lengths
    ]
    steps = []
    for number in range(len(lengths[0])):
        taken = [own[number] for own in batches if number < len(own)]
        filled = [[*range(len(labels)), *[0] * (5 - len(labels))] for _, labels in taken]
        steps.append(
            Step(
                torch.stack([inputs[at] for (inputs, _), at in zip(taken, filled)]),
                torch.stack([labels[at] for (_, labels), at in zip(taken, filled)]),
                torch.tensor([len(labels) for _, labels in taken]),
            )
        )
    ends, loss_sums, _ = train_stacked(net, initial, len(lengths), steps, make_optimizer, CLASSIFICATION, clipping)
    assert all(torch.equal(value, initial[name]) for name, value in net.named_parameters())
    for row, own in enumerate(batches):
        model, loss_sum = copy.deepcopy(net), 0.0
        for value in model.parameters():
            value.grad = torch.zeros_like(value)
        optimizer = make_optimizer(list(model.parameters()))
        for inputs, labels in own:
            optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            if clipping is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clipping)
            optimizer.step()
            loss_sum += loss.item() * len(labels)
        for value, end in zip(model.parameters(), ends):
            torch.testing.assert_close(end[row], value.detach(), rtol=1e-9, atol=1e-9)
        assert loss_sums[row].item() == pytest.approx(loss_sum, rel=1e-9)


def test_clients_with_texts_have_the_step_of_each() -> None:
    """Every place of a text has a label."""
    torch.manual_seed(0)

    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(x))).movedim(-1, 1)

    model = Speaker()
    assert batchable.why_not_batchable(model, torch.zeros(1, 5, dtype=torch.int64)) is None
    inputs, labels = torch.randint(4, (2, 3, 5)), torch.randint(4, (2, 3, 5))
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    step = Step(inputs, labels, torch.tensor([3, 3]))
    ends, loss_sums, _ = train_stacked(
        model, initial, 2, [step], lambda rows: torch.optim.SGD(rows, lr=0.1), CLASSIFICATION
    )
    for row in range(2):
        single = copy.deepcopy(model)
        loss = F.cross_entropy(single(inputs[row]), labels[row])
        loss.backward()
        assert loss_sums[row].item() == pytest.approx(3 * loss.item(), rel=1e-5)
        for value, end in zip(single.parameters(), ends):
            assert value.grad is not None
            torch.testing.assert_close(end[row], (value - 0.1 * value.grad).detach())
