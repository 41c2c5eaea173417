"""FLARE's pull against autograd and against the closed form of one step; without a pull it is error feedback."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.algorithms import flare
from flare_dist.algorithms.algorithm import LocalContext, Penalty
from flare_dist.algorithms.flare import FlareConfig, flare_penalty
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.federation import Federation

LAYOUT = ParameterLayout.of([("a.weight", torch.empty(30, 9)), ("a.bias", torch.empty(9)), ("b", torch.empty(1))])
CONFIG = Config(
    seed=3,
    rounds=3,
    data=DataConfig(
        name="synthetic",
        normalize="unit",
        synthetic=SyntheticConfig(examples=120, test_examples=20, shape=(1, 5, 5), classes=3),
    ),
    clients=ClientsConfig(num=3, batch_size=40, lr=0.05, momentum=0.5, objective="flare"),
    compression=CompressionConfig(density=0.02),
)


def vectors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gradient, local, global and residual in float64."""
    rng = torch.Generator().manual_seed(seed)
    gradient, local, global_parameters, residual = torch.randn(4, LAYOUT.total, generator=rng, dtype=torch.float64)
    return gradient, local, global_parameters, residual


def penalty(
    config: FlareConfig, global_parameters: Tensor, residual: Tensor, round_: int = 1, **local: float
) -> Penalty | None:
    settings = {"lr": 0.1, "momentum": 0.0} | local
    return flare_penalty(config, LocalContext(LAYOUT, round_, settings["lr"], settings["momentum"], global_parameters,
                                              {"residual": residual}, {}))  # fmt: skip


def masks(residual: Tensor, percentile: float) -> Tensor:
    """M by sorting: the nearest rank, strict, tensor by tensor."""
    parts = []
    for _, part in LAYOUT.views(residual):
        flat = part.flatten().abs()
        parts.append(flat > np.sort(flat.numpy())[round(percentile / 100 * (flat.numel() - 1))])
    return torch.cat(parts)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 90.0])
@pytest.mark.parametrize("round_", [1, 7])
@pytest.mark.parametrize("chunk", [7, 2**16])
def test_the_pull_is_the_gradient_of_the_penalty(
    monkeypatch: pytest.MonkeyPatch, percentile: float, round_: int, chunk: int
) -> None:
    monkeypatch.setattr(flare, "_CHUNK", chunk)
    gradient, local, global_parameters, residual = vectors()
    pull = penalty(FlareConfig(tau=0.5, decay=1.25, percentile=percentile), global_parameters, residual, round_)
    assert pull is not None
    moving = local.clone().requires_grad_()
    mask = masks(residual, percentile)
    (0.5 / 1.25**round_ * (mask * (moving - (global_parameters + residual)).abs()).sum()).backward()
    assert moving.grad is not None
    expected = gradient + moving.grad
    kept = [v.clone() for v in (local, global_parameters, residual)]
    pull.add_gradient(gradient, local)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=1e-14)
    assert all(map(torch.equal, kept, (local, global_parameters, residual)))
    assert 0 < mask.sum() < LAYOUT.total


@pytest.mark.parametrize("settings", [{}, {"cap": True}, {"conserve": True}], ids=["plain", "cap", "conserve"])
def test_knowing_that_the_first_step_starts_at_the_global_parameters_changes_no_bit(settings: dict[str, Any]) -> None:
    gradient, local, global_parameters, residual = (vector.float() for vector in vectors())
    ends = []
    for known in (True, False):
        context = LocalContext(
            LAYOUT, 2, 0.1, 0.0, global_parameters, {"residual": residual}, {}, starts_at_global=known
        )
        found = flare_penalty(FlareConfig(steps=None, **settings), context)
        assert found is not None
        first, second = gradient.clone(), gradient.clone()
        found.add_gradient(first, global_parameters)
        found.add_gradient(second, local)
        ends.append(torch.cat([first, second]))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], torch.cat([gradient, gradient]))


