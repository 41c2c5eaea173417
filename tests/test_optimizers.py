"""The server's optimizers against the methods that they are named after, and their memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, Optimizer, RMSprop

from flare_dist.layout import ParameterLayout
from flare_dist.server.config import ServerConfig
from flare_dist.server.optimizers import OPTIMIZERS, find_optimizer, load_optimizer_state, optimizer_state
from flare_dist.server.server import Server
from tests.helpers.servers import ROUNDS, TOTAL, delta, server, start, vectors


def test_sgd_at_rate_one_is_fedavg_exactly() -> None:
    used, expected = server(), start()
    for round_ in (1, 2, 3):
        used.step(round_, delta(round_))
        expected = expected + delta(round_)
        assert torch.equal(used.parameters.data, expected)


def test_momentum_is_fedavgm() -> None:
    """v <- 0.5 v + Delta, w <- w + 0.25 v (Hsu et al. 2019), by hand: binary fractions, hence exact."""
    used = Server(torch.zeros(2), torch.empty(0), ServerConfig(lr=0.25, momentum=0.5), ROUNDS)
    for mean_delta, expected in [
        ([8.0, -4.0], [2.0, -1.0]),
        ([4.0, 0.0], [4.0, -1.5]),
        ([0.0, 16.0], [5.0, 2.25]),
    ]:
        used.step(1, torch.tensor(mean_delta))
        assert used.parameters.tolist() == expected


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"optimizer": "adam", "lr": 0.01}, lambda p: Adam([p], lr=0.01)),
        ({"optimizer": "adamw", "lr": 0.01}, lambda p: AdamW([p], lr=0.01)),
        ({"optimizer": "adagrad", "lr": 0.01}, lambda p: Adagrad([p], lr=0.01)),
        ({"optimizer": "rmsprop", "lr": 0.01, "momentum": 0.9}, lambda p: RMSprop([p], lr=0.01, momentum=0.9)),
    ],
)
def test_other_optimizers_are_torch_s_on_the_pseudo_gradient(
    settings: dict[str, Any], make: Callable[[Tensor], Optimizer]
) -> None:
    used, plain = server(**settings), nn.Parameter(start())
    optimizer = make(plain)
    for round_ in range(1, 5):
        used.step(round_, delta(round_))
        plain.grad = -delta(round_)
        optimizer.step()
        assert torch.equal(used.parameters.data, plain.data)


# Two weights over three rounds, worked out by hand with tau = 0.1, lr = 0.5 and the published betas.
DELTAS = ((0.2, -0.05), (0.1, 0.3), (-0.4, 0.0))


def by_hand(name: str, deltas: list[float]) -> list[float]:
    """Where one weight, at first 0, is after each round: the equations of Reddi et al. 2021, a number at a time."""
    w, m, v, path = 0.0, 0.0, 0.1**2, []
    for delta_ in deltas:
        if name == "fedavgm":
            m = 0.9 * m + delta_
            w = w + 0.5 * m
        else:
            beta1 = 0.0 if name == "fedadagrad" else 0.9
            m = beta1 * m + (1 - beta1) * delta_
            squared = delta_ * delta_
            if name == "fedadagrad":
                v = v + squared
            elif name == "fedadam":
                v = 0.99 * v + 0.01 * squared
            else:
                v = v - 0.01 * squared * (1 if v > squared else -1 if v < squared else 0)
            w = w + 0.5 * m / (math.sqrt(v) + 0.1)
        path.append(w)
    return path


LAST = {  # of the first weight, to the tenth digit
    "fedavgm": 0.1660000000,
    "fedadagrad": 0.1024978011,
    "fedadam": 0.0836438119,
    "fedyogi": 0.0836005417,
}


@pytest.mark.parametrize("name", LAST)
def test_adaptive_federated_optimizers_follow_a_trajectory_worked_out_by_hand(name: str) -> None:
    used = ServerConfig(optimizer=name, lr=0.5, tau=0.1)
    parameters = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = find_optimizer(name).make(parameters, used.settings)
    expected = list(zip(*(by_hand(name, [row[place] for row in DELTAS]) for place in (0, 1))))
    for row, wanted in zip(DELTAS, expected):
        parameters.grad = -torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        assert parameters.tolist() == pytest.approx(wanted, rel=0, abs=1e-9)
    assert parameters[0].item() == pytest.approx(LAST[name], rel=0, abs=1e-9)


def test_adaptive_moments_begin_at_tau_squared_and_go_back_to_it_where_weights_are_pruned() -> None:
    used = server(optimizer="fedyogi", lr=0.1)
    used.step(1, delta(1))
    state = used.optimizer.state[used.parameters]
    mask = torch.arange(TOTAL) < 30
    assert used.forget_outside(mask) == 2 * 20  # m and v of what is pruned
    assert used.forget_outside(mask) == 0
    assert not state["m"][30:].any()
    assert torch.equal(state["v"][30:], torch.full((20,), 1e-3**2))
    assert state["m"][:30].all()


def test_any_optimizer_of_torch_can_be_named() -> None:
    used, plain = server(optimizer="torch:NAdam", lr=0.01, betas=(0.8, 0.9)), nn.Parameter(start())
    optimizer = torch.optim.NAdam([plain], lr=0.01, betas=(0.8, 0.9))
    for round_ in (1, 2, 3):
        used.step(round_, delta(round_))
        plain.grad = -delta(round_)
        optimizer.step()
        assert torch.equal(used.parameters.data, plain.data)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_server_follows_the_clients(optimizer: str) -> None:
    """A step in the delta's direction, not against it."""
    used = server(optimizer=optimizer, lr=0.01)
    used.step(1, delta(1))
    assert ((used.parameters.data - start()) * delta(1)).sum() > 0


