"""SCAFFOLD: control variates correct the drift of local steps.

Sai Praneeth Karimireddy, Satyen Kale, Mehryar Mohri, Sashank J. Reddi, Sebastian U. Stich, Ananda Theertha Suresh,
"SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, https://arxiv.org/abs/1910.06378

Local steps go along g - c_k + c. After K steps c_k+ = c_k - c + (w_t - y) / (K * lr) (option II), whose change is a
second payload, and the server takes c <- c + (1 / N) * the sum of the changes, over N clients in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, Penalty, Senders, Trained, Vectors
from flare_dist.algorithms.excludes import drifting_controls, of_controls


def scaffold() -> Algorithm:
    """Keep a control variate, `control`, of each client and of the server."""
    return Algorithm(
        memory=("control",),
        server=("control",),
        sends=("delta", "control"),
        penalty=_correction,
        before_wire=_with_change,
        after_round=_follow,
        excludes=EXCLUDES,
    )


def _correction(context: LocalContext) -> Penalty:
    """Add c - c_k to the gradient."""
    correction = context.server["control"] - context.memory["control"]

    def add_gradient(gradient: Tensor, local: Tensor) -> None:
        gradient.add_(correction)

    return Penalty(add_gradient)


def _with_change(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
    """Move the client's control variate by (w_t - y) / (K * lr) - c, and send by how much."""
    work = trained.work
    change = torch.add(server["control"], trained.delta, alpha=1 / (work.steps * work.lr)).neg_()
    memory["control"].add_(change)
    return {"delta": trained.delta, "control": change}


def _follow(means: Vectors, server: Vectors, senders: Senders) -> None:
    """Move the server's control variate; clients that did not take part have not changed theirs."""
    server["control"].add_(means["control"], alpha=len(senders.weights) / senders.num_clients)


EXCLUDES = of_controls("scaffold", "SCAFFOLD")
CAUTIONS = drifting_controls("scaffold", "SCAFFOLD")
