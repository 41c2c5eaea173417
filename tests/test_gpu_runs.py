"""Whole runs on a GPU give what they give on a CPU, and a step of mode gradient waits for nothing there.

The GPU is pretended (pretend_gpu/).
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from tests.pretend_gpu.runs import play, play_on_gpu

BASE = [
    *("--data.name", "synthetic", "--data.synthetic.examples", "120", "--data.synthetic.test_examples", "24"),
    *("--data.synthetic.shape", "[1,8,8]", "--data.synthetic.classes", "4", "--clients.num", "6"),
    *("--clients.per_round", "3", "--clients.batch_size", "16", "--clients.lr", "0.05", "--rounds", "2"),
    *("--model.name", "2nn", "--checkpoint.every", "2"),
]
CNN = ["--data.synthetic.shape", "[3,32,32]", "--model.name", "resnet8", "--data.synthetic.examples", "48"]
MASKS = [*CNN, "--compression.sparsifier", "dense", "--sparse_training.density", "0.2"]
STEPS = ["--mode", "gradient", "--eval_every", "3", "--clients.batch_size", "8"]
RUNS = {
    "top-k": [],
    "one after another": ["--clients.together", "never"],
    "dense": ["--compression.sparsifier", "dense"],
    "int8 without feedback": ["--compression.value_codec", "int8", "--compression.error_feedback", "none"],
    "ef21": ["--compression.error_feedback", "ef21"],
    "compressed downlink": ["--compression.downlink", "topk"],
    "flare": ["--clients.objective", "flare"],
    "scaffold": ["--clients.objective", "scaffold"],
    "fedadam": ["--server.optimizer", "fedadam", "--server.lr", "0.01"],
    "bf16": ["--engine.mixed_precision", "bf16"],
    "flash": [*MASKS, "--clients.per_round", "2", "--sparse_training.method", "jmwst"],
    "snip": [*MASKS, "--sparse_training.method", "pruned"],
    "gradient": STEPS,
    "gradient by updates": [*STEPS, "--gradients.preconditioner", "adam"],
}
ALIKE = ("train_loss", "test_loss", "test_accuracy", "uplink_bytes", "downlink_bytes", "kept", "active_weights")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_that_of_a_cpu(name: str, tmp_path: Path) -> None:
    arguments = [*BASE, *RUNS[name]]
    expected = play(arguments, "cpu", tmp_path / "cpu")
    found, did, hazards = play_on_gpu(arguments, tmp_path / "gpu")
    assert did.launches.total() > 100
    assert not hazards
    for one, other in zip(expected, found, strict=True):
        for key in ALIKE:
            assert (key in one) == (key in other)
            if key in one:
                assert math.isclose(one[key], other[key], rel_tol=1e-4, abs_tol=1e-4), key


@pytest.mark.parametrize(
    ("name", "each_step"),
    [([], 0), (["--data.augment", "crop_flip"], 0), (["--engine.mixed_precision", "fp16"], 1)],
    ids=["plain", "augmented", "fp16"],
)
def test_a_step_waits_for_nothing(name: list[str], each_step: int, tmp_path: Path) -> None:
    """But with fp16 for the loss scale, which is asked for; counted between rounds of 2 and 6 steps."""
    waits: list[Counter[tuple[str, str]]] = []
    for steps in ("2", "6"):
        arguments = [*BASE, *STEPS, *name, "--rounds", "1", "--eval_every", steps]
        found = play_on_gpu(arguments, tmp_path / steps)[1].waits
        waits.append(Counter({at: count for at, count in found.items() if not at[1].startswith("records/")}))
    assert waits[1].total() - waits[0].total() == 4 * each_step, waits[1] - waits[0]
