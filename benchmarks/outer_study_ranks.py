"""The replicas of the study of outer steps: ranks on this machine, of one thread each, over gloo.

A GPT learns the characters of Shakespeare's plays. All replicas draw the whole batch of a step and each takes its part,
so that every method sees the same tokens in the same steps; the rate rises and falls alike in all.
"""

from __future__ import annotations

import functools
import math
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
from adamw_models import GPT
from adamw_ranks import LOOKS, cross_entropy, evaluate, gloo, rate, total
from adamw_tasks import BLOCK, Examples, texts
from adamw_texts import CHARACTERS, by_character, shakespeare
from outer_study_rows import Row, Run
from outer_study_ways import METHODS, Replica, clip, set_rates

from flare_dist.hook.outer_steps import OuterSteps
from flare_dist.seeding import derive_seed, generator

BATCH = 24  # sequences of a step, of all replicas together
HELD_OUT = 2048  # sequences: half to validate, half to test


def start(pool: ProcessPoolExecutor, run: Run, data: Path, store: Path) -> list[Future[Row]]:
    """Start the replicas of a run; a file that is not there yet brings them together. All return the same row."""
    return [pool.submit(train, run, rank, data, store) for rank in range(run.setting.replicas)]


def train(run: Run, rank: int, data: Path, store: Path) -> Row:
    """Train one run as one of its replicas. Raises ValueError if a setting is refused."""
    with gloo(rank, run.setting.replicas, store):
        return _train(run, rank, data)


def _train(run: Run, rank: int, data: Path) -> Row:
    setting = run.setting
    validation, test = plays(data)
    begun = time.perf_counter()
    torch.manual_seed(derive_seed(run.seed, "model"))
    model = GPT(len(CHARACTERS), BLOCK, setting.width)
    replica = METHODS[setting.method](model, run)
    cpu_begun = time.process_time()
    is_finite = take_steps(replica, run, validation, rank)
    cpu_seconds = total(time.process_time() - cpu_begun)
    losses = [
        evaluate(model, held_out, rank, setting.replicas)[0] if is_finite else math.inf
        for held_out in (validation, test)
    ]
    return Row(
        run,
        parameters=sum(weight.numel() for weight in model.parameters()),
        tokens=setting.steps * BATCH * BLOCK,
        validation_loss=losses[0],
        test_loss=losses[1],
        wire_bytes=replica.exchange.traffic.wire_bytes,
        collectives=replica.exchange.traffic.collectives,
        cpu_seconds=round(cpu_seconds, 1),
        seconds=round(time.perf_counter() - begun, 1),
        torch=torch.__version__.split("+")[0],
    )


def take_steps(replica: Replica, run: Run, examples: Examples, rank: int) -> bool:
    """Train until the last step; False if it diverges before, on all replicas in the same step."""
    steps, replicas = run.setting.steps, run.setting.replicas
    outer = replica.exchange if isinstance(replica.exchange, OuterSteps) else None
    try:
        for step in range(steps):
            lr = run.lr * rate(step, steps)
            set_rates(replica, lr)
            inputs, labels = examples.draw(generator(run.seed, "batch", step), BATCH)
            loss = cross_entropy(replica.model(inputs[rank::replicas]), labels[rank::replicas])
            replica.model.zero_grad()
            loss.backward()
            clip(replica)
            for optimizer in replica.optimizers:
                optimizer.step()
            if outer:
                outer.step(lr)  # of which a pull takes its share
            if step % LOOKS == 0 and not math.isfinite(total(loss.item())):
                return False
        if outer:
            outer.finish()
    except FloatingPointError:
        return False
    return True


@functools.cache
def plays(directory: Path) -> tuple[Examples, Examples]:
    """Read the plays once in a process: with what is held out to validate, and with what is held out to test.

    Both are of the last tenth of the text, the first and the second half of it, which are by other roles.
    """
    examples = texts(by_character(shakespeare(directory)), HELD_OUT)
    inputs, labels = examples.held_out
    half = len(inputs) // 2
    validation = examples._replace(held_out=(inputs[:half], labels[:half]))
    return validation, examples._replace(held_out=(inputs[half:], labels[half:]))
