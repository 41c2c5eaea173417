"""Sent + new residual = delta + old residual, whatever is selected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.compression.error_feedback import ERROR_FEEDBACK, Select, ec, none
from flare_dist.compression.sparsifiers import SPARSIFIERS, Segment, select

N, K = 90, 7


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chooser(sparsifier: str) -> Select:
    rng = seeded()
    segments = [Segment(0, 50, 4), Segment(50, 40, 3)]
    return lambda update: select(update, segments, SPARSIFIERS[sparsifier], rng, 0.5)


def dense(indices: Tensor, values: Tensor) -> Tensor:
    vector = torch.zeros(N)
    vector[indices] = values
    return vector


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
@pytest.mark.parametrize("rule", sorted(set(ERROR_FEEDBACK) - {"none"}))
def test_what_is_not_sent_is_kept(rule: str, sparsifier: str) -> None:
    names, compress = ERROR_FEEDBACK[rule]
    state = {name: torch.zeros(N) for name in names}
    choose, rng = chooser(sparsifier), seeded(1)
    for _ in range(6):
        delta = torch.randn(N, generator=rng)
        before, old = delta.clone(), state["residual"].clone()
        indices, values = compress(delta, state, choose)
        assert values.dtype == torch.float32
        assert indices.shape == values.shape
        assert torch.equal(dense(indices, values) + state["residual"], before + old)
        assert not state["residual"][indices].any()
        assert torch.equal(delta, before)


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_over_many_rounds_nothing_is_lost(sparsifier: str) -> None:
    """Whole numbers, hence exact: all that was ever sent, and what is still kept, is all that was ever brought."""
    state, choose, rng = {"residual": torch.zeros(N)}, chooser(sparsifier), seeded(1)
    brought, sent = torch.zeros(N), torch.zeros(N)
    for _ in range(20):
        delta = torch.randint(-9, 10, (N,), generator=rng).float()
        brought += delta
        sent += dense(*ec(delta, state, choose))
    assert torch.equal(sent + state["residual"], brought)
    assert state["residual"].any()


def test_with_memory_every_entry_gets_its_turn() -> None:
    """Top-k alone would send the same entries for ever."""
    delta = torch.linspace(1, 2, N)
    state, choose, reached = {"residual": torch.zeros(N)}, chooser("topk"), torch.zeros(N, dtype=torch.bool)
    for _ in range(40):
        reached[ec(delta, state, choose)[0]] = True
    assert reached.all()


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_none_forgets(sparsifier: str) -> None:
    names, _ = ERROR_FEEDBACK["none"]
    assert names == ()
    state: dict[str, Tensor] = {}
    delta = torch.randn(N, generator=seeded(1))
    before = delta.clone()
    indices, values = none(delta, state, chooser(sparsifier))
    assert 0 < len(indices) <= K
    assert torch.equal(values, before[indices])
    assert torch.equal(delta, before)
    assert state == {}


def test_sent_values_stay_when_the_memory_changes() -> None:
    state, delta = {"residual": torch.zeros(N)}, torch.ones(N)
    for rule in (ec, none):
        _, values = rule(delta, state, chooser("topk"))
        state["residual"].fill_(5.0)
        delta.fill_(6.0)
        assert (values == 1).all()
        state["residual"].zero_()
        delta.fill_(1.0)
