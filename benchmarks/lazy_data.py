"""Peak memory of a run on a Dataset of ImageNet's shape that is larger than memory, beside one a tenth as long.

    python benchmarks/lazy_data.py

1.28 M training and 50,000 test images of 3x224x224 are 801 GB in float32. Each image is another one, made when it is
read, and the loss checks that each that arrives is the one of its number. They are divided by class among 1,000
clients; 20 rounds of 5 clients with 2 steps each are 200 steps, with an evaluation before and after them. A run gets a
memory cgroup of its own (v1 or v2; needs root), whose limit would kill it; its peak holds all processes and the page
cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from flare_dist import Part, Source, Task
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.launch import Launch
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.data.config import DataConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.models.config import ModelConfig
from flare_dist.run.trainer import train
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.config import TaskConfig

SHAPE = (3, 224, 224)
NUMEL = 3 * 224 * 224
CLASSES = 1000
CLIENTS = 1000
LONGEST = 1_280_000
ROUNDS = 20
COHORT = 5
LOCAL_STEPS = 2
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


class Numbered:
    """Images that are windows of one line of noise, image i beginning at its value i: no two are the same."""

    def __init__(self, examples: int, seed: int) -> None:
        self.part = seed
        draws = torch.Generator().manual_seed(seed)
        self.line = torch.randn(LONGEST + NUMEL, generator=draws)
        self.labels = torch.randint(CLASSES, (examples,), generator=draws, dtype=torch.int16)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.line[index : index + NUMEL].view(SHAPE)
        return {"image": image, "label": int(self.labels[index]), "number": index, "part": self.part}


class Checked:
    """The loss and the metrics of a task that checks every image that it sees, and remembers what it has trained on."""

    def __init__(self, train: Numbered, test: Numbered) -> None:
        self.parts = (train, test)
        self.trained: list[int] = []
        self.tested = 0

    def check(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        part = int(batch["part"][0])
        data = self.parts[part]
        numbers = batch["number"]
        images = batch["image"].flatten(1)
        for place in (0, 1, NUMEL // 2, NUMEL - 1):
            assert torch.equal(images[:, place], data.line[numbers + place]), "an image is not that of its number"
        assert torch.equal(batch["label"], data.labels[numbers].long())
        if part == 0:
            self.trained += numbers.tolist()
            return
        if not self.tested:  # what was tried before the run
            self.trained.clear()
        self.tested += len(numbers)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        self.check(model, batch)
        labels = batch["label"]
        return F.cross_entropy(model(batch["image"]), labels, reduction="sum"), len(labels)

    def metrics(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
        self.check(model, batch)
        labels = batch["label"]
        scores = model(batch["image"])
        right = (scores.argmax(1) == labels).sum()
        return {
            "loss": (F.cross_entropy(scores, labels, reduction="sum"), len(labels)),
            "accuracy": (right, len(labels)),
        }


def tiny(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Make a classifier that takes no time: what is measured is the data."""
    return nn.Sequential(nn.Conv2d(3, 8, 32, stride=32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def play(examples: int, workers: int) -> dict[str, Any]:
    """Train and evaluate on so many examples in this process; returns what was seen, and the seconds."""
    data = {"train": Numbered(examples, 0), "test": Numbered(examples * 50 // 1280, 1)}
    checked = Checked(data["train"], data["test"])
    TASKS["checked"] = Task(checked.loss, checked.metrics, best=("accuracy", "max"))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        config = Config(
            rounds=ROUNDS,
            eval_every=ROUNDS,
            output_dir=directory,
            data=DataConfig(partition="dirichlet", alpha=0.5, workers=workers),
            task=TaskConfig("checked"),
            model=ModelConfig(name="lazy_data:tiny"),
            clients=ClientsConfig(num=CLIENTS, per_round=COHORT, local_steps=LOCAL_STEPS, batch_size=32, lr=0.01),
            compression=CompressionConfig(density=0.05),
            engine=EngineConfig(device="cpu", threads=1),
            checkpoint=CheckpointConfig(every=ROUNDS),
        )
        part = Part(data["train"], labels=data["train"].labels)
        train(config, Launch(), Console(quiet=True), data=Source(part, data["test"], classes=CLASSES))
    steps = len(checked.trained) / 32
    return {
        "examples": examples,
        "steps": steps,
        "different": len(set(checked.trained)),
        "tested": checked.tested,
        "seconds": round(time.perf_counter() - start, 1),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


@contextmanager
def memory_cgroup(name: str, limit: int) -> Iterator[Path]:
    """Make a memory cgroup with a limit, below the one that is mounted; it is removed again."""
    is_v2 = (V2 / "cgroup.controllers").exists()
    group = (V2 if is_v2 else V1) / name
    group.mkdir()
    try:
        (group / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def peak_of(group: Path) -> int:
    """Return the most bytes that a cgroup has held."""
    v2 = group / "memory.peak"
    return int((v2 if v2.exists() else group / "memory.max_usage_in_bytes").read_text())


def measure(examples: int, workers: int, limit: int) -> dict[str, Any]:
    """Play a run in a process and a cgroup of its own."""
    with memory_cgroup(f"lazy_data_{os.getpid()}_{examples}", limit) as group:
        join = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))"
        call = f"import json, lazy_data; print('FOUND', json.dumps(lazy_data.play({examples}, {workers})))"
        done = subprocess.run(
            [sys.executable, "-c", f"{join}; {call}"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        )
        found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
        if not found:
            raise SystemExit(f"{examples} examples: the run ended with {done.returncode}\n{done.stderr[-2000:]}")
        return json.loads(found[0].removeprefix("FOUND")) | {"peak_mb": round(peak_of(group) / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=LONGEST)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--limit_gib", type=float, default=4.0)
    options = parser.parse_args()
    rows = []
    for examples in (options.examples // 10, options.examples):
        rows.append(measure(examples, options.workers, int(options.limit_gib * 2**30)))
        print(json.dumps(rows[-1]), flush=True)
    ratio = rows[1]["peak_mb"] / rows[0]["peak_mb"]
    print(f"peak memory of {options.examples:,} examples over a tenth of them: {ratio:.3f}")


if __name__ == "__main__":
    main()
