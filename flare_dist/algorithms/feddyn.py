"""FedDyn: dynamic regularisation leads each client's optimum to the federation's.

Durmus Alp Emre Acar, Yue Zhao, Ramon Matas Navarro, Matthew Mattina, Paul N. Whatmough, Venkatesh Saligrama,
"Federated Learning Based on Dynamic Regularization", ICLR 2021, https://arxiv.org/abs/2111.04263

Clients minimise f_k(w) - <h_k, w> + (alpha / 2) * ||w - w_t||^2 and remember h_k <- h_k - alpha * Delta_k.
The server takes h <- h - (alpha / N) * sum of Delta_k over the round's clients, of N in all, and then
w <- w + mean of Delta_k - h / alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, Mean, Penalty, Senders, Trained, Vectors
from flare_dist.algorithms.excludes import of_own_mean
from flare_dist.errors import check_range


@dataclass(frozen=True)
class FedDynConfig:
    """Settings of the feddyn objective.

    Args:
        alpha: weight of the penalty (alpha / 2) * ||local - global||^2, and how fast the clients' gradients at their
            optima, h_k, are followed.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        check_range("clients.feddyn.alpha", self.alpha, "(0, 1e38)")  # the range of float32


def feddyn(config: FedDynConfig) -> Algorithm:
    """Follow each client's gradient at its optimum in `h`, and their mean on the server in `feddyn`."""
    alpha = config.alpha

    def penalty(context: LocalContext) -> Penalty:
        h = context.memory["h"]

        def add_gradient(gradient: Tensor, local: Tensor) -> None:
            gradient.add_(local - context.global_parameters, alpha=alpha).sub_(h)

        return Penalty(add_gradient)

    def before_wire(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
        # The whole delta counts, not the part of it that is sent.
        memory["h"].sub_(trained.delta, alpha=alpha)
        return {"delta": trained.delta}

    def after_wire(mean_delta: Mean, server: Vectors, senders: Senders) -> None:
        assert isinstance(mean_delta, Tensor), "a server with memory adds payloads up as a vector"
        h = server["feddyn"]
        h.sub_(mean_delta, alpha=alpha * len(senders.weights) / senders.num_clients)
        mean_delta.sub_(h, alpha=1 / alpha)

    return Algorithm(
        memory=("h",),
        server=("feddyn",),
        penalty=penalty,
        before_wire=before_wire,
        after_wire=after_wire,
        excludes=EXCLUDES,
    )


EXCLUDES = of_own_mean("feddyn", "FedDyn")