def test_a_capped_pull_ends_at_its_target() -> None:
    _, _, global_parameters, residual = vectors()
    pull = penalty(FlareConfig(tau=2.0, percentile=0, steps=None, cap=True), global_parameters, residual)
    assert pull is not None
    local, mask = global_parameters.clone(), masks(residual, 0)
    for step in range(60):
        gradient = torch.zeros_like(local)
        pull.add_gradient(gradient, local)
        assert float(gradient.abs().max()) <= 2.0 + 1e-12
        local -= 0.1 * gradient
        if not step:
            expected = residual.clamp(-0.2, 0.2)
            torch.testing.assert_close((local - global_parameters)[mask], expected[mask])
    torch.testing.assert_close(local[mask], (global_parameters + residual)[mask])
    assert torch.equal(local[~mask], global_parameters[~mask])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_the_pull_moved_is_what_training_without_it_lacks(momentum: float) -> None:
    """On a loss whose gradient is constant, the pull is all that differs between two runs of SGD."""
    slope, _, global_parameters, residual = vectors()
    pull = penalty(
        FlareConfig(tau=0.3, steps=None, conserve=True), global_parameters, residual, lr=0.1, momentum=momentum
    )
    assert pull is not None
    ends = []
    for with_pull in (True, False):
        local = nn.Parameter(global_parameters.clone())
        optimizer = torch.optim.SGD([local], lr=0.1, momentum=momentum)
        for _ in range(5):
            local.grad = slope.clone()
            if with_pull:
                pull.add_gradient(local.grad, local.data)
            optimizer.step()
        ends.append(local.detach().clone())
    assert pull.moved is not None
    torch.testing.assert_close(pull.moved, ends[0] - ends[1])
    assert pull.moved.any()


def test_excluded_parameters_are_never_pulled() -> None:
    _, local, global_parameters, residual = vectors()
    pull = penalty(FlareConfig(exclude=("a.*",), percentile=0), global_parameters, residual)
    assert pull is not None
    gradient = torch.zeros_like(local)
    pull.add_gradient(gradient, local)
    assert not gradient[: LAYOUT.entries[2].offset].any()
    pull = penalty(FlareConfig(exclude=("*.bias",), percentile=0), global_parameters, residual)
    assert pull is not None
    pull.add_gradient(gradient, local)
    assert [bool(part.any()) for _, part in LAYOUT.views(gradient)] == [True, False, False]


@pytest.mark.parametrize("settings", [{"tau": 0.0}, {"steps": 0}, {"tau": 1e-300, "decay": 1e30}, {"tau": 1e-40}])
def test_nothing_to_pull_is_no_penalty(settings: dict[str, Any]) -> None:
    _, _, global_parameters, residual = vectors()
    assert penalty(FlareConfig(**settings), global_parameters, residual) is None
    assert penalty(FlareConfig(), global_parameters, torch.zeros_like(residual)) is None
    assert penalty(FlareConfig(), global_parameters, residual, lr=0.0) is None


def set_up(config: Config) -> Federation:
    torch.set_num_threads(1)
    return set_up_federation(config, World())


def with_clients(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(config, clients=dataclasses.replace(config.clients, **settings))


def test_one_step_is_the_closed_form() -> None:
    """E * batches = p = 1: U = A - lr * grad f + lr * tau * M * sign(A), computed in float64 by autograd."""
    config = with_clients(CONFIG, num=1, batch_size=200, lr=0.5, flare=FlareConfig(tau=0.7, decay=1.5))
    fed = set_up(config)
    start, buffers = fed.server.parameters.data, fed.server.buffers
    residual = 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    result = fed.clients.trainer.train(0, 4, fed.clients.partition[0], start, buffers, {"residual": residual})
    update = result.model_delta.double() + residual.double()

    model = fed.clients.trainer.model.module.double()
    nn.utils.vector_to_parameters(start.double(), model.parameters())
    ((inputs, labels),) = fed.clients.trainer.source.batches(fed.clients.partition[0], 200, None)
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs.double()), labels), list(model.parameters()))
    gradient = torch.cat([g.flatten() for g in gradients])
    mask = torch.cat(
        [
            (flat := part.flatten().abs()) > flat.kthvalue(round(0.5 * (flat.numel() - 1)) + 1).values
            for _, part in fed.clients.trainer.model.layout.views(residual)
        ]
    )
    pull = 0.5 * (0.7 / 1.5**4) * mask * residual.double().sign()
    expected = residual.double() - 0.5 * gradient + pull
    ulp = float(np.spacing(start.abs().max().numpy()))
    assert float((update - expected).abs().max()) <= 4 * ulp
    assert float((update - (expected - pull)).abs().max()) > 1000 * ulp  # the pull is no rounding error


