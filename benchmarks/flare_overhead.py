"""What FLARE and sparse error feedback cost beside the forward and backward passes: the 36.4 M weights of flare_fc.

    python benchmarks/flare_overhead.py [--clients 7] [--repeats 5]

Alternates plain local training and FLARE's for each client and prints the time of pull, percentiles, selection and
residual update as a share of the plain local training, and the memory of a round in vectors of the model's size.
The data are made up: one batch of 600 images, as in the published runs. Targets: 25 %; one vector a client and three.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from statistics import median

import torch

from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.flare import FlareConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.clients.state import ClientStates
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.config import CompressionConfig
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.models.registry import build

BATCH = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--error_feedback", default="ec", choices=["ec", "dgc"])
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    clients = ClientsConfig(
        num=options.clients,
        batch_size=BATCH,
        lr=0.001,
        momentum=0.99,
        objective="flare",
        flare=FlareConfig(tau=0.5, decay=1.05),
    )
    rng = torch.Generator().manual_seed(0)
    examples = Examples(
        torch.randint(256, (BATCH, 1, 28, 28), generator=rng, dtype=torch.uint8),
        torch.randint(10, (BATCH,), generator=rng),
    )
    source = BatchSource(examples, torch.zeros(1), torch.full((1,), 255.0), device)
    local = AccelerateModel(
        EngineConfig(threads=options.threads, device=device.type),
        build("flare_fc", "group", (1, 28, 28), 10, 0),
        device,
        lambda parameters: OPTIMIZERS["sgd"](parameters, clients.lr, clients.momentum, 0.0),
    )
    plain = ClientsConfig(**{**vars(clients), "objective": "none"})
    trainers = {
        name: LocalTrainer(local, source, config, 1000, 0) for name, config in [("plain", plain), ("flare", clients)]
    }
    trainers["plain"].model_delta = trainers["flare"].model_delta  # one of them, as in a run
    compression = CompressionConfig(density=1e-5, count="paper", error_feedback=options.error_feedback)
    compressor = Compressor(compression, local.layout, 0)
    states = ClientStates(compressor.state_names, local.layout.total, device)
    start, indices = (local.parameters.clone(), local.buffers.clone()), torch.arange(BATCH)

    def seconds(name: str, client: int, round_: int) -> tuple[float, float]:
        """(training, compression and the checks before it) of one client's round."""
        _wait(device)
        began = time.perf_counter()
        with states.lend(client) as state:
            result = trainers[name].train(client, round_, indices, *start, state)
            _wait(device)
            trained = time.perf_counter()
            if name == "flare":
                assert result.is_finite
                compressor.compress(round_, client, result.model_delta, state)
                _wait(device)
        return trained - began, time.perf_counter() - trained

    seconds("plain", 0, 1)  # the optimizer's state and the libraries' own memory belong to training without FLARE
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    shares, parts = [], []
    for round_ in range(1, options.repeats + 2):
        for client in range(options.clients):
            compute, _ = seconds("plain", client, round_)
            pulled, compressed = seconds("flare", client, round_)
            if round_ > 1:  # in the first round there is nothing to pull
                shares.append((pulled - compute + compressed) / compute)
                parts.append((compute, pulled - compute, compressed))
    peak = _memory("VmHWM")
    compute, pull, compress = (1e3 * median(column) for column in zip(*parts))
    print(f"local training {compute:.0f} ms a client, pull {pull:.0f} ms, selection and residual {compress:.0f} ms")
    print(f"pull + selection + residual: {100 * median(shares):.1f} % of the local training (median of {len(shares)})")
    if device.type == "cpu":
        vectors = (peak - before) / (4 * local.layout.total)
        state = len(compressor.state_names) * options.clients
        print(f"memory: {vectors:.1f} vectors beside parameters, gradients and optimizer, {state} of them the clients'")


def _memory(kind: str) -> int:
    """Bytes of this process in memory now (VmRSS) or at most (VmHWM); Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
