"""FedNova: clients that take many steps do not weigh more than their examples.

Jianyu Wang, Qinghua Liu, Hao Liang, Gauri Joshi, H. Vincent Poor,
"Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
https://arxiv.org/abs/2007.07481

w <- w + tau_eff * sum of p_k * Delta_k / ||a_k||_1, tau_eff = sum of p_k * ||a_k||_1. Deltas are divided before they
are compressed.
"""

from __future__ import annotations

from flare_dist.algorithms.algorithm import Algorithm, LocalWork, Mean, Senders, Trained, Vectors
from flare_dist.conditions import is_fednova, is_masked
from flare_dist.exclusion import Exclusion


def fednova() -> Algorithm:
    """Average deltas by the gradient, times the mean number of these."""
    return Algorithm(brief=_count, before_wire=_by_the_gradient, after_wire=_times_mean_count, excludes=EXCLUDES)


def gradients_in(work: LocalWork) -> float:
    """Count how many gradients' worth of steps a client's delta is, ||a||_1.

    With momentum r the s-th gradient has moved the model by 1 + r + ... + r^(K - s) steps by the end; with the
    proximal term of weight m each step first shrinks what was there by 1 - lr * m.
    """
    count = total = 0.0
    for _ in range(work.steps):
        count = work.momentum * count + 1
        total = total * work.shrinking + count
    return total


def _count(work: LocalWork) -> LocalWork:
    return work._replace(gradients=gradients_in(work))


def _by_the_gradient(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
    return {"delta": trained.delta.div_(trained.work.gradients)}


def _times_mean_count(mean_delta: Mean, server: Vectors, senders: Senders) -> None:
    mean_delta.mul_(senders.mean(lambda work: work.gradients))


# fmt: off
EXCLUDES = (
    Exclusion(("server.aggregator", "clients.optimizer"), "FedNova with adam or adamw",
              lambda c: is_fednova(c) and c.clients.optimizer != "sgd", "fednova counts steps of sgd",
              "use clients.optimizer=sgd", ("mode",)),
    Exclusion(("server.aggregator", "sparse_training.method"), "FedNova with masks",
              lambda c: is_fednova(c) and is_masked(c),
              "fednova does not go with sparse models, which have a mean of their own", "use mean", ("mode",)),
)
