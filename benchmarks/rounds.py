"""Measure rounds of FedAvg on MNIST's 2NN: ours against Flower's simulation, pfl-research and a bare loop.

    python benchmarks/rounds.py MNIST_ROOT [--peers .peers] [--rounds 20] [--turns 3] [--only bare pfl flower]

100 clients, 10 a round, one epoch of batches of 10, SGD at 0.05, the same shares and initial weights for all
(benchmarks/peers/). The contestants run one after another in each turn, in processes of their own with one thread each;
Flower and pfl-research come from a virtual environment that is made in --peers the first time (about 6 GB). Rounds
after a warm-up count, without evaluation; CPU seconds are those of all processes. Accuracy is that after all rounds.
The last contestant only multiplies the matrices of the same steps: the time that remains if a trainer costs nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import machine, print_table
from torch import Tensor, nn

from flare_dist.config.load import load_config
from flare_dist.data.datasets import load
from flare_dist.models.registry import build
from flare_dist.rounds.build_run import divide

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "mnist_2nn.yaml"
PACKAGES = ["flwr[simulation]", "pfl[pytorch]", "psutil", "torchvision"]
TARGETS = {"flower": 40.0, "flower loader": 40.0, "pfl": 2.0, "pfl 2": 1.3, "bare 2": 1.3}
PEERS = ["bare", "pfl", "flower", "products"]
NAMES = {
    "ours 2": "flare_dist, 2 ranks",
    "ours": "flare_dist, 1 process",
    "bare 2": "bare autograd loop, 2 ranks",
    "bare": "bare autograd loop, 1 process",
    "pfl 2": "pfl-research, 2 ranks",
    "pfl": "pfl-research, 1 process",
    "flower": "Flower simulation, 2 workers",
    "flower loader": "the same, clients with a DataLoader",
    "products 2": "matrix products alone, 2 ranks",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("root", type=Path, help="directory of MNIST, as in data.root")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".peers", help="virtual environment of the peers")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm_up", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if {"pfl", "flower"} & set(options.only):
        install(options.peers)
    contestants = [name for name in NAMES if name.split()[0] in ("ours", *options.only)]
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch)
        write_task(options.root, task)
        for turn in range(options.turns):
            for name in contestants:
                reports[name].append(run(name, task, options))
                seconds = reports[name][-1]["seconds"]
                print(f"turn {turn + 1} of {options.turns}: {NAMES[name]}: {seconds:.3f} s a round", file=sys.stderr)
    print(f"{machine()}; medians over {options.turns} turns of {options.rounds - options.warm_up} rounds each.\n")
    rows = []
    for name in contestants:
        ours = "ours 2" if name.endswith(" 2") or name.startswith("flower") else "ours"  # as many processes
        faster = median(peer["seconds"] / own["seconds"] for peer, own in zip(reports[name], reports[ours]))
        middle = {key: median(report[key] for report in reports[name]) for key in ("seconds", "cpu", "accuracy")}
        target = f"≥ {TARGETS[name]:g} x" if name in TARGETS else ""
        accuracy = "" if math.isnan(middle["accuracy"]) else f"{middle['accuracy']:.4f}"
        numbers = [f"{middle['seconds']:.3f}", f"{middle['cpu']:.3f}", accuracy]
        rows.append([NAMES[name], *numbers, f"{faster:.2f} x", target])
    print_table(["", "seconds a round", "CPU seconds", "accuracy", "times ours", "target"], rows)
    print("Times ours: two processes against our two ranks, one against ours in one.\n")


def install(peers: Path) -> None:
    """Install Flower and pfl-research, with the PyTorch in use here, into an environment of their own."""
    if (peers / "installed").exists():
        return
    print(f"installing {', '.join(PACKAGES)} into {peers}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", peers], check=True)
    version = torch.__version__.split("+")[0]
    subprocess.run([peers / "bin" / "pip", "install", "--quiet", f"torch=={version}", *PACKAGES], check=True)
    (peers / "installed").touch()


def write_task(root: Path, directory: Path) -> None:
    """Write the examples, shares and initial weights of our own configuration, for all contestants."""
    config = load_config(CONFIG)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    data = load(config.data, config.seed)
    model = build(config.model.name, config.model.norm, data.input_shape, data.num_classes, config.seed, data.task)

    def prepared(images: Tensor) -> Tensor:
        return ((images - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1)).flatten(1)

    vectors = {
        "inputs": prepared(data.train.inputs),
        "labels": data.train.labels,
        "test_inputs": prepared(data.test.inputs),
        "test_labels": data.test.labels,
        "parts": torch.stack(list(divide(config, data))),
        "start": nn.utils.parameters_to_vector(model.parameters()).detach(),
    }
    for name, vector in vectors.items():
        np.save(directory / f"{name}.npy", vector.numpy())


def run(name: str, task: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run a contestant; returns its seconds and CPU seconds a round, and its accuracy."""
    kind, _, how = name.partition(" ")
    script = {"bare": "bare_loop", "pfl": "pfl_research"}.get(kind, kind) + ".py"
    python = options.peers / "bin" / "python" if kind in ("pfl", "flower") else Path(sys.executable)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", how] if how.isdecimal() else []
    for old in task.glob("report.*.json"):
        old.unlink()
    given = ["--rounds", str(options.rounds), "--warm_up", str(options.warm_up)]
    given += ["--loader"] if how == "loader" else []
    command = [python.absolute(), *launcher, HERE / "peers" / script, task, options.root.absolute(), task / "report"]
    with (task / "output").open("w") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *given], stdout=output, stderr=subprocess.STDOUT, env=environment)
    written = [json.loads(path.read_text()) for path in sorted(task.glob("report.*.json"))]
    if done.returncode or not written:
        raise SystemExit(f"{NAMES[name]} failed:\n" + (task / "output").read_text()[-4000:])
    return {
        "seconds": median(written[0]["wall"]),
        "cpu": sum(report["cpu"] for report in written),
        "accuracy": written[0]["accuracy"],
    }


if __name__ == "__main__":
    main()
