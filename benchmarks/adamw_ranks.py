"""The ranks of the AdamW study: processes on this machine that train one run after another over gloo."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from adamw_rows import Row, Run
from adamw_tasks import TASKS, Examples, examples_of
from adamw_ways import WAYS, hook_settings
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.seeding import derive_seed, generator

WARM_UP = 0.1  # of all steps, in which the rate rises
LAST_RATE = 0.1  # of the highest, at the end of the cosine
LOOKS = 20  # steps from one look for divergence to the next


@contextmanager
def rank_processes(most: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes, which end with the block, or with this process if it is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed", "flare_dist.engines.attach"])
    pool = ProcessPoolExecutor(most, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # they may be waiting for each other
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and so all
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def start(pool: ProcessPoolExecutor, run: Run, data: Path, store: Path) -> list[Future[Row]]:
    """Start the ranks of a run; a file that is not there yet brings them together. All return the same row."""
    return [pool.submit(train, run, rank, data, store) for rank in range(run.setting.ranks)]


def train(run: Run, rank: int, data: Path, store: Path) -> Row:
    """Train one run as one of its ranks. Raises ValueError if the hook refuses the setting."""
    with gloo(rank, run.setting.ranks, store):
        return _train(run, rank, data)


@contextmanager
def gloo(rank: int, ranks: int, store: Path) -> Iterator[None]:
    """Be one of some ranks of one thread each as long as the block runs."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=ranks, timeout=timedelta(minutes=10)
    )
    try:
        yield
    finally:
        gc.collect()  # hooks hold collectives, which a group must outlive
        dist.destroy_process_group()


def _train(run: Run, rank: int, data: Path) -> Row:
    setting = run.setting
    task, way = TASKS[setting.task], WAYS[setting.way]
    examples = examples_of(setting.task, data)
    torch.manual_seed(derive_seed(run.seed, "model"))
    model = DistributedDataParallel(task.model(data))
    betas = (setting.beta1, setting.beta2)
    hook = way.exchange(model, hook_settings(setting), betas)
    optimizer = way.optimizer(model, run.lr, betas)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    for step in range(setting.steps):
        for group in optimizer.param_groups:
            group["lr"] = run.lr * rate(step, setting.steps)
        inputs, labels = examples.draw(generator(run.seed, "batch", step), task.batch)
        loss = cross_entropy(model(inputs[rank :: setting.ranks]), labels[rank :: setting.ranks])
        optimizer.zero_grad()
        loss.backward()
        if math.isfinite(way.clip):
            nn.utils.clip_grad_norm_(model.parameters(), way.clip)
        optimizer.step()
        if step % LOOKS == 0 and not math.isfinite(total(loss.item())):
            break
    held_out_loss, accuracy = evaluate(model.module, examples, rank, setting.ranks)
    wire_bytes = round(hook.traffic.wire_bytes / (step + 1), 1)
    seconds = round(time.perf_counter() - begun, 1)
    cpu_seconds = round(total(time.process_time() - cpu_begun), 1)
    return Row(run, held_out_loss, accuracy, wire_bytes, seconds, cpu_seconds, torch.__version__.split("+")[0])


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a part of the highest: linear up, then half a cosine to a tenth."""
    warm_up = WARM_UP * steps
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = (step - warm_up) / (steps - warm_up)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2


def cross_entropy(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Compute the loss of scores whose last dimension is the classes."""
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction=reduction)


def total(number: float) -> float:
    """Add up one number of each rank."""
    numbers = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(numbers)
    return numbers.item()


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, rank: int, ranks: int, batch: int = 64) -> tuple[float, float]:
    """Compute loss (inf if it is not finite) and accuracy on what was held out; each rank looks at its part."""
    model.eval()
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    totals = torch.zeros(3, dtype=torch.float64)
    inputs, labels = (part[rank::ranks].split(batch) for part in examples.held_out)
    for some_inputs, some_labels in zip(inputs, labels):
        outputs = model(some_inputs)
        right = (outputs.argmax(-1) == some_labels).sum()
        loss = cross_entropy(outputs, some_labels, "sum")
        totals += torch.tensor([loss, right, some_labels.numel()], dtype=torch.float64)
    dist.all_reduce(totals)
    loss_sum, right_sum, count = totals.tolist()
    mean = round(loss_sum / count, 6) if math.isfinite(loss_sum) else math.inf
    return mean, round(right_sum / count, 6)
