"""Keys that were given and change nothing, so that nobody takes a run for what it is not."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch

from flare_dist.run.config import Config, as_dict, differing_keys
from flare_dist.sparse_training.methods import METHODS

Rule = tuple[str, Callable[[Config], bool], str]

OF_CLIENTS = ("server.*", "clients.num", "clients.per_round", "clients.local_*", "clients.weighting", "data.partition")
DRAWN = ("dirichlet", "dirichlet_unbalanced", "quantity")  # partitions with a concentration

# (pattern of dotted keys, whether they count, when they would)
RULES: list[Rule] = [
    ("clients.flare.*", lambda config: config.clients.objective == "flare", "clients.objective=flare"),
    ("clients.fedprox.*", lambda config: config.clients.objective == "fedprox", "clients.objective=fedprox"),
    ("sparse_training.*", lambda config: config.sparse_training.is_sparse, "sparse_training.method"),
    (
        "sparse_training.init_*",
        lambda config: METHODS[config.sparse_training.method].has_stage_one,
        "sparse_training.method=spdst|jmwst",
    ),
    *(
        (
            f"sparse_training.{key}",
            lambda config: config.sparse_training.method == "jmwst",
            "sparse_training.method=jmwst",
        )
        for key in ("r_int", "subsample")
    ),
    *(
        (f"sparse_training.{key}", lambda config: config.sparse_training.moves_masks, "masks that move")
        for key in ("prune_rate", "growth")
    ),
    ("compression.threshold", lambda config: config.compression.sparsifier == "threshold", "sparsifier=threshold"),
    ("compression.downlink_density", lambda config: config.compression.downlink == "topk", "downlink=topk"),
    ("data.alpha", lambda config: config.data.partition in DRAWN, f"data.partition={'|'.join(DRAWN)}"),
    *(
        (pattern, lambda config: config.mode != "gradient", "mode=federated")
        for pattern in (
            "server.*",
            "clients.num",
            "clients.per_round",
            "clients.local_*",
            "clients.weighting",
            "data.partition",
        )
    ),
]


def keys_without_effect(config: Config) -> dict[str, list[str]]:
    """The keys of `config` that differ from the defaults and change nothing, by what they would need."""
    found: dict[str, list[str]] = {}
    for key in differing_keys(as_dict(Config()), as_dict(config)):
        for pattern, counts, need in RULES:
            if fnmatch(key, pattern) and not counts(config):
                found.setdefault(need, []).append(key)
    return found
