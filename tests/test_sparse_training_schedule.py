"""In which rounds and after which local steps masks move, and at which rate."""

from __future__ import annotations

import math

import pytest

from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.schedule import MaskSchedule


@pytest.mark.parametrize("method", ["feddst", "prunefl"])
def test_the_rate_falls_as_a_cosine_over_the_rounds_and_masks_rest_when_it_is_zero(method: str) -> None:
    schedule = MaskSchedule(SparseTrainingConfig(method=method, prune_rate=0.4, r_int=2, r_end=9), rounds=20)
    assert schedule.rate(1) == 0.4
    assert schedule.rate(5) == pytest.approx(0.2)
    assert schedule.rate(3) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert [round_ for round_ in range(1, 21) if schedule.server_moves_in(round_)] == [1, 3, 5, 7]
    assert [r for r in range(1, 21) if schedule.measures_in(r)] == ([1, 3, 5, 7] if method == "prunefl" else [])
    to_the_end = MaskSchedule(SparseTrainingConfig(method=method), rounds=20)
    assert to_the_end.server_moves_in(20)
    assert to_the_end.rate(20) > 0


def test_feddst_s_clients_move_once_a_round() -> None:
    schedule = MaskSchedule(SparseTrainingConfig(method="feddst", prune_rate=0.4), rounds=4)
    assert schedule.rates(1, 12, 4) == {6: 0.4}
    assert schedule.rates(3, 12, 4) == {6: pytest.approx(0.2)}
    assert MaskSchedule(SparseTrainingConfig(method="prunefl"), 4).rates(1, 12, 4) == {}
