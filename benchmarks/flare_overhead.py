"""Measure what FLARE and error feedback add to the forward and backward passes: rounds of flare_fc, 36.4 M weights.

    python benchmarks/flare_overhead.py [--method flare] [--rounds 5]

Alternates rounds of dense FedAvg, whose local training is plain, and of the method, each with 7 of 10 clients and one
batch of 600 made-up images, as published. Prints the time of pull, percentiles, selection and residual update as a
share of plain local training (target: 25 %), and the most memory of a round in vectors of the model's size, beside
parameters, gradients and optimizer state (target: one vector for each client that has taken part, two for ef21 and
dgc, and three; the activations of a batch, which are counted here, take 0.2).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
from pathlib import Path
from statistics import median

import torch

from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round

CONFIGS = Path(__file__).parent.parent / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--method", default="flare", choices=["flare", "ec", "ef21", "dgc"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    layers = ["flare/fc"] if options.method == "flare" else ["flare/fc", "methods/ec"]
    config = _made_up(load_config(*[CONFIGS / f"{name}.yaml" for name in layers]), options.threads)
    if options.method in ("ef21", "dgc"):
        changed = dataclasses.replace(config.compression, error_feedback=options.method)
        config = dataclasses.replace(config, compression=changed)
    fed = set_up_federation(config)
    total = fed.clients.trainer.model.layout.total
    gc.collect()
    before = _memory("VmRSS")
    if before:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for round_ in (1, 2):  # in the first one there is nothing to pull
        federated_round(round_, fed)
    velocity = 1
    working = (_memory("VmHWM") - before) / (4 * total) - velocity
    clients = len(fed.clients.states.clients)

    plain = dataclasses.replace(
        config,
        clients=dataclasses.replace(config.clients, objective="none"),
        compression=CompressionConfig(sparsifier="dense"),
    )
    reference = set_up_federation(plain)
    federated_round(1, reference)
    shares = []
    for round_ in range(3, 3 + options.rounds):
        compute = federated_round(round_, reference)["compute_seconds"]
        report = federated_round(round_, fed)
        extra = report["compute_seconds"] - compute, report["select_seconds"]
        shares.append(sum(extra) / compute)
        print(f"local training {compute:.2f} s, pull {extra[0]:.2f} s, selection and residual {extra[1]:.2f} s")
    print(f"pull + selection + residual: {100 * median(shares):.1f} % of the local training")
    if before:
        print(f"memory of a round: {working:.1f} vectors; {clients} clients have taken part")


def _made_up(config: Config, threads: int) -> Config:
    """Change the configuration to made-up images of MNIST's size."""
    sizes = SyntheticConfig(examples=6000, test_examples=10, shape=(1, 28, 28), classes=10)
    data = DataConfig(name="synthetic", normalize="unit", synthetic=sizes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = dataclasses.replace(config.engine, threads=threads, device=device)
    return dataclasses.replace(config, data=data, engine=engine)


def _memory(kind: str) -> int:
    """Read the bytes of this process in memory now (VmRSS) or at most (VmHWM); 0 without /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")), 0)


if __name__ == "__main__":
    main()
