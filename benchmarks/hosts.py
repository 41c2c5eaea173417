"""Fine-tune a pretrained BERT on hosts of one rank and of several: losses, bytes and memory.

    OMP_NUM_THREADS=1 python benchmarks/hosts.py [--data data/federated_lora]
    python benchmarks/hosts.py --table

Model and texts are those of federated_lora.py, without dropout, so that all layouts train the same. A layout is an
engine, hosts and ranks to a host. One that is in the file of results is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from csv_rows import append_row, read_rows
from federated_lora import CONFIGS, MOST, fetch_model, make_texts
from timing import print_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "hosts.csv"
RANK = Path(__file__).parent / "hosts_rank.py"
SERVER_LR = {"full": 0.001, "lora": 0.05}
ROUNDS = 8
CLIENTS = 6  # of a round
ENGINES: dict[str, dict[str, Any]] = {
    "accelerate": {},
    "fsdp": {"engine.name": "fsdp", "engine.shard_blocks": ["BertLayer"]},
    "zero3": {"engine.name": "deepspeed", "engine.deepspeed_config": str(CONFIGS / "zero3.json")},
}
# Returned at once to the system when it is freed, so that what a process holds is what it uses.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Layout:
    """What is trained on which ranks."""

    way: str
    engine: str
    hosts: int
    shards: int


@dataclass(frozen=True)
class Row:
    """What a run of a layout gave."""

    layout: Layout
    rounds: int
    train_loss: float  # of the last round
    test_loss: float
    test_accuracy: float
    uplink_bytes: int  # of all clients in all rounds
    state_bytes: int  # of the rank that holds most, between rounds
    peak_bytes: int  # of the rank that holds most, in rounds
    seconds: float
    torch: str


LAYOUTS = [
    *(
        Layout(way, engine, hosts, shards)
        for way in ("full", "lora")
        for engine, hosts, shards in (("accelerate", 2, 1), ("fsdp", 2, 2), ("zero3", 2, 2))
    ),
    Layout("full", "accelerate", 1, 1),  # for memory: one host, and more ranks
    Layout("full", "fsdp", 1, 2),
    Layout("full", "fsdp", 1, 4),
    Layout("full", "zero3", 1, 2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=Path("data/federated_lora"), help="folder of model and texts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--table", action="store_true", help="print what is in the file instead")
    options = parser.parse_args()
    if options.table:
        print_rows(read_rows(options.results, Row))
        return
    fetch_model(options.data)
    places = {
        "data.root": str(make_texts(options.data, list(MOST.values())).absolute()),
        "data.tokenizer": str((options.data / "model").absolute()),
        "model.name": f"hf:{without_dropout(options.data / 'model').absolute()}",
    }
    done = {row.layout for row in read_rows(options.results, Row)}
    for layout in LAYOUTS:
        if layout not in done and layout.engine in options.engines:
            row = train(layout, places)
            append_row(options.results, row)
            print(time.strftime("%H:%M"), row, file=sys.stderr, flush=True)


def without_dropout(model: Path) -> Path:
    """Copy a model, and set its dropout to zero."""
    changed = model.with_name(f"{model.name}-without-dropout")
    if not changed.exists():
        unfinished = changed.with_suffix(".part")
        shutil.copytree(model, unfinished, dirs_exist_ok=True)
        settings = json.loads((model / "config.json").read_text())
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (unfinished / "config.json").write_text(json.dumps(settings))
        unfinished.rename(changed)
    return changed


def train(layout: Layout, places: Mapping[str, str]) -> Row:
    """Train a layout in processes of its own."""
    values = {
        **places,
        **ENGINES[layout.engine],
        "engine.shards": layout.shards,
        "rounds": ROUNDS,
        "eval_every": ROUNDS,
        "clients.per_round": CLIENTS,
        "server.lr": SERVER_LR[layout.way],
    }
    layers = [str(CONFIGS / f"{name}.yaml") for name in ("base", layout.way)]
    ranks = layout.hosts * layout.shards
    with tempfile.TemporaryDirectory() as directory:
        plan = {"layers": layers, "values": values | {"output_dir": f"{directory}/run"}}
        Path(directory, "plan.json").write_text(json.dumps(plan))
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        began = time.perf_counter()
        subprocess.run([*start, str(RANK), directory], check=True, env=os.environ | ALLOCATOR, cwd=ROOT)
        seconds = time.perf_counter() - began
        found = [json.loads(Path(directory, f"rank{rank}.json").read_text()) for rank in range(ranks)]
    return _row(layout, found, seconds)


def _row(layout: Layout, ranks: Sequence[Mapping[str, Any]], seconds: float) -> Row:
    most = {name: max(rank[name] for rank in ranks) for name in ("state_bytes", "peak_bytes")}
    version = torch.__version__.partition("+")[0]
    return Row(layout, ROUNDS, **{**ranks[0], **most}, seconds=round(seconds, 1), torch=version)


def print_rows(rows: Sequence[Row]) -> None:
    """Print the table of docs/results/hosts.md."""
    header = ("trained", "engine", "hosts x ranks", "training loss", "test loss", "MB up", "MB held", "at most")
    print_table(header, [_in_words(row) for row in rows])


def _in_words(row: Row) -> list[str]:
    layout = row.layout
    memory = [f"{nbytes / 1e6:,.0f}" for nbytes in (row.state_bytes, row.peak_bytes)]
    return [
        layout.way,
        layout.engine,
        f"{layout.hosts} x {layout.shards}",
        f"{row.train_loss:.5f}",
        f"{row.test_loss:.5f}",
        f"{row.uplink_bytes / 1e6:,.1f}",
        *memory,
    ]


if __name__ == "__main__":
    main()
