"""Laws of what a rank makes of its gradient before error feedback, on flat vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flare_dist.compression import preconditioners
from flare_dist.compression.preconditioners import Preconditioning, second_moment_scale

SIZES = [5, 70_000, 0, 33, 2]
TOTAL = sum(SIZES)


def memory_of(sizes: Sequence[int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"second_moment": torch.zeros(sum(sizes), dtype=dtype), "updates": torch.zeros(len(sizes))}


def precondition(gradient: Tensor, memory: dict[str, Tensor], sizes: Sequence[int], **settings: Any) -> Tensor:
    """The update of a gradient, which stays; `memory` moves on."""
    config = Preconditioning("adam", **settings)
    update, into = gradient.clone(), {kind: torch.full_like(vector, math.nan) for kind, vector in memory.items()}
    before = {kind: vector.clone() for kind, vector in memory.items()}
    config.record.apply(config, update, memory, into, sizes)
    assert all(torch.equal(memory[kind], before[kind]) for kind in memory)
    memory.update(into)
    return update


def gradients(steps: int, dtype: torch.dtype = torch.float32, total: int = TOTAL) -> list[Tensor]:
    """Gradients of several magnitudes; every fifth is zero."""
    rng = torch.Generator().manual_seed(0)
    scales = 10.0 ** torch.randint(-4, 2, (total,), generator=rng).to(dtype)
    return [torch.randn(total, generator=rng, dtype=dtype) * scales * (step % 5 != 3) for step in range(steps)]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-4, 1e-7)])
def test_stepped_by_sgd_with_weight_decay_it_is_adamw_without_momentum(
    dtype: torch.dtype, rtol: float, atol: float
) -> None:
    start = torch.randn(TOTAL, generator=torch.Generator().manual_seed(1), dtype=dtype)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    sgd = torch.optim.SGD([ours], lr=0.001, weight_decay=0.1)
    adamw = torch.optim.AdamW([theirs], lr=0.001, betas=(0.0, 0.99), weight_decay=0.1, fused=False, foreach=False)
    memory = memory_of(SIZES, dtype)
    for gradient in gradients(200, dtype):
        ours.grad, theirs.grad = precondition(gradient, memory, SIZES, update_clip=math.inf), gradient
        sgd.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_it_is_the_formula_in_float64() -> None:
    memory, second = memory_of(SIZES, torch.float64), torch.zeros(TOTAL, dtype=torch.float64)
    for step, gradient in enumerate(gradients(30, torch.float64), start=1):
        update = precondition(gradient, memory, SIZES, betas=(0.0, 0.9), eps=1e-6, update_clip=2.0)
        second = 0.9 * second + 0.1 * gradient**2
        expected = (gradient / ((second / (1 - 0.9**step)).sqrt() + 1e-6)).clamp(-2.0, 2.0)
        torch.testing.assert_close(update, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(memory["second_moment"], second, rtol=1e-10, atol=0)
    assert memory["updates"].tolist() == [30.0] * len(SIZES)


def test_an_update_is_at_most_the_clip() -> None:
    memory, total = memory_of([3]), 3
    for _ in range(50):
        precondition(torch.zeros(total), memory, [3])
    update = precondition(torch.tensor([1.0, -1e-3, 0.0]), memory, [3])
    assert update.tolist() == [3.0, -3.0, 0.0]  # first arrivals, which would be steps of 1 / sqrt(1 - b2^51 ...)


def test_tensors_may_lie_anywhere_and_be_taken_in_any_pieces_of_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another bucket is another place in the flat vector; the bits stay."""
    monkeypatch.setattr(preconditioners, "_CACHED", 100)
    sizes = [5, 1, 257, 100, 33]
    together = memory_of(sizes)
    alone = [memory_of([size]) for size in sizes]
    for gradient in gradients(5, total=sum(sizes)):
        update = precondition(gradient, together, sizes)
        apart = [precondition(own, memory, [len(own)]) for own, memory in zip(gradient.split(sizes), alone)]
        assert torch.equal(update, torch.cat(apart))
    assert torch.equal(together["second_moment"], torch.cat([memory["second_moment"] for memory in alone]))


def test_tensors_count_their_own_updates() -> None:
    """A tensor that is trained later begins as the others did."""
    memory = memory_of([2, 2])
    memory["updates"][0] = 1000
    memory["second_moment"][:2] = 4.0
    update = precondition(torch.full((4,), 2.0), memory, [2, 2])
    torch.testing.assert_close(update, torch.ones(4), rtol=1e-4, atol=0)
    assert memory["updates"].tolist() == [1001.0, 1.0]


