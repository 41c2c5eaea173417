"""Run the same rounds with pfl-research's SimulatedBackend, in one process or under torchrun."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import torch
import torch.nn.functional as F
from common import BATCH, CLIENTS, COHORT, LR, Clock, Task, options
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Model(nn.Module):
    """Wrap the 2NN with the loss and the metrics that pfl needs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, inputs: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        return F.cross_entropy(self.inner(inputs), labels)

    def metrics(self, inputs: Tensor, labels: Tensor, eval: bool = True) -> dict[str, Any]:
        return {}


class Laps(TrainingProcessCallback):
    """Record when each round ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.clock.lap()
        return False, Metrics()


def main() -> None:
    given = options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task = Task(given.task)
    module = Model(task.model())
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    users = {number: Dataset(raw_data=list(task.client(number))) for number in range(CLIENTS)}
    data = FederatedDataset(lambda user: users[user], get_user_sampler("minimize_reuse", list(users)))
    clock = Clock()
    clock.lap()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=10 * given.rounds,
            train_cohort_size=COHORT,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
        model_eval_params=None,
        callbacks=[Laps(clock)],
    )
    clock.write(given.report, given.warm_up, task.accuracy(module.inner))


if __name__ == "__main__":
    main()
