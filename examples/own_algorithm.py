"""An algorithm of one's own: each client remembers its velocity, so that momentum outlives the local training.

A client's optimizer starts afresh in every round. Here the client keeps velocity <- beta * velocity + delta, and sends
delta + beta * velocity, Nesterov's step over rounds. The server stays plain.

python own_algorithm.py
torchrun --nproc_per_node 2 own_algorithm.py   # any number of ranks, with the same bits
"""

from typing import Any

from torch import Tensor

import flare_dist

CONFIG = {
    "engine": {"threads": 1},  # a rank: on it the bits depend
    "rounds": 10,
    "checkpoint": {"resume": "never"},  # each start begins anew, since what is here may have been edited
    "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "2nn"},
    "clients": {"num": 5, "batch_size": 20, "lr": 0.01},
    "compression": {"sparsifier": "topk", "density": 0.05},
}


def client_velocity(beta: float = 0.9) -> flare_dist.Algorithm:
    """Make the record of the method: what clients remember, and what becomes of a delta before it is sent."""

    def before_wire(
        trained: flare_dist.Trained, memory: dict[str, Tensor], server: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        velocity = memory["velocity"]
        velocity.mul_(beta).add_(trained.delta)
        return {"delta": trained.delta.add_(velocity, alpha=beta)}

    return flare_dist.Algorithm(memory=("velocity",), before_wire=before_wire)


OWN = "own_algorithm:client_velocity"  # this file, as a module
WAYS: dict[str, dict[str, Any]] = {
    "FedAvg": {"clients.objective": "none"},
    "velocity 0.9": {"clients.objective": OWN, "clients.objective_options": {"beta": 0.9}},
}

if __name__ == "__main__":
    for name, keys in WAYS.items():

        def show(row: dict[str, Any], name: str = name) -> None:
            if row["round"] % 5 == 0:
                print(f"{name:12}  round {row['round']:2}  accuracy {row['test_accuracy']:.3f}")

        directory = f"runs/own_algorithm/{name.replace(' ', '_')}"
        flare_dist.train(CONFIG, on_round=show, output_dir=directory, **keys)