@pytest.mark.parametrize("other", [name for name in OPTIMIZERS if name != "adam"])
def test_another_optimizer_s_state_is_refused_and_nothing_is_changed(other: str) -> None:
    old, new = server(optimizer="adam"), Server(torch.zeros(TOTAL), torch.zeros(3), ServerConfig(other), ROUNDS)
    old.step(1, delta(1))
    before = copy.deepcopy(vectors(new.state_dict()))
    with pytest.raises(
        ValueError, match=rf"^server\.optimizer: the checkpoint holds the state of adam, not of {other}$"
    ):
        new.load_state_dict(old.state_dict())
    after = vectors(new.state_dict())
    assert len(after) == len(before)
    assert all(map(torch.equal, after, before))


def test_the_error_names_the_key_that_it_is_given() -> None:
    plain = nn.Parameter(start())
    optimizer = Adam([plain])
    plain.grad = delta(1)
    optimizer.step()
    saved = optimizer_state(optimizer, "adam")
    with pytest.raises(ValueError, match=r"^clients\.optimizer: .* adam, not of adamw$"):
        load_optimizer_state(AdamW([plain]), "adamw", saved, "clients.optimizer")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stateless_past_goes_with_any_optimizer(optimizer: str) -> None:
    """Plain sgd leaves nothing behind, so a run may go on with another method as if it started there."""
    old = server()
    old.step(1, delta(1))
    assert not old.state_dict()["optimizer"]["state"]
    config = ServerConfig(optimizer, lr=0.1)
    resumed, new = Server(start(), torch.zeros(3), config, ROUNDS), Server(old.parameters.data, old.buffers, config, 10)
    resumed.load_state_dict(old.state_dict())
    for round_ in (2, 3):
        for each in (resumed, new):
            each.step(round_, delta(round_))
        assert torch.equal(resumed.parameters.data, new.parameters.data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"momentum": 0.9}, {"momentum": 0.25, "lr": 0.5}),
        ({"momentum": 0.9}, {"momentum": 0.0, "lr": 0.5}),
        ({"momentum": 0.0}, {"momentum": 0.5, "lr": 0.5}),
        ({"optimizer": "rmsprop", "momentum": 0.9}, {"optimizer": "rmsprop", "momentum": 0.5, "lr": 0.01}),
        ({"optimizer": "rmsprop", "momentum": 0.0}, {"optimizer": "rmsprop", "momentum": 0.5, "lr": 0.01}),
    ],
)
def test_settings_are_the_new_configuration_s(old: dict[str, Any], new: dict[str, Any]) -> None:
    past, resumed = server(**old), server(**new)
    past.step(1, delta(1))
    settings = copy.deepcopy(resumed.optimizer.state_dict()["param_groups"])
    resumed.load_state_dict(past.state_dict())
    assert resumed.optimizer.state_dict()["param_groups"] == settings
    assert resumed.optimizer.param_groups[0]["momentum"] == new["momentum"]
    resumed.step(2, delta(2))
    if "optimizer" not in new:  # by hand: v <- m v + Delta, with the old v where there was one
        velocity = delta(2) + (new["momentum"] * delta(1) if old["momentum"] else 0)
        torch.testing.assert_close(resumed.parameters.data, past.parameters.data + 0.5 * velocity)