def test_what_is_not_finite_stays_so_and_does_not_reach_the_next_call() -> None:
    for value in (math.inf, -math.inf, math.nan):
        update = precondition(torch.tensor([1.0, value, 1.0]), memory_of([3]), [3])
        assert update.isfinite().tolist()[1:] == [False, True]
    assert precondition(torch.ones(3), memory_of([3]), [3]).isfinite().all()


@pytest.mark.parametrize("value", [1e21, -3e38])
def test_a_gradient_whose_square_overflows_is_not_finite(value: float) -> None:
    """An infinite second moment would make all updates of its entry 0 from then on, and nobody would notice."""
    sizes = [5, 70_000, 0, 33]
    for place in (0, 3, 70_004, 70_037):
        gradient = torch.ones(70_038)
        gradient[place] = value
        assert gradient.isfinite().all()
        assert not precondition(gradient, memory_of(sizes), sizes).isfinite().all()
        gradient[place] = math.copysign(1e19, value)
        update = precondition(gradient, memory_of(sizes), sizes)
        torch.testing.assert_close(update, gradient.sign())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_updates_to_rounding() -> None:
    here = memory_of(SIZES)
    there = {kind: vector.cuda() for kind, vector in here.items()}
    for gradient in gradients(20):
        update = precondition(gradient, here, SIZES)
        torch.testing.assert_close(precondition(gradient.cuda(), there, SIZES).cpu(), update, rtol=1e-5, atol=1e-6)
    assert torch.equal(there["updates"].cpu(), here["updates"])


def test_more_ranks_have_noisier_gradients() -> None:
    """The variance of the mean of b examples is 1 / b of that of one; twice the ranks have half the examples each."""
    rng = torch.Generator().manual_seed(0)
    examples = torch.randn(64, 20_000, generator=rng)
    of_two, of_four = (examples.split(64 // ranks)[0].mean(0).square().mean() for ranks in (2, 4))
    torch.testing.assert_close(of_two * second_moment_scale(2, 4), of_four, rtol=0.05, atol=0)
    assert second_moment_scale(3, 3) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preconditioner": "lion"}, r"^gradients\.preconditioner: unknown choice, got 'lion'; choose from none, "),
        ({"betas": (0.9, 0.99)}, r"^gradients\.betas: beta1 must be 0, .*, got \[0\.9, 0\.99\]; use \[0, 0\.99\]$"),
        ({"betas": (0.0, 1.0)}, r"^gradients\.betas: must be 0 and a number in \[0, 1\), got \[0\.0, 1\.0\]; use \["),
        ({"betas": (0.0,)}, r"^gradients\.betas: must be 0 and a number in \[0, 1\), got \[0\.0\]; use"),
        ({"betas": (0.0, 0.9, 0.99)}, r"^gradients\.betas: must be 0 and a .*, got \[0\.0, 0\.9, 0\.99\]; use \["),
        ({"betas": (math.nan, 0.99)}, r"^gradients\.betas: beta1 must be 0, .*, got \[nan, 0\.99\]; use \[0, 0\.99\]$"),
        ({"betas": ("0", "0.99")}, r"^gradients\.betas: must be 0 and a .*, got \['0', '0\.99'\]; use \[0, 0\.99\]$"),
        ({"betas": (0.0, None)}, r"^gradients\.betas: must be 0 and a number in .*, got \[0\.0, None\]; use \["),
        ({"betas": 0.99}, r"^gradients\.betas: must be 0 and a number in \[0, 1\), got 0\.99; use"),
        ({"betas": (0.0, math.nan)}, r"^gradients\.betas: must be 0 and a number in \[0, 1\), got \[0\.0, nan\]; use"),
        ({"eps": 0.0}, r"^gradients\.eps: must be above 0, got 0\.0; use 1e-8$"),
        ({"eps": "1e-8"}, r"^gradients\.eps: must be a number, got '1e-8'; give one, without quotes or brackets$"),
        ({"update_clip": None}, r"^gradients\.update_clip: must be a number, got None; give one"),
        ({"clip_norm": "1"}, r"^gradients\.clip_norm: must be a number, got '1'; give one"),
        ({"update_clip": 0.0}, r"^gradients\.update_clip: must be above 0, got 0\.0; use inf for none$"),
        ({"update_clip": math.nan}, r"^gradients\.update_clip: must be above 0, got nan; use inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preconditioning(**settings)
