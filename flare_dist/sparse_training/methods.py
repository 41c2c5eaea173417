"""The methods that FLASH compares (Babakniya et al., TMLR 2023), by what they do with masks."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """What becomes of masks."""

    has_stage_one: bool = False  # a few clients find the layer densities first
    clients_move: bool = False  # clients prune and regrow while they train
    is_personal: bool = False  # each client keeps a mask of its own, and the server none
    server_moves: bool = False  # the server prunes the aggregate to a new mask
    is_scored: bool = False  # the mask is of the highest pruning scores


METHODS: dict[str, Method] = {
    "dense": Method(),
    "pdst": Method(),
    "nst": Method(clients_move=True, is_personal=True),
    "spdst": Method(has_stage_one=True),
    "pruned": Method(is_scored=True),
    "jmwst": Method(has_stage_one=True, clients_move=True, server_moves=True),
}
