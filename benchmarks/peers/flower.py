"""Run the same rounds with Flower's simulation (Ray), two workers.

With --loader the client reads its examples as in Flower's own introduction to PyTorch, by torch's DataLoader with the
usual transforms of each image. Without it, batches are slices of tensors that each worker keeps, as in the bare loop.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
from common import BATCH, CLIENTS, COHORT, Clock, Task, options, train_batches, train_epoch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

TRANSFORMS = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
TASKS: dict[str, Task] = {}  # of a worker process: Flower has no place for objects that clients share


def cpu_seconds() -> float:
    """Add up the CPU seconds of this process and of all that Ray has started from it."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def main() -> None:
    given = options()
    task = Task(given.task)
    clock = Clock()
    directory = str(given.task)
    client_app = ClientApp()
    server_app = ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        if directory not in TASKS:
            TASKS[directory] = Task(given.task)
        own = TASKS[directory]
        model = own.model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        number = int(context.node_config["partition-id"])
        round_ = int(message.content["config"]["server-round"])
        if given.loader:
            images = datasets.MNIST(given.root, transform=TRANSFORMS)
            loader = DataLoader(Subset(images, own.parts[number].tolist()), batch_size=BATCH, shuffle=True)
            train_batches(model, ((inputs.flatten(1), labels) for inputs, labels in loader))
        else:
            train_epoch(model, *own.client(number), torch.Generator().manual_seed(1000 * round_ + number))
        metrics = MetricRecord({"num-examples": len(own.parts[number])})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    class Timed(FedAvg):
        """Record when each round of FedAvg ends."""

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            result = super().aggregate_train(server_round, replies)
            clock.lap(cpu_seconds())
            return result

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = Timed(
            fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0, min_train_nodes=COHORT, min_available_nodes=CLIENTS
        )
        clock.lap(cpu_seconds())
        result = strategy.start(grid, ArrayRecord(task.model().state_dict()), num_rounds=given.rounds)
        model = task.model()
        model.load_state_dict(result.arrays.to_torch_state_dict())
        clock.write(given.report, given.warm_up, task.accuracy(model))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app, client_app, num_supernodes=CLIENTS, backend_config=resources)


if __name__ == "__main__":
    main()
