"""Seeds are a pure function of what they are for."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from flare_dist.seeding import derive_seed, generator, seed_dropout


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        ((0, "shuffle"), 5011543754173312540),
        ((0, "shuffle", 3, 17), 8894184947264117610),
        ((1, "model"), 9170347345600110061),
    ],
)
def test_pinned(arguments: tuple[int, str, int, int], seed: int) -> None:
    """Whoever changes these numbers changes every result that was ever published with this package."""
    assert derive_seed(*arguments) == seed


def test_every_use_has_its_own_seed() -> None:
    """Seeds, rounds and clients whose digits run together (1 and 11, 11 and 1) included."""
    uses = list(product([0, 1, 11, 111], ["shuffle", "dropout", "cohort"], range(13), [*range(13), 111]))
    seeds = {derive_seed(*use) for use in uses}
    assert len(seeds) == len(uses)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bits_are_even() -> None:
    seeds = [derive_seed(0, "bits", round_) for round_ in range(2000)]
    for bit in range(63):
        assert 0.45 < sum(seed >> bit & 1 for seed in seeds) / 2000 < 0.55


def test_what_a_model_draws_is_seeded_as_by_torch() -> None:
    torch.manual_seed(5)
    expected = torch.rand(8)
    seed_dropout(5, torch.device("cpu"))
    assert torch.equal(torch.rand(8), expected)


def test_generators_repeat_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again, other = (torch.rand(8, generator=generator(0, "shuffle", 2, client)) for client in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generator(0, "shuffle").device.type == "cpu"
