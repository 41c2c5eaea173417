"""Count the files and functions of flare_dist that a reader of one federated round has to open.

    python benchmarks/round_reach.py                 # a dense, a top-k and a masked round (sparse_training.method nst)
    python benchmarks/round_reach.py --list masked   # the names of one of them

The round is the second of its run, on the bundled digits and in one process; the first fills caches. Functions with a
name of their own are counted, by sys.setprofile; lambdas and comprehensions are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

import flare_dist
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.sparse_training.config import SparseTrainingConfig

PACKAGE = Path(flare_dist.__file__).parent
DENSE = Config(
    rounds=3,
    data=DataConfig(name="digits"),
    model=ModelConfig(name="2nn"),
    clients=ClientsConfig(num=4),
    compression=CompressionConfig(sparsifier="dense"),
)
ROUNDS = {
    "dense": DENSE,
    "top-k": dataclasses.replace(DENSE, compression=CompressionConfig(density=0.01)),
    "masked": dataclasses.replace(DENSE, sparse_training=SparseTrainingConfig(method="nst", layers="all")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--list", choices=list(ROUNDS), help="print the functions of this round, file by file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, config in ROUNDS.items():
        entered = reach(config)
        print(f"{name}: {len(entered)} files, {sum(map(len, entered.values()))} functions")
        if name == options.list:
            for path, functions in sorted(entered.items()):
                print(f"    {path}: {', '.join(sorted(functions))}")


def reach(config: Config) -> dict[str, set[str]]:
    """Return the functions that the second round of a run enters, by their files."""
    federation = set_up_federation(config, World())
    begin_masks(federation, Console(quiet=True))
    federated_round(1, federation)
    entered: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
            entered.setdefault(str(path.relative_to(PACKAGE)), set()).add(_qualified_name(frame))

    sys.setprofile(note)
    try:
        federated_round(2, federation)
    finally:
        sys.setprofile(None)
    return entered


def _qualified_name(frame: FrameType) -> str:
    """Name a function with its class; on Python 3.10 by its first line instead."""
    code = frame.f_code
    return str(getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}"))


if __name__ == "__main__":
    main()
