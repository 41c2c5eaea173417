"""Time aggregation and the server's step for sparse payloads, against touching the union of their entries once.

    python benchmarks/server_step.py [--numel 11181642] [--clients 64] [--density 0.001] [--turns 15] [--threads 1]

Times what rank 0 does with decoded payloads, `Server.receive` for each and `Server.step`, against one sorted
`index_add_` of the union's entries; beside it the same with the sum as a vector, as a server optimizer with memory
needs it, and what decoding and checking the payloads takes. On a GPU if there is one.
"""

from __future__ import annotations

import argparse

import torch
from timing import alternate, machine, milliseconds, print_table, ratio
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Sparse
from flare_dist.compression.segments import count_kept
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.server.config import ServerConfig
from flare_dist.server.server import Server

TARGET = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--numel", type=int, default=11_181_642)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total, kept = options.numel, count_kept(options.numel, options.density)
    draws = torch.Generator().manual_seed(0)
    layout = ParameterLayout((Entry("all", (total,), 0),))
    packing = Packing.of(CompressionConfig(density=options.density), layout, [], device)

    def payload() -> Sparse:
        at = torch.randint(total, (kept + kept // 8,), generator=draws).unique()
        at = at[torch.randperm(len(at), generator=draws)[:kept]].sort().values
        return packing.pack(at.to(device), torch.randn(kept, generator=draws).to(device))

    payloads = [payload() for _ in range(options.clients)]
    union = torch.cat([p.indices.long() for p in payloads]).unique()
    values, touched = torch.randn(len(union), device=device), torch.zeros(total, device=device)
    server = Server(torch.zeros(total, device=device), torch.zeros(0), ServerConfig(), 1)
    weight = 1 / options.clients

    def step(in_one_vector: bool) -> None:
        most = total if in_one_vector else kept * options.clients
        mean_delta = server.new_sum(most)
        for client, each in enumerate(payloads):
            server.receive(mean_delta, client, each, weight)
        server.step(1, mean_delta)

    def decode() -> list[Tensor]:
        return [packing.unpack_checked(p.data, kept).values for p in payloads]

    ways = {
        "union": lambda: touched.index_add_(0, union, values),
        "sparse": lambda: step(False),
        "vector": lambda: step(True),
        "decode": decode,
    }
    seconds = alternate(ways, options.turns)
    print(
        f"{options.clients} clients send {options.density:.2g} of {total:,} entries each, "
        f"{len(union):,} in their union; {machine()}; medians over {options.turns} turns.\n"
    )
    names = {
        "union": "touching the union once",
        "sparse": "aggregation and step, entry by entry",
        "vector": "the same with the sum as a vector",
        "decode": "(decoding and checking the payloads)",
    }
    rows = [
        [name, f"{milliseconds(seconds, way):.1f}", f"{ratio(seconds, way, 'union'):.2f} x"]
        for way, name in names.items()
    ]
    rows[1].append(f"< {TARGET} x")
    print_table(["", "ms", "of touching the union", "target"], [(*row, "")[:4] for row in rows])


if __name__ == "__main__":
    main()
