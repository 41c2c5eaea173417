"""Measure what masks add to local training: clients of ResNet-18 (11.2 M weights) at density 0.05, one epoch of images.

    python benchmarks/flash_overhead.py [--examples 96] [--rounds 3] [--threads 1]

Alternates rounds of dense FedAvg and of JMWST with moving masks on the same made-up images, 2 clients each. Prints
the multiplication by the mask as a share of a local step, the mask updates of a client (prune and regrow) and of the
server (average, project, mask) as a share of a local epoch (target: under 5 %), and by how much a round grows in all.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.local_mask import LocalMask

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = 500  # examples of a client of the published runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--examples", type=int, default=96, help="of each client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    published = load_config(CONFIGS / "flash/cifar10.yaml", CONFIGS / "methods/jmwst.yaml")
    sparse = _made_up(published, options.threads, options.examples)
    plain = dataclasses.replace(sparse, sparse_training=dataclasses.replace(sparse.sparse_training, method="dense"))
    fed, reference = set_up_federation(sparse), set_up_federation(plain)
    assert isinstance(fed.masks, Masks)
    fed.masks.begin([sparse.sparse_training.density] * len(fed.masks.layers.whole))
    fed.masks.apply(fed.server)
    spent = {"mask": 0.0, "client": 0.0, "server": 0.0}
    now = fed.world.now
    _time(type(fed.clients.trainer.model), "mask_", spent, "mask", now)
    _time(LocalMask, "prune", spent, "client", now)
    _time(LocalMask, "grow", spent, "client", now)
    _time(fed.masks, "average", spent, "server", now)
    _time(fed.masks, "move", spent, "server", now)
    steps = -(-options.examples // sparse.clients.batch_size)
    shares: dict[str, list[float]] = {name: [] for name in (*spent, "round")}
    for round_ in range(1, 2 + options.rounds):
        dense = federated_round(round_, reference)
        for name in spent:
            spent[name] = 0.0
        report = federated_round(round_, fed)
        if round_ == 1:
            continue  # the first one warms up
        epoch = dense["compute_seconds"] / 2
        a_step = epoch / steps
        published = a_step * -(-PUBLISHED // sparse.clients.batch_size)
        # a client masks once for each step, once at its start and once when its mask moves
        shares["mask"].append(spent["mask"] / (2 * (steps + 2)) / a_step)
        shares["client"].append(spent["client"] / 2 / published)
        shares["server"].append(spent["server"] / published)
        shares["round"].append(report["round_seconds"] / dense["round_seconds"] - 1)
        print(
            f"a step {1000 * a_step:.0f} ms, of which the mask {1000 * spent['mask'] / (2 * (steps + 2)):.1f} ms; "
            f"mask update of a client {500 * spent['client']:.0f} ms, of the server {1000 * spent['server']:.0f} ms"
        )
    print(f"mask: {100 * median(shares['mask']):.1f} % of a local step")
    for who in ("client", "server"):
        print(f"mask update of the {who}: {100 * median(shares[who]):.2f} % of a local epoch of {PUBLISHED} images")
    print(f"a round of {options.examples} images a client: {100 * median(shares['round']):+.1f} % against dense")


def _time(owner: object, name: str, spent: dict[str, float], key: str, now: Callable[[], float]) -> None:
    """Add the seconds of a method to `spent[key]`."""
    plain = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        start = now()
        result = plain(*arguments)
        spent[key] += now() - start
        return result

    setattr(owner, name, timed)


def _made_up(config: Config, threads: int, examples: int) -> Config:
    """Change the configuration to two clients of `examples` made-up images of CIFAR's size each."""
    sizes = SyntheticConfig(examples=2 * examples, test_examples=10, shape=(3, 32, 32), classes=10)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return dataclasses.replace(
        config,
        data=DataConfig(name="synthetic", synthetic=sizes),
        clients=dataclasses.replace(config.clients, num=2, per_round=2),
        engine=dataclasses.replace(config.engine, threads=threads, device=device),
    )


if __name__ == "__main__":
    main()
