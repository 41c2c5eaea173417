"""FedDC: each client learns its local drift and corrects for it.

Liang Gao, Huazhu Fu, Li Li, Yingwen Chen, Ming Xu, Cheng-Zhong Xu,
"FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and Correction", CVPR 2022,
https://arxiv.org/abs/2203.11751, and the authors' code.

Clients minimise f_k(w) + (alpha / 2) * ||w - (w_t - h_k)||^2 + <g - g_k, w>. After K steps the drift follows the model,
h_k <- h_k + Delta_k, and g_k <- g_k - g - Delta_k / (K * lr). The change of g_k is a second payload. The server takes
w <- w + mean of Delta_k + h, with the means h and g over all clients, of those that did not take part as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, Mean, Penalty, Senders, Trained, Vectors
from flare_dist.algorithms.excludes import drifting_controls, of_controls, of_own_mean
from flare_dist.errors import check_range


@dataclass(frozen=True)
class FedDCConfig:
    """Settings of the feddc objective.

    Args:
        alpha: weight of the penalty (alpha / 2) * ||local + drift - global||^2.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        check_range("clients.feddc.alpha", self.alpha, "(0, 1e38)")  # the range of float32


def feddc(config: FedDCConfig) -> Algorithm:
    """Remember each client's `drift` and last `gradient`, and the means of both on the server."""

    def penalty(context: LocalContext) -> Penalty:
        target = context.global_parameters - context.memory["drift"]
        correction = context.server["gradient"] - context.memory["gradient"]

        def add_gradient(gradient: Tensor, local: Tensor) -> None:
            gradient.add_(local - target, alpha=config.alpha).add_(correction)

        return Penalty(add_gradient)

    return Algorithm(
        memory=("drift", "gradient"),
        server=("drift", "gradient"),
        sends=("delta", "gradient"),
        penalty=penalty,
        before_wire=_remember,
        after_wire=_add_drift,
        after_round=_follow,
        excludes=EXCLUDES,
    )


def _remember(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
    """Move drift and gradient by the whole delta, not by the part of it that is sent."""
    work = trained.work
    memory["drift"].add_(trained.delta)
    change = torch.add(server["gradient"], trained.delta, alpha=1 / (work.steps * work.lr)).neg_()
    memory["gradient"].add_(change)
    return {"delta": trained.delta, "gradient": change}


def _add_drift(mean_delta: Mean, server: Vectors, senders: Senders) -> None:
    """Step by the mean drift of all clients as well."""
    assert isinstance(mean_delta, Tensor), "a server with memory adds payloads up as a vector"
    server["drift"].add_(mean_delta, alpha=len(senders.weights) / senders.num_clients)
    mean_delta.add_(server["drift"])


def _follow(means: Vectors, server: Vectors, senders: Senders) -> None:
    """Move the mean gradient of all clients."""
    server["gradient"].add_(means["gradient"], alpha=len(senders.weights) / senders.num_clients)


EXCLUDES = (*of_own_mean("feddc", "FedDC"), *of_controls("feddc", "FedDC"))
CAUTIONS = drifting_controls("feddc", "FedDC")