@pytest.mark.parametrize("settings", [{"optimizer": name} for name in OPTIMIZERS] + [{"momentum": 0.9}])
def test_stateless_means_that_the_last_delta_alone_decides(settings: dict[str, Any]) -> None:
    """Two servers at the same parameters with different pasts take the same step if, and only if, stateless."""
    config = ServerConfig(lr=0.1, **settings)
    travelled, new = (Server(start(), torch.empty(0), config, ROUNDS) for _ in range(2))
    travelled.step(1, delta(1))
    travelled.parameters.data.copy_(start())
    for each in (travelled, new):
        each.step(2, delta(2))
    assert torch.equal(travelled.parameters.data, new.parameters.data) == new.is_plain


LAYOUT = ParameterLayout.of([("first", torch.zeros(2, 2)), ("second", torch.zeros(3))])


def adam_by_name(named_parameters: list[tuple[str, torch.nn.Parameter]], lr: float, eps: float = 1e-8) -> Any:
    assert [(name, tuple(own.shape)) for name, own in named_parameters] == [("first", (2, 2)), ("second", (3,))]
    return torch.optim.Adam([parameter for _, parameter in named_parameters], lr, eps=eps)


def two_rates(named_parameters: list[tuple[str, torch.nn.Parameter]], lr: float) -> Any:
    (_, first), (_, second) = named_parameters
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "lr": 10 * lr}]
    return torch.optim.SGD(groups, lr)


def no_optimizer(named_parameters: Any, lr: float) -> Any:
    return torch.optim.Adam


def by_name(name: str, **settings: Any) -> Server:
    config = ServerConfig(f"tests.test_optimizers:{name}", lr=0.1, **settings)
    return Server(torch.zeros(LAYOUT.total), torch.empty(0), config, ROUNDS, layout=LAYOUT)


def test_an_optimizer_of_named_parameters_steps_the_flat_ones_and_resumes() -> None:
    flat = Server(torch.zeros(LAYOUT.total), torch.empty(0), ServerConfig("adam", lr=0.1), ROUNDS)
    named = by_name("adam_by_name")
    assert not named.is_plain
    deltas = torch.randn(4, LAYOUT.total, generator=torch.Generator().manual_seed(0))
    for round_, own in enumerate(deltas[:3], 1):
        flat.step(round_, own.clone())
        named.step(round_, own.clone())
    assert torch.equal(flat.parameters, named.parameters)
    resumed = by_name("adam_by_name")
    resumed.load_state_dict(named.state_dict())
    for used in (flat, named, resumed):
        used.step(4, deltas[3].clone())
    assert torch.equal(flat.parameters, named.parameters)
    assert torch.equal(flat.parameters, resumed.parameters)
    mask = torch.arange(LAYOUT.total) % 2 == 0
    assert named.forget_outside(mask) == flat.forget_outside(mask) > 0


def test_groups_keep_the_ratio_of_their_rates_under_a_schedule() -> None:
    used = by_name("two_rates", lr_schedule="linear")
    for round_ in (1, 2):
        used.step(round_, torch.ones(LAYOUT.total))
        rates = [group["lr"] for group in used.optimizer.param_groups]
        assert rates == pytest.approx([0.1 * (1 - (round_ - 1) / ROUNDS), 1 - (round_ - 1) / ROUNDS])
    assert used.parameters[4:].tolist() == pytest.approx((10 * used.parameters[:3]).tolist())


def test_options_reach_the_optimizer_or_are_refused() -> None:
    assert by_name("adam_by_name", optimizer_options={"eps": 0.5}).optimizer.param_groups[0]["eps"] == 0.5
    torch_s = ServerConfig("torch:NAdam", optimizer_options={"momentum_decay": 0.1})
    made = Server(torch.zeros(3), torch.empty(0), torch_s, ROUNDS).optimizer
    assert made.param_groups[0]["momentum_decay"] == 0.1
    for name, option, problem in (
        ("torch:NAdam", "betas", "is given it already"),
        ("torch:NAdam", "momentum", "takes no such option"),
        ("fedadam", "eps", "takes no such option"),
    ):
        with pytest.raises(ValueError, match=rf"^server\.optimizer_options\.{option}: {name} {problem}, got 1; "):
            ServerConfig(name, optimizer_options={option: 1})
    with pytest.raises(ValueError, match=r"^server\.optimizer: .*:no_optimizer must return a torch\.optim\.O"):
        by_name("no_optimizer")
