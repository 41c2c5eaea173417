"""Train ResNet-18 on CIFAR-10 under DDP with six exchanges of gradients: loss, accuracy and bytes on the wire.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/hook_curves.py CIFAR10_FOLDER [--out runs/hook_curves]

Plain DDP, PyTorch's fp16 hook, its PowerSGD hook of rank 1, and ours with error feedback: ec under SGD with the same
momentum as the others, and dgc, which has the momentum in the hook and none in SGD, with values of 32 and of 2 bits.
Each tries the same list of learning rates for the first third of the steps. The rate with the best accuracy on 2000
images held out of the training set then trains for all steps. Finished runs are kept in --out: the same command
continues. Bytes are those that the collectives move over all ranks.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.config import GradientsConfig
from flare_dist.data.batches import BatchSource, SharedEpochs
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits, load
from flare_dist.hook.library import LibraryHookState, bucket_cap_mb, library_hook
from flare_dist.hook.state import SparseHookState
from flare_dist.models.registry import build
from flare_dist.run.evaluation import evaluate
from flare_dist.seeding import generator

METHODS = ("dense", "fp16", "powersgd", "sparse", "sparse_dgc", "sparse_dgc_2bit")
MOMENTUM = 0.9
EVERY = 10  # steps between the losses that are kept


def exchange_by(method: str, model: DistributedDataParallel, density: float) -> SparseHookState | LibraryHookState:
    """Register one way of exchanging gradients on a DDP model; the state counts the bytes that it moves."""
    if method in ("fp16", "powersgd"):
        state = LibraryHookState(GradientsConfig(hook=method), None, seed=0)
        model.register_comm_hook(state, library_hook)
        return state
    if method.startswith("sparse_dgc"):
        codec = "2bit" if method.endswith("2bit") else "fp32"
        return flare_dist.attach(model, density=density, error_feedback="dgc", momentum=MOMENTUM, value_codec=codec)
    return flare_dist.attach(model, density=density if method == "sparse" else 1.0)


def train(data: DataSplits, method: str, lr: float, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one run; returns its losses, bytes, seconds and accuracies."""
    rank, size = dist.get_rank(), dist.get_world_size()
    source = BatchSource(data.train, data.mean, data.std, "cpu", "crop_flip")
    epochs = SharedEpochs(len(source), options.batch_size, size, options.seed)
    model = build("torchvision:resnet18", "batch", data.input_shape, data.num_classes, options.seed, data.task)
    ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb(method, dist.get_backend()))
    exchange = exchange_by(method, ddp, options.density)
    momentum = 0.0 if method.startswith("sparse_dgc") else MOMENTUM
    optimizer = torch.optim.SGD(ddp.parameters(), lr=lr, momentum=momentum, weight_decay=5e-4)
    curve, losses, start = [], torch.zeros(1), time.perf_counter()
    for step in range(1, steps + 1):
        indices = epochs.indices(step - 1, rank)
        draws = generator(options.seed, "augment", step, rank)
        for inputs, labels in source.batches(indices, len(indices), draws):
            optimizer.zero_grad()
            loss = F.cross_entropy(ddp(inputs), labels)
            loss.backward()
            optimizer.step()
            losses += loss.detach()
        if step % EVERY == 0:
            dist.all_reduce(losses)
            loss_mean = losses.item() / (EVERY * size)
            seconds = time.perf_counter() - start
            curve.append({"step": step, "train_loss": loss_mean, "wire_bytes": exchange.traffic.wire_bytes})
            losses.zero_()
            if rank == 0:
                pace = f"{seconds / step:.2f} s a step"
                print(f"{method}, lr {lr:g}, step {step}/{steps}: loss {loss_mean:.3f}, {pace}", flush=True)
    result = {"method": method, "lr": lr, "steps": steps, "curve": curve, "seconds": time.perf_counter() - start}
    held_out = {"test": data.test, "validation": data.validation}
    for name, split in held_out.items():
        assert split is not None
        found = evaluate(model, BatchSource(split, data.mean, data.std, "cpu"), data.task)
        result |= {f"{name}_{metric}": value for metric, value in found.items()}
    return result


def kept(path: Path, make: Any) -> dict[str, Any]:
    """Read the result in `path`; if it is missing all ranks make it first, together."""
    found = path.exists()
    dist.barrier()
    if not found:
        result = make()
        if dist.get_rank() == 0:
            path.write_text(json.dumps(result))
        dist.barrier()
    return dict(json.loads(path.read_text()))


def report(results: list[dict[str, Any]], directory: Path) -> None:
    """Print a table, and plot the curves."""
    print("| exchange | lr | loss at the end | test accuracy | MB on the wire | against dense |")
    print("|---|---|---|---|---|---|")
    dense = results[0]["curve"][-1]["wire_bytes"]
    for run in results:
        moved = run["curve"][-1]["wire_bytes"]
        loss = sum(point["train_loss"] for point in run["curve"][-5:]) / 5
        sizes = f"{moved / 1e6:.1f} | {dense / moved:.1f}"
        print(f"| {run['method']} | {run['lr']:g} | {loss:.3f} | {run['test_accuracy']:.3f} | {sizes} |")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: it needs matplotlib: pip install 'flare_dist[plots]'")
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_step, by_bytes = figure.subplots(1, 2)
    for run in results:
        losses = [point["train_loss"] for point in run["curve"]]
        by_step.plot([point["step"] for point in run["curve"]], losses, label=run["method"])
        by_bytes.plot([point["wire_bytes"] for point in run["curve"]], losses)
    by_step.set(xlabel="step", ylabel="training loss")
    by_bytes.set(xlabel="bytes on the wire", xscale="log")
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(directory / "curves.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/hook_curves"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32, help="images a rank")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.001, 0.003, 0.01])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(name="image_folder", root=str(options.folder), validation=0.04), options.seed)
    dist.init_process_group("gloo")
    options.out.mkdir(parents=True, exist_ok=True)
    kept_of = options.out / "options.json"
    wanted = {key: str(value) for key, value in vars(options).items() if key not in ("out", "lrs", "folder")}
    if kept_of.exists() and json.loads(kept_of.read_text()) != wanted:
        parser.error(f"{options.out} holds runs with other options, {kept_of.read_text()}; choose another --out")
    dist.barrier()
    kept_of.write_text(json.dumps(wanted))
    results = []
    for method in METHODS:

        def run(name: str, lr: float, steps: int, method: str = method) -> dict[str, Any]:
            return kept(options.out / f"{method}{name}.json", lambda: train(data, method, lr, steps, options))

        tried = [run(f"_lr{lr:g}_tuning", lr, options.steps // 3) for lr in options.lrs]
        best = max(tried, key=lambda found: found["validation_accuracy"])
        results.append(run("", best["lr"], options.steps))
    if dist.get_rank() == 0:
        report(results, options.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
