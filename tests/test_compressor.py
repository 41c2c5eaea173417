"""One client's compression: its settings, its memory, its draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.clients.state import ClientStates
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import ERROR_FEEDBACK
from flare_dist.compression.payload import Dense, Payload
from flare_dist.compression.segments import SCOPES
from flare_dist.compression.sparsifiers import SPARSIFIERS
from flare_dist.layout import ParameterLayout

LAYOUT = ParameterLayout.of([("a", torch.empty(10, 10)), ("b", torch.empty(10)), ("c", torch.empty(1))])


def compressor(seed: int = 0, **settings: Any) -> Compressor:
    return Compressor(CompressionConfig(**settings), LAYOUT, seed)


def deltas(rounds: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(LAYOUT.total, generator=rng) for _ in range(rounds)]


def fresh_state(used: Compressor) -> dict[str, Tensor]:
    return {name: torch.zeros(LAYOUT.total) for name in used.state_names}


def pairs(payload: Payload) -> tuple[Tensor, Tensor]:
    assert not isinstance(payload, Dense)
    return payload.indices, payload.values


def same(first: Payload, second: Payload) -> bool:
    return all(map(torch.equal, pairs(first), pairs(second)))


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rule", ERROR_FEEDBACK)
@pytest.mark.parametrize("density", [0.001, 0.07, 0.9])
def test_pairs_are_sorted_and_bounded_and_nothing_is_lost(
    sparsifier: str, scope: str, rule: str, density: float
) -> None:
    used = compressor(sparsifier=sparsifier, scope=scope, error_feedback=rule, density=density, threshold=0.8)
    state = fresh_state(used)
    for round_, delta in enumerate(deltas(), 1):
        old = {name: vector.clone() for name, vector in state.items()}
        brought = delta.clone()
        indices, values = pairs(used.compress(round_, 3, delta, state))
        assert torch.equal(delta, brought)
        assert len(indices.unique()) == len(indices)
        assert indices.dtype == torch.int32
        assert values.dtype == torch.float32
        assert len(values) == len(indices) <= used.plan(round_).max_kept
        assert sparsifier == "threshold" or len(indices) == used.plan(round_).max_kept
        sent = torch.zeros(LAYOUT.total)
        sent[indices] = values
        if rule == "ec":
            assert torch.equal(sent + state["residual"], delta + old["residual"])
        if rule == "dgc":
            assert torch.equal(sent + state["residual"], old["residual"] + (0.9 * old["velocity"] + delta))
        if rule == "ef21":
            assert torch.equal(state["estimate"], old["estimate"] + sent)
        if rule == "none":
            assert torch.equal(values, delta[indices])


def test_the_most_that_can_be_kept() -> None:
    assert compressor(density=0.07, scope="tensor").plan(1).max_kept == 7 + 1 + 1
    assert compressor(density=0.07, scope="global").plan(1).max_kept == 8


def test_small_tensors_are_sent_whole() -> None:
    used = compressor(density=0.01, dense_below=10)
    assert [segment.k for segment in used.plan(1).segments] == [1]
    payload = used.compress(1, 0, deltas()[0], fresh_state(used))
    assert set(range(100, 111)) <= set(pairs(payload)[0].tolist())
    with pytest.raises(ValueError, match=r"^compression\.dense_below: needs compression\.scope=tensor"):
        CompressionConfig(dense_below=10, scope="global")


@pytest.mark.parametrize("scope", SCOPES)
def test_everything_by_any_codec_in_any_scope(scope: str) -> None:
    used = compressor(sparsifier="dense", value_codec="int8", scope=scope)
    (delta,) = deltas(1)
    assert len(used.compress(1, 0, delta, fresh_state(used)).values) == LAYOUT.total


@pytest.mark.parametrize("value_codec", ["fp32", "2bit", "sign"])
def test_fewer_entries_fit_into_the_slot_of_more(value_codec: str) -> None:
    """Elias-Fano rounds up to bytes in two places, so that 5 of 176 entries take a byte more than 6."""
    for n in (111, 176, 432, 1510):
        layout = ParameterLayout.of([("a", torch.empty(n))])
        packing = Compressor(CompressionConfig(value_codec=value_codec), layout, 0).plan(1).packing
        sizes = [packing.sizes(kept).nbytes for kept in range(n + 1)]
        assert all(max(sizes[: kept + 1]) <= packing.most_nbytes(kept) for kept in range(n + 1))


def test_blocks_keep_their_own_share() -> None:
    """Of tensors of 100, 10 and 1 entries in blocks of 16: six blocks and a rest of 4, one of 10, one of 1 (whole)."""
    used = compressor(density=0.1, scope="block", block=16)
    assert used.plan(1).max_kept == 6 * 2 + 1 + 1 + 1
    (delta,) = deltas(1)
    kept, _ = pairs(used.compress(1, 0, delta, fresh_state(used)))
    for start in range(0, 96, 16):
        largest = delta[start : start + 16].abs().topk(2).indices + start
        assert set(largest.tolist()) <= set(kept.tolist())
    with pytest.raises(ValueError, match=r"^compression\.block: out of range, got .*; choose .* \[2, 2147483648\]$"):
        CompressionConfig(block=1)


def test_rows_keep_their_own_share_and_vectors_are_sent_whole() -> None:
    layout = ParameterLayout.of([("weight", torch.empty(4, 50)), ("bias", torch.empty(4)), ("one", torch.empty(()))])
    used = Compressor(CompressionConfig(density=0.03, scope="row"), layout, 0)
    delta = torch.randn(layout.total, generator=torch.Generator().manual_seed(0))
    kept, _ = pairs(used.compress(1, 0, delta, {"residual": torch.zeros(layout.total)}))
    largest = [delta[start : start + 50].abs().topk(2).indices + start for start in range(0, 200, 50)]
    assert set(kept.tolist()) == {*torch.cat(largest).tolist(), *range(200, 205)}


def test_a_warm_up_leads_to_the_density() -> None:
    used = compressor(density=0.07, scope="global", warmup=(0.5, 0.25), warmup_rounds=2)
    assert [used.plan(round_).max_kept for round_ in range(1, 8)] == [56, 56, 28, 28, 8, 8, 8]
    (delta,) = deltas(1)
    assert [len(used.compress(r, 0, delta, fresh_state(used)).values) for r in (1, 3, 5)] == [56, 28, 8]


@pytest.mark.parametrize(
    ("numel", "density", "kept"), [(3190096, 1e-5, 33), (40690, 1e-5, 1), (5, 0.5, 3), (1, 0.9, 1)]
)
def test_the_paper_s_count_is_one_more_than_rounded(numel: int, density: float, kept: int) -> None:
    """round(n * R / 100) + 1 with R = 100 * density, halves to even; at most all there are."""
    layout = ParameterLayout.of([("a", torch.empty(numel))])
    assert Compressor(CompressionConfig(density=density, count="paper"), layout, 0).plan(1).max_kept == kept


def test_settings_that_do_not_belong_together_are_refused() -> None:
    for momentum in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"^compression\.momentum: out of range, got .*; choose .* \[0, 1\)$"):
            CompressionConfig(error_feedback="dgc", momentum=momentum)
    with pytest.raises(ValueError, match=r"^compression\.momentum: only dgc takes momentum"):
        CompressionConfig(momentum=0.5)
    with pytest.raises(ValueError, match=r"^compression\.residual_decay: only ec decays its residual"):
        CompressionConfig(error_feedback="dgc", residual_decay=0.9)
    with pytest.raises(ValueError, match=r"^compression\.warmup: a warm-up leads to a density below 1"):
        CompressionConfig(sparsifier="dense", warmup=(0.5,))


def test_memory_changes_what_is_sent_later_and_nothing_sooner() -> None:
    first, second = deltas(2)
    runs = {}
    for rule in ("ec", "none"):
        used = compressor(error_feedback=rule, density=0.1)
        state = fresh_state(used)
        runs[rule] = [used.compress(round_, 0, delta, state) for round_, delta in enumerate((first, second), 1)]
    assert same(runs["ec"][0], runs["none"][0])
    assert not same(runs["ec"][1], runs["none"][1])


def test_random_positions_belong_to_seed_round_and_client() -> None:
    def positions(round_: int, client: int, seed: int = 0) -> list[int]:
        used = compressor(seed, sparsifier="randk", density=0.2)
        return pairs(used.compress(round_, client, torch.zeros(LAYOUT.total), fresh_state(used)))[0].tolist()

    assert positions(1, 2) == positions(1, 2)
    assert len({tuple(positions(*use)) for use in [(1, 2), (2, 2), (2, 1), (1, 2, 1)]}) == 4


def test_clients_do_not_share_draws_through_the_compressor() -> None:
    used = compressor(sparsifier="randk", density=0.2)
    (delta,) = deltas(1)
    alone = used.compress(1, 5, delta, fresh_state(used))
    used.compress(1, 4, delta, fresh_state(used))
    assert same(alone, used.compress(1, 5, delta, fresh_state(used)))


@pytest.mark.parametrize("rule", ERROR_FEEDBACK)
@pytest.mark.parametrize("settings", [{"sparsifier": "dense"}, {"density": 1.0}, {"sparsifier": "randk", "density": 1}])
def test_dense_deltas_are_passed_on_and_leave_no_memory(settings: dict[str, Any], rule: str) -> None:
    used = compressor(error_feedback=rule, **settings)
    assert used.config.is_dense
    assert used.state_names == ()
    (delta,) = deltas(1)
    before, state = delta.clone(), fresh_state(used)
    payload = used.compress(1, 0, delta, state)
    assert isinstance(payload, Dense)
    assert payload.values is delta
    assert torch.equal(delta, before)
    assert state == {}


def test_a_threshold_may_send_anything_at_density_one() -> None:
    used = compressor(sparsifier="threshold", density=1.0, threshold=0.5)
    (delta,) = deltas(1)
    assert not used.config.is_dense
    indices, _ = pairs(used.compress(1, 0, delta, fresh_state(used)))
    assert indices.tolist() == [i for i, value in enumerate(delta.tolist()) if abs(value) >= 0.5]


@pytest.mark.parametrize(
    ("written", "rule", "has_state"),
    [("ec", "ec", True), (True, "ec", True), ("none", "none", False), (False, "none", False)],
)
def test_error_feedback_is_written_as_a_name_or_a_truth(written: str | bool, rule: str, has_state: bool) -> None:
    assert CompressionConfig(error_feedback=written).rule == rule
    assert compressor(error_feedback=written).state_names == (("residual",) if has_state else ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sparsifier", "top-k"),
        ("density", 0.0),
        ("density", -0.1),
        ("density", 1.01),
        ("density", float("nan")),
        ("scope", "layer"),
        ("threshold", -1.0),
        ("threshold", float("nan")),
        ("error_feedback", "ef20"),
        ("count", "floor"),
        ("residual_decay", 0.0),
        ("residual_decay", 1.1),
        ("warmup", (0.5, 0.0)),
        ("warmup_rounds", 0),
    ],
)
def test_errors_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^compression\.{key}: "):
        CompressionConfig(**{key: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_may_live_on_the_cpu() -> None:
    used = compressor(density=0.1)
    here, states = fresh_state(used), ClientStates(used.state_names, LAYOUT.total, torch.device("cuda"))
    away = states.clients[0] = fresh_state(used)
    for round_, delta in enumerate(deltas(), 1):
        expected = used.compress(round_, 0, delta, here)
        with states.lend(0) as lent:
            got = used.compress(round_, 0, delta.cuda(), lent)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(pairs(expected), pairs(got)))
        assert away["residual"].device.type == "cpu"
        assert torch.equal(here["residual"], away["residual"])


@pytest.mark.parametrize(
    ("value_codec", "density", "whole"),
    [("fp32", 0.9, ["c"]), ("fp32", 0.98, ["a", "b", "c"]), ("2bit", 0.3, ["b", "c"]), ("2bit", 0.6, ["a", "b", "c"])],
)
def test_auto_sends_tensors_whole_where_pairs_would_be_larger(
    value_codec: str, density: float, whole: list[str]
) -> None:
    """Of 100, 10 and 1 entries: at a half, indices cost a bit an entry, as much as values of two bits."""
    used = compressor(sparsifier="auto", density=density, value_codec=value_codec)
    segments = {segment.offset for segment in used.plan(1).segments}
    assert [entry.name for entry in LAYOUT.entries if entry.offset not in segments] == whole
    sparse = compressor(sparsifier="topk", density=density, value_codec=value_codec).plan(1)
    plan = used.plan(1)
    saved = sparse.packing.sizes(sparse.max_kept).nbytes - plan.packing.sizes(plan.max_kept).nbytes
    assert saved >= -2  # indices of all tensors are rounded up to a byte once, those of each were counted apart
