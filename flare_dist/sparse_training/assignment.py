"""Assignment of masks: which weights each client of a round trains, and how its payload is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from flare_dist.compression.masked import MaskedEncoding, positions_nbytes
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import WORD
from flare_dist.seeding import generator
from flare_dist.sparse_training import flash
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.local_mask import LocalMask, most_moved
from flare_dist.sparse_training.masks import budget, layer_counts
from flare_dist.sparse_training.schedule import falling_rates


@dataclass(frozen=True)
class Assignment:
    """One client's share of a round of sparse models."""

    encoding: MaskedEncoding  # of its payload, with the mask to start with
    budget: int  # prunable weights that are to be active after a mask update
    rates: dict[int, float]  # the local steps after which the mask is updated, and the share that is removed


def assign(
    masks: Masks,
    round_: int,
    steps: Mapping[int, tuple[int, int]],
    parameters: Tensor,
    packing_of: Callable[[Tensor], Packing],
) -> dict[int, Assignment]:
    """Assign each client its mask, by its (local steps, steps of an epoch).

    Clients with the same mask and steps share an encoding; `packing_of` packs the active entries of a mask.
    """
    factors = dict.fromkeys(steps, 1.0)
    nested = {1.0: masks.mask}
    if masks.config.hetero:
        factors = flash.budgets_of(masks.config, list(steps), round_, masks.seed)
        nested = flash.nested_masks(masks.config, masks.entries, parameters, masks.mask)
    encodings: dict[tuple[float, int, int], MaskedEncoding] = {}
    assigned = {}
    for client, (count, epoch) in steps.items():
        factor = factors[client]
        keep = budget(masks.config, masks.entries, factor)
        rates = masks.schedule.rates(round_, count, epoch)
        kind = (factor, count if rates else 0, client if masks.method.is_personal else -1)
        if kind not in encodings:
            mask = masks.personal(client) if masks.method.is_personal else nested[factor]
            removed, grown = _most_moved(masks, mask, keep, rates) if rates else (0, 0)
            is_common = not masks.schedule.clients_move_in(round_) and set(factors.values()) == {1.0}
            encodings[kind] = MaskedEncoding(mask, packing_of, removed, grown, is_common)
        assigned[client] = Assignment(encodings[kind], keep, rates)
    return assigned


def _most_moved(masks: Masks, mask: Tensor, keep: int, rates: Mapping[int, float]) -> tuple[int, int]:
    """Return the most weights that leave and that enter a mask while a client trains."""
    active = sum(layer_counts(mask, masks.entries))
    rounding = len(masks.entries)
    removed = most_moved(rates, active, keep)
    return removed, removed + max(0, keep - active) + rounding


def most_nbytes(masks: Masks, assigned: Mapping[int, Assignment], most_nbytes_of: Callable[[int], int]) -> int:
    """Bound the payloads of a round: none is longer. `most_nbytes_of` bounds one with so many active entries."""
    dense = masks.total - sum(entry.numel for entry in masks.entries)
    most = 0
    for encoding, keep in {(a.encoding, a.budget) for a in assigned.values()}:
        active = encoding.active.numel()
        if encoding.moves:
            active = max(active, dense + keep) + len(masks.entries)
        most = max(most, encoding.most_nbytes(most_nbytes_of(active)))
    return most


def downlink_nbytes(masks: Masks, assigned: Mapping[int, Assignment]) -> int:
    """Count what a star sends to a round's cohort: active weights in float32 and masks. Call it once a round.

    A smaller budget's mask is told by its positions in the consensus; a personal one both sides hold.
    """
    if masks.method.is_personal:
        return sum(WORD * assignment.encoding.active.numel() for assignment in assigned.values())
    consensus = int(masks.mask.count_nonzero())
    whole = positions_nbytes(masks.total, consensus)
    nbytes = 0
    for client, assignment in assigned.items():
        active = assignment.encoding.active.numel()
        nbytes += WORD * active + (positions_nbytes(consensus, active) if active < consensus else 0)
        nbytes += masks.downlink.nbytes_to(client, whole)
    return nbytes


def local_mask(masks: Masks, round_: int, client: int, assignment: Assignment) -> LocalMask:
    """Open the mask that a client trains under in a round."""
    draws = generator(masks.seed, "growth", round_, client)
    measures = masks.schedule.measures_in(round_)
    mask = assignment.encoding.mask
    return LocalMask(
        masks.config,
        masks.entries,
        mask,
        assignment.budget,
        assignment.rates,
        draws,
        masks.factor,
        masks.growth,
        measures,
    )


def first_stage_mask(masks: Masks, client: int, steps: int, epoch_steps: int) -> LocalMask:
    """Open a random mask of the client's own, of the same density in each layer, for FLASH's stage 1."""
    config = masks.config
    entries = masks.entries
    draws = generator(masks.seed, "scout mask", client=client)  # the name fixes the bits of runs
    even = [config.density] * len(entries)
    mask = flash.drawn_mask(config, entries, even, masks.total, draws, masks.device)
    rates = falling_rates(config.prune_rate, steps, epoch_steps)
    return LocalMask(config, entries, mask, budget(config, entries), rates, draws, masks.factor, masks.growth)
