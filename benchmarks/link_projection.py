"""Compare a real slow link with the projection of `flare-dist bandwidth`: the step time of ResNet-18 on two ranks.

For dense and for sparse gradients the same run is measured on the loopback device as it is and with its rate limited
(benchmarks/link.sh: root and iproute2), in turns. The projection starts from the unlimited run; medians over rounds.

    python benchmarks/link_projection.py [--rates 100mbit 1gbit] [--steps 5] [--rounds 4] [--output_dir runs/links]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from flare_dist.analysis.links import Link, project
from flare_dist.analysis.run_logs import read_run

ROOT = Path(__file__).parent.parent
KINDS = {"dense": ["--compression.sparsifier", "dense"], "top-k 1 %": ["--compression.density", "0.01"]}


def rounds_of(directory: Path, kind: str, rate: str | None, steps: int, rounds: int) -> list[dict]:
    """Train one run; returns its rows without the first round, in which DDP forms its buckets anew."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = ["--eval_every", str(steps), "--rounds", str(rounds + 1), "--output_dir", str(directory)]
    settings += ["--checkpoint.resume", "never", "--checkpoint.every", "1000000", *KINDS[kind]]
    command = [
        *launcher,
        "-m",
        "flare_dist",
        "train",
        "--config",
        str(ROOT / "configs/studies/resnet18_gradient.yaml"),
        *settings,
    ]
    link = [] if rate is None else ["bash", str(ROOT / "benchmarks/link.sh"), rate]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*link, *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    return read_run(directory, {}).rows[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit"])
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds measured, after one that is not")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/links"))
    options = parser.parse_args()
    print("| gradients | link | measured s/step | projected | difference |\n|---|---|---|---|---|")
    for kind in KINDS:
        place = options.output_dir / kind.replace(" ", "_")
        free = rounds_of(place / "free", kind, None, options.steps, options.rounds)
        print(f"| {kind} | none | {median(row['round_seconds'] for row in free) / options.steps:.3f} | | |", flush=True)
        for rate in options.rates:
            measured = rounds_of(place / rate, kind, rate, options.steps, options.rounds)
            link = Link.parse(f"{rate.replace('mbit', 'Mbps').replace('gbit', 'Gbps')}/shared")
            seconds = median(row["round_seconds"] for row in measured) / options.steps
            expected = median(project(row, link, "ranks") for row in free) / options.steps
            print(f"| {kind} | {rate} | {seconds:.3f} | {expected:.3f} | {expected / seconds - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
