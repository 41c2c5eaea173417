"""Sparse methods, by what they do with masks: those that FLASH compares, pruning before training, and readjustment.

FLASH: Babakniya et al., TMLR 2023. FedDST: Bibikar et al., AAAI 2022. PruneFL: Jiang et al., TNNLS 2022.
"""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What becomes of masks."""

    has_stage_one: bool = False  # a few clients find the layer densities first
    clients_move: bool = False  # clients prune and regrow while they train
    is_personal: bool = False  # each client keeps a mask of its own, and the server none
    server_moves: bool = False  # the server makes a new mask of what clients bring
    is_scored: bool = False  # the first mask is of the highest pruning scores
    keeps_layers: bool = False  # layers have their Erdos-Renyi-Kernel densities, and keep them
    is_measured: bool = False  # the server's new mask follows from gradients that clients measure

    @property
    def fades(self) -> bool:
        """True where the prune rate falls over the rounds, and not within each."""
        return self.keeps_layers or self.is_measured


METHODS: dict[str, Method] = {
    "dense": Method(),
    "pdst": Method(),
    "nst": Method(clients_move=True, is_personal=True),
    "spdst": Method(has_stage_one=True),
    "pruned": Method(is_scored=True),
    "jmwst": Method(has_stage_one=True, clients_move=True, server_moves=True),
    "feddst": Method(clients_move=True, server_moves=True, keeps_layers=True),
    "prunefl": Method(is_scored=True, server_moves=True, is_measured=True),
}
