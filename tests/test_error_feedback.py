"""Each rule's law, whatever is selected: nothing that was brought is lost, and client and server agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import ERROR_FEEDBACK, Compress, dgc, ec, ef21, none
from flare_dist.compression.payload import Sparse
from flare_dist.compression.segments import Segment
from flare_dist.compression.sparsifiers import SPARSIFIERS
from tests.helpers.payloads import unencoded
from tests.helpers.plans import chosen

N, K = 90, 7
PLAIN = CompressionConfig(error_feedback="dgc", momentum=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sparsify(sparsifier: str) -> Compress:
    rng = seeded()
    segments = [Segment(0, 50, 4), Segment(50, 40, 3)]

    def compress(vector: Tensor) -> Sparse:
        indices = chosen(vector, segments, sparsifier, lambda segment: rng, 0.5)
        return unencoded(indices, vector[indices])

    return compress


def pairs(payload: Sparse) -> tuple[Tensor, Tensor]:
    return payload.indices.long(), payload.values


def dense(payload: Sparse) -> Tensor:
    indices, values = pairs(payload)
    vector = torch.zeros(N)
    vector[indices] = values
    return vector


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
@pytest.mark.parametrize("rule", ["ec", "dgc"])
def test_what_is_not_sent_is_kept(rule: str, sparsifier: str) -> None:
    names, step = ERROR_FEEDBACK[rule]
    state = {name: torch.zeros(N) for name in names}
    memory = dict(state)
    compress, rng = sparsify(sparsifier), seeded(1)
    for _ in range(6):
        delta = torch.randn(N, generator=rng)
        before, old = delta.clone(), state["residual"].clone()
        payload = step(PLAIN, delta, state, compress)
        indices, values = pairs(payload)
        assert values.dtype == torch.float32
        assert indices.shape == values.shape
        assert torch.equal(dense(payload) + state["residual"], before + old)
        assert not state["residual"][indices].any()
        assert torch.equal(delta, before)
        assert all(state[name] is memory[name] for name in names)  # in place: whoever lent it sees it


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_over_many_rounds_nothing_is_lost(sparsifier: str) -> None:
    """Whole numbers, hence exact: all that was ever sent, and what is still kept, is all that was ever brought."""
    state, compress, rng = {"residual": torch.zeros(N)}, sparsify(sparsifier), seeded(1)
    brought, sent = torch.zeros(N), torch.zeros(N)
    for _ in range(20):
        delta = torch.randint(-9, 10, (N,), generator=rng).float()
        brought += delta
        sent += dense(ec(PLAIN, delta, state, compress))
    assert torch.equal(sent + state["residual"], brought)
    assert state["residual"].any()


def test_what_is_remembered_is_what_the_server_does_not_decode() -> None:
    """A lossy payload: the loss of rounding stays with the client, not only the entries left out."""

    def rounded(vector: Tensor) -> Sparse:
        return unencoded(torch.arange(N), vector.round())

    state, delta = {"residual": torch.full((N,), 0.25)}, torch.randint(-90, 90, (N,), generator=seeded(1)) / 8
    payload = ec(PLAIN, delta, state, rounded)
    assert torch.equal(dense(payload), (delta + 0.25).round())
    assert torch.equal(state["residual"], delta + 0.25 - (delta + 0.25).round())
    assert state["residual"].any()


def test_with_memory_every_entry_gets_its_turn() -> None:
    """Top-k alone would send the same entries for ever."""
    delta = torch.linspace(1, 2, N)
    state, compress, reached = {"residual": torch.zeros(N)}, sparsify("topk"), torch.zeros(N, dtype=torch.bool)
    for _ in range(40):
        reached[pairs(ec(PLAIN, delta, state, compress))[0]] = True
    assert reached.all()


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_none_forgets(sparsifier: str) -> None:
    names, *_ = ERROR_FEEDBACK["none"]
    assert names == ()
    state: dict[str, Tensor] = {}
    delta = torch.randn(N, generator=seeded(1))
    before = delta.clone()
    indices, values = pairs(none(PLAIN, delta, state, sparsify(sparsifier)))
    assert 0 < len(indices) <= K
    assert torch.equal(values, before[indices])
    assert torch.equal(delta, before)
    assert state == {}


def test_sent_values_stay_when_the_memory_changes() -> None:
    state, delta = {"residual": torch.zeros(N)}, torch.ones(N)
    for rule in (ec, none):
        payload = rule(PLAIN, delta, state, sparsify("topk"))
        state["residual"].fill_(5.0)
        delta.fill_(6.0)
        assert (payload.values == 1).all()
        state["residual"].zero_()
        delta.fill_(1.0)


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_dgc_without_momentum_is_ec(sparsifier: str) -> None:
    states = {rule: {name: torch.zeros(N) for name in ERROR_FEEDBACK[rule].state_names} for rule in ("ec", "dgc")}
    compress, rng = {rule: sparsify(sparsifier) for rule in states}, seeded(1)
    for _ in range(6):
        delta = torch.randn(N, generator=rng)
        sent = [ERROR_FEEDBACK[rule].rule(PLAIN, delta, states[rule], compress[rule]) for rule in states]
        assert torch.equal(dense(sent[0]), dense(sent[1]))
        assert torch.equal(states["ec"]["residual"], states["dgc"]["residual"])


def test_dgc_corrects_momentum_and_forgets_it_where_it_sent() -> None:
    """u <- u / 2 + Delta, V <- V + u by hand, one entry sent at a time: binary fractions, hence exact."""
    config, state = (
        CompressionConfig(error_feedback="dgc", momentum=0.5),
        {"residual": torch.zeros(3), "velocity": torch.zeros(3)},
    )

    def largest(vector: Tensor) -> Sparse:
        index = vector.abs().argmax().view(1)
        return unencoded(index, vector[index])

    for brought, sent, residual, velocity in [
        ([4.0, 2.0, 1.0], (0, 4.0), [0.0, 2.0, 1.0], [0.0, 2.0, 1.0]),
        ([0.0, 2.0, 1.0], (1, 5.0), [0.0, 0.0, 2.5], [0.0, 0.0, 1.5]),
        ([1.0, 0.0, 0.0], (2, 3.25), [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0], (0, 1.5), [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ]:
        indices, values = pairs(dgc(config, torch.tensor(brought), state, largest))
        assert (indices.item(), values.item()) == sent
        assert state["residual"].tolist() == residual
        assert state["velocity"].tolist() == velocity


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_ef21_estimate_is_the_sum_of_all_that_was_sent(sparsifier: str) -> None:
    """g_new = g_old + sent, so that the server, adding up the same payloads, holds the same estimate bitwise."""
    state, server, compress, rng = {"estimate": torch.zeros(N)}, torch.zeros(N), sparsify(sparsifier), seeded(1)
    for _ in range(6):
        delta = torch.randn(N, generator=rng)
        before, old = delta.clone(), state["estimate"].clone()
        sent = dense(ef21(PLAIN, delta, state, compress))
        server += sent
        kept = sent != 0
        assert torch.equal(state["estimate"], old + sent)
        assert torch.equal(state["estimate"], server)
        assert torch.equal(sent[kept], (before - old)[kept])
        assert torch.equal(delta, before)


def test_ef21_estimates_a_constant_delta_exactly_in_the_end() -> None:
    delta = torch.linspace(1, 2, N)
    state, compress = {"estimate": torch.zeros(N)}, sparsify("topk")
    for _ in range(20):
        ef21(PLAIN, delta, state, compress)
    torch.testing.assert_close(state["estimate"], delta, rtol=1e-6, atol=0)


def test_a_decaying_residual_forgets() -> None:
    """e <- b * e + Delta, then e <- e - sent, in binary fractions."""
    config, state = CompressionConfig(residual_decay=0.5), {"residual": torch.full((N,), 4.0)}
    sent = dense(ec(config, torch.ones(N), state, sparsify("topk")))
    assert torch.equal(sent + state["residual"], torch.full((N,), 3.0))
