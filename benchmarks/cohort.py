"""Measure how many clients a second a rank trains: as one batch (`clients.together`) against one after another.

    python benchmarks/cohort.py [--clients 100] [--examples 60 600] [--turns 5] [--model 2nn cnn]

Clients of sizes spread evenly over the range of --examples, made-up images of MNIST's size, batches of 10, one local
epoch of plain SGD. If PyTorch finds no GPU, the default is a tenth of the clients and of the examples. The same code
runs there, but one after another is faster, which is why `auto` chooses it on CPUs. Prints a Markdown table (target on
a GPU: 5 x the clients a second), and on a GPU the most memory that either way took.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from accelerate.state import AcceleratorState
from timing import alternate, machine, milliseconds, print_table, ratio

from flare_dist.clients.client import ClientResult
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up_federation

APART, TOGETHER = "one after another", "as one batch"


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, default=100 if gpu else 10)
    parser.add_argument("--examples", type=int, nargs=2, default=(60, 600) if gpu else (6, 60))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", nargs="+", default=["2nn", "cnn"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    sizes = torch.linspace(options.examples[0], options.examples[1], options.clients).long().tolist()
    rows = [measure(name, sizes, options.turns, options.threads) for name in options.model]
    print(f"{options.clients} clients of {sizes[0]} to {sizes[-1]} examples; {machine()}\n")
    ways = [f"clients/s {APART}", f"clients/s {TOGETHER}"]
    memory = [f"MiB {APART}", f"MiB {TOGETHER}"] if gpu else []
    print_table(["model", *ways, "times as many", "largest difference", *memory], rows)


def measure(name: str, sizes: list[int], turns: int, threads: int) -> list[str]:
    """Measure one model; returns a row of the table."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    images = SyntheticConfig(examples=sum(sizes), test_examples=10, shape=(1, 28, 28), classes=10)
    config = Config(
        data=DataConfig(name="synthetic", synthetic=images),
        model=ModelConfig(name),
        clients=ClientsConfig(num=len(sizes), batch_size=10, lr=0.05, together="always"),
        engine=EngineConfig(device=device.type, threads=threads),
    )
    fed = set_up_federation(config, World(device=device))
    trainer, batched = fed.clients.trainer, fed.clients.batched
    assert batched is not None
    parts = list(torch.arange(sum(sizes)).split(sizes))
    start = trainer.model.parameters.clone(), trainer.model.buffers.clone()

    def apart() -> Iterator[ClientResult]:
        for client, examples in enumerate(parts):
            yield trainer.train(client, 1, examples, *start, {})

    def together() -> Iterator[ClientResult]:
        for group in batched.groups(range(len(parts)), parts):
            yield from batched.train(group, 1, parts, *start)

    ways = {APART: lambda: consume(apart()), TOGETHER: lambda: consume(together())}
    deltas = {result.client: result.model_delta for result in together()}
    difference = max((result.model_delta - deltas.pop(result.client)).abs().max().item() for result in apart())
    memory = [f"{peak(way):.0f}" for way in ways.values()] if device.type == "cuda" else []
    seconds = alternate(ways, turns)
    rates = [f"{1000 * len(sizes) / milliseconds(seconds, way):.0f}" for way in ways]
    AcceleratorState._reset_state(True)  # the next model's engine sets its own
    return [name, *rates, f"{ratio(seconds, APART, TOGETHER):.2f}", f"{difference:.1e}", *memory]


def consume(results: Iterator[ClientResult]) -> None:
    """Train all clients, and keep nothing."""
    for _ in results:
        pass


def peak(run: Callable[[], object]) -> float:
    """Measure the most MiB of a GPU's memory that are in use while `run` runs."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


if __name__ == "__main__":
    main()
