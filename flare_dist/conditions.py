"""Conditions on a configuration that several rows of compatibility.py and cautions.py share.

Each function is given sections of `Config` under their names, as `Exclusion.holds` is.
"""

from __future__ import annotations

from typing import Any

from flare_dist.named import is_own


def trains(c: Any, objective: str) -> bool:
    """Tell whether clients train with this objective."""
    return bool(c.mode == "federated" and c.clients.objective == objective)


def has_own_optimizer(c: Any) -> bool:
    """Tell whether the clients' optimizer is the user's own."""
    return is_own(c.clients.optimizer, ())


def steps_by_name(c: Any) -> bool:
    """Tell whether the clients' optimizer is given each parameter by its name."""
    return has_own_optimizer(c) or bool(c.clients.optimizer == "muon")


def keeps_optimizer(c: Any) -> bool:
    """Tell whether the state of the local optimizer stays with each client between rounds."""
    return bool(c.mode == "federated" and c.clients.keep_optimizer)


def has_clients(c: Any) -> bool:
    return bool(c.mode == "federated")


def has_local_rounds(c: Any) -> bool:
    """Tell whether a round is so many local passes or steps."""
    return bool(c.mode != "gradient")


def has_client_memory(c: Any) -> bool:
    """Tell whether clients remember a residual, the vectors of their objective or their optimizer."""
    of_method = c.mode == "federated" and bool(c.exchanged.feedback.state_names or c.clients.memory_names)
    return of_method or keeps_optimizer(c)


def has_no_residual(c: Any) -> bool:
    return "residual" not in c.compression.feedback.state_names


def has_late_arrivals(c: Any) -> bool:
    """Tell whether entries reach the server of federated clients after they waited in a residual."""
    return bool(c.mode == "federated" and not c.compression.sends_everything and not has_no_residual(c))


def exchanges_sparsely(c: Any) -> bool:
    """Tell whether our compression exchanges, and not a hook of PyTorch's."""
    return bool(c.mode != "gradient" or c.gradients.hook == "sparse")


def preconditions(c: Any) -> bool:
    """Tell whether gradients of mode gradient become updates before they are exchanged."""
    return bool(c.mode == "gradient" and c.gradients.preconditioner != "none")


def is_ef21(c: Any) -> bool:
    return c.compression.rule == "ef21" and not c.compression.is_dense


def is_fednova(c: Any) -> bool:
    return bool(c.mode == "federated" and c.server.aggregator == "fednova")


def conserves(c: Any) -> bool:
    """Tell whether FLARE subtracts its pull from what is sent."""
    return c.clients.objective == "flare" and bool(c.clients.flare.conserve)


def is_masked(c: Any) -> bool:
    return bool(c.sparse_training.is_sparse)


def grows_masks(c: Any) -> bool:
    """Tell whether weights are grown, in the first stage or by clients."""
    return bool(c.sparse_training.traits.has_stage_one or c.sparse_training.traits.clients_move)


def moves_masks(c: Any) -> bool:
    return grows_masks(c) or bool(c.sparse_training.traits.server_moves)


def has_masks_that_differ(c: Any) -> bool:
    """Tell whether clients may have different masks."""
    return c.sparse_training.traits.clients_move or bool(c.sparse_training.hetero)


def scores_on_data(c: Any) -> bool:
    """Tell whether masks are chosen by scores of examples."""
    return bool(c.sparse_training.traits.is_scored and c.pruning.looks_at_data)


def scores_on_server_data(c: Any) -> bool:
    return scores_on_data(c) and bool(c.pruning.data == "server")


def reads_images(c: Any) -> bool:
    """Tell whether the data may be files of images: a source of the user's own may read these keys, too."""
    return c.data.name == "image_folder" or ":" in c.data.name
