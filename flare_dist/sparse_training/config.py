"""Which weights of the model are there at all, and who decides it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flare_dist.compatibility import EXCLUSIONS
from flare_dist.errors import check_choice, check_least, check_range
from flare_dist.exclusion import refuse
from flare_dist.sparse_training.methods import METHODS, Method

UPDATE_MODES = ("auto", "mean", "masked_mean")
SUBSAMPLES = ("avg", "aggregate")
GROWTHS = ("auto", "random", "gradient")
COUNTS = ("exact", "faithful")
LAYERS = ("conv", "all")


@dataclass(frozen=True)
class SparseTrainingConfig:
    """Training of a model most of whose weights are zero, the mask of the others being agreed (FLASH).

    Args:
        method: dense (no mask), pdst (one random mask), pruned (one mask of the highest scores, see pruning), nst (each
            client moves a mask of its own), spdst (one mask with the layer densities to which a few clients' masks
            moved in stage 1), jmwst (as spdst, and the mask goes on moving, in clients and on the server), feddst
            (clients move a mask whose layers keep their Erdos-Renyi-Kernel densities, and the server keeps the largest
            of what comes) or prunefl (as pruned, and the server moves the mask by gradients that clients measure).
        density: fraction of the prunable weights that is KEPT, in (0, 1]; smaller = sparser.
        layers: which weights are prunable: conv (of convolutions) or all (of linear layers as well). Norms and biases
            stay dense.
        exclude: name patterns of weights that stay dense, e.g. "layer1.*".
        exclude_ends: the first and the last of all convolutions and linear layers stay dense.
        init_frac: share of all clients that take part in stage 1, in (0, 1].
        init_epochs: local epochs of stage 1.
        prune_rate: share of a layer's weights that a mask update removes, in [0, 1): at the beginning of a round,
            falling linearly to 0 at its end; of feddst and prunefl in the first round, falling as a cosine to 0.
        growth: where removed weights grow again: at random places, at those with the largest gradient (RigL), or auto,
            which is gradient for feddst and otherwise random.
        r_int: jmwst, feddst and prunefl move masks in every r_int-th round, beginning with the first.
        r_end: the round in which feddst and prunefl move masks no longer; if not given, that after the last.
        subsample: what jmwst's server divides the weights among layers by: avg (the clients' mean densities) or
            aggregate (how many weights the clients have together).
        update_mode: how clients' models become one: mean (a weight outside a client's mask counts as 0), masked_mean
            (the mean over the clients that have it) or auto: masked_mean for feddst and for budgets that differ.
        hetero: budgets, pairs of (share of the cohort, factor on density), e.g. [[0.3, 0.5], [0.3, 0.75], [0.4, 1]];
            a client with a smaller budget trains the largest weights only. Empty = all alike; needs spdst or jmwst.
        counts: exact (masks have density times prunable weights, and what a layer cannot take the others get) or
            faithful, as published (masks drawn by Bernoulli, counts rounded up or down layer by layer).
    """

    method: str = "dense"
    density: float = 0.05
    layers: str = "conv"
    exclude: tuple[str, ...] = ()
    exclude_ends: bool = False
    init_frac: float = 0.05
    init_epochs: int = 10
    prune_rate: float = 0.25
    growth: str = "auto"
    r_int: int = 1
    r_end: int | None = None
    subsample: str = "avg"
    update_mode: str = "auto"
    hetero: tuple[tuple[float, float], ...] = ()
    counts: str = "exact"

    def __post_init__(self) -> None:
        choices = {
            "method": METHODS, "layers": LAYERS, "growth": GROWTHS, "subsample": SUBSAMPLES,
            "update_mode": UPDATE_MODES, "counts": COUNTS,
        }  # fmt: skip
        for name, known in choices.items():
            check_choice(f"sparse_training.{name}", getattr(self, name), known)
        check_range("sparse_training.density", self.density, "(0, 1]")
        check_range("sparse_training.init_frac", self.init_frac, "(0, 1]")
        check_least("sparse_training.init_epochs", self.init_epochs, 1)
        check_least("sparse_training.r_int", self.r_int, 1)
        check_least("sparse_training.r_end", self.r_end, 1)
        check_range("sparse_training.prune_rate", self.prune_rate, "[0, 1)")
        self._check_hetero()
        refuse(EXCLUSIONS, sparse_training=self)

    def _check_hetero(self) -> None:
        if not self.hetero:
            return
        budgets = list(self.hetero)
        if any(len(pair) != 2 or pair[0] < 0 or not 0 < pair[1] <= 1 for pair in budgets):
            given = list(map(list, budgets))
            raise ValueError(
                f"sparse_training.hetero: must be pairs of a share and a factor in (0, 1], got {given}; "
                "write e.g. [[0.5, 1], [0.5, 0.2]]"
            )
        total = math.fsum(share for share, _ in budgets)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(
                f"sparse_training.hetero: the shares must add up to 1, got {total:g}; divide each by their sum"
            )

    @property
    def traits(self) -> Method:
        """Return what the method does with masks."""
        return METHODS[self.method]

    @property
    def resolved_growth(self) -> str:
        """Resolve auto: random or gradient."""
        if self.growth != "auto":
            return self.growth
        return self.traits.growth

    @property
    def is_sparse(self) -> bool:
        return self.method != "dense"

    @property
    def resolved_update_mode(self) -> str:
        """Resolve auto: mean or masked_mean."""
        if self.update_mode != "auto":
            return self.update_mode
        return "masked_mean" if self.hetero else self.traits.update_mode
