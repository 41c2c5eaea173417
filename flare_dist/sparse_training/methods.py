"""Sparse methods, by what they do with masks: those that FLASH compares, pruning before training, and readjustment.

FLASH: Babakniya et al., TMLR 2023. FedDST: Bibikar et al., AAAI 2022. PruneFL: Jiang et al., TNNLS 2022.
"""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """A method of sparse training: how masks begin, and who moves them."""

    densities: str = "even"  # of the first layers: even, erk (Erdos-Renyi-Kernel) or stage_one (clients find them)
    is_scored: bool = False  # the first mask is of the highest pruning scores instead
    clients_move: bool = False  # clients prune and regrow while they train
    is_personal: bool = False  # each client keeps a mask of its own, and the server none
    server_moves: bool = False  # the server makes a new mask of what clients bring
    is_measured: bool = False  # and it follows from gradients that clients measure
    keeps_layers: bool = False  # no layer becomes denser or sparser
    fades: bool = False  # the prune rate falls over the rounds, and not within each
    growth: str = "random"  # unless the configuration says otherwise
    update_mode: str = "mean"  # the same

    @property
    def has_stage_one(self) -> bool:
        return self.densities == "stage_one"


METHODS: dict[str, Method] = {
    "dense": Method(),
    "pdst": Method(),
    "nst": Method(clients_move=True, is_personal=True),
    "spdst": Method(densities="stage_one"),
    "pruned": Method(is_scored=True),
    "jmwst": Method(densities="stage_one", clients_move=True, server_moves=True),
    "feddst": Method(
        densities="erk", clients_move=True, server_moves=True, keeps_layers=True, fades=True,
        growth="gradient", update_mode="masked_mean",
    ),
    "prunefl": Method(is_scored=True, server_moves=True, is_measured=True, fades=True),
}  # fmt: skip