def test_conserving_leaves_one_step_as_error_feedback_has_it() -> None:
    """In one step from rest the loss never sees the pull, so all of the delta that it makes is taken out again."""
    conserving = FlareConfig(tau=0.7, conserve=True)
    deltas = []
    for objective in ("flare", "none"):
        fed = set_up(with_clients(CONFIG, num=1, batch_size=200, objective=objective, flare=conserving))
        start, buffers = fed.server.parameters.data, fed.server.buffers
        residual = 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
        state = {"residual": residual}
        deltas.append(fed.clients.trainer.train(0, 1, fed.clients.partition[0], start, buffers, state).model_delta)
    torch.testing.assert_close(deltas[0], deltas[1], rtol=0, atol=1e-6)


def rounds(config: Config) -> Tensor:
    fed = set_up(config)
    for round_ in range(1, config.rounds + 1):
        federated_round(round_, fed)
    return fed.server.parameters.detach()


@pytest.mark.parametrize("settings", [FlareConfig(tau=0.0), FlareConfig(steps=0)], ids=["tau = 0", "p = 0"])
def test_without_a_pull_it_is_error_feedback_bitwise(settings: FlareConfig) -> None:
    plain = rounds(with_clients(CONFIG, objective="none"))
    assert torch.equal(rounds(with_clients(CONFIG, flare=settings)), plain)
    assert not torch.equal(rounds(with_clients(CONFIG, flare=FlareConfig())), plain)


def test_without_a_residual_it_is_error_feedback_bitwise() -> None:
    """The first round, in which A = 0; the second differs."""
    plain = with_clients(CONFIG, objective="none")
    for count, same in ((1, True), (2, False)):
        ends = [rounds(dataclasses.replace(config, rounds=count)) for config in (CONFIG, plain)]
        assert torch.equal(*ends) is same


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tau", -0.1, r"out of range, got .*; choose a number in \[0, 1e38\)"),
        ("tau", float("nan"), r"out of range, got .*; choose a number in \[0, 1e38\)"),
        ("decay", 0.99, "out of range, got 0.99; choose at least 1"),
        ("percentile", 100.0, r"out of range, got .*; choose a number in \[0, 100\)"),
        ("percentile", -1.0, r"out of range, got .*; choose a number in \[0, 100\)"),
        ("steps", -1, "out of range, got -1; choose at least 0"),
    ],
)
def test_errors_name_the_key(key: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^clients\.flare\.{key}: {message}$"):
        FlareConfig(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", [{"error_feedback": "none"}, {"error_feedback": "ef21"}, {"density": 1.0}])
def test_pulling_needs_a_residual(compression: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^clients\.objective: flare pulls towards the residual"):
        dataclasses.replace(CONFIG, compression=CompressionConfig(**compression))
    with pytest.raises(ValueError, match=r"^clients\.step_ahead: step_ahead follows the residual"):
        dataclasses.replace(
            with_clients(CONFIG, objective="none", step_ahead=0.5), compression=CompressionConfig(**compression)
        )


def test_conserving_needs_plain_sgd() -> None:
    with pytest.raises(ValueError, match=r"^clients\.flare\.conserve: fp16 skips steps"):
        dataclasses.replace(
            with_clients(CONFIG, flare=FlareConfig(conserve=True)), engine=EngineConfig(mixed_precision="fp16")
        )
    with pytest.raises(ValueError, match=r"^clients\.flare\.conserve: needs clients\.optimizer=sgd"):
        with_clients(CONFIG, optimizer="adam", momentum=0.0, flare=FlareConfig(conserve=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cap", [False, True])
def test_the_device_changes_nothing(cap: bool) -> None:
    gradients = []
    for device in ("cpu", "cuda"):
        gradient, local, global_parameters, residual = (v.float().to(device) for v in vectors())
        pull = penalty(FlareConfig(cap=cap), global_parameters, residual)
        assert pull is not None
        pull.add_gradient(gradient, local)
        gradients.append(gradient.cpu())
    torch.testing.assert_close(*gradients)


def test_of_a_sparse_model_the_percentile_is_that_of_the_active_entries() -> None:
    _, local, global_parameters, residual = vectors()
    active = torch.arange(LAYOUT.total) % 10 == 0
    residual = residual * active
    context = LocalContext(LAYOUT, 1, 0.1, 0.0, global_parameters, {"residual": residual}, {}, mask=active)
    pull = flare_penalty(FlareConfig(percentile=50.0), context)
    assert pull is not None
    gradient = torch.zeros(LAYOUT.total, dtype=torch.float64)
    pull.add_gradient(gradient, local)
    weights = slice(0, 270)  # 27 of them active: the 13 above their median are pulled
    assert int(gradient[weights].count_nonzero()) == 13
    assert not gradient[~active].any()
