"""In which rounds and after which local steps masks move, and at which rate."""

from __future__ import annotations

import math

import pytest

from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.schedule import Moves, moves_in


def all_moves(config: SparseTrainingConfig, rounds: int) -> dict[int, Moves]:
    return {round_: moves_in(round_, config, rounds) for round_ in range(1, rounds + 1)}


@pytest.mark.parametrize("method", ["feddst", "prunefl"])
def test_the_rate_falls_as_a_cosine_over_the_rounds_and_masks_rest_when_it_is_zero(method: str) -> None:
    moves = all_moves(SparseTrainingConfig(method=method, prune_rate=0.4, r_int=2, r_end=9), rounds=20)
    assert moves[1].rate == 0.4
    assert moves[5].rate == pytest.approx(0.2)
    assert moves[3].rate == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert [round_ for round_, now in moves.items() if now.server] == [1, 3, 5, 7]
    assert [round_ for round_, now in moves.items() if now.measured] == ([1, 3, 5, 7] if method == "prunefl" else [])
    to_the_end = moves_in(20, SparseTrainingConfig(method=method), rounds=20)
    assert to_the_end.server
    assert to_the_end.rate > 0


def test_feddst_s_clients_move_once_a_round() -> None:
    moves = all_moves(SparseTrainingConfig(method="feddst", prune_rate=0.4), rounds=4)
    assert moves[1].rates(12, 4) == {6: 0.4}
    assert moves[3].rates(12, 4) == {6: pytest.approx(0.2)}
    assert moves_in(1, SparseTrainingConfig(method="prunefl"), 4).rates(12, 4) == {}
