"""One rank of benchmarks/hosts.py: train a configuration, and measure how much memory that takes.

Memory is what the process holds beyond its imports (resident, as Linux counts it): at most while rounds are played,
and between them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  imported before memory is counted, as everything that a run imports later
import peft  # noqa: F401
import torch
from transformers import BertForSequenceClassification  # noqa: F401

import flare_dist
from flare_dist.config.load import load_config
from flare_dist.engines import accelerate, fsdp  # noqa: F401
from flare_dist.run import trainer

Play = Callable[..., dict[str, Any]]


class Memory:
    """How much this process has grown since it was made, in bytes."""

    def __init__(self) -> None:
        self.before = _status("VmRSS")
        self.state = 0  # between rounds
        self.peak = 0  # during rounds

    def watched(self, play: Play) -> Play:
        """Return a round that notes its memory."""

        def watched(*arguments: Any) -> dict[str, Any]:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            row = play(*arguments)
            self.peak = max(self.peak, _status("VmHWM") - self.before)
            self.state = max(self.state, _status("VmRSS") - self.before)
            return row

        return watched


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux counts it"
    return int(found.group(1)) * 1024


def main() -> None:
    directory = Path(sys.argv[1])
    plan = json.loads((directory / "plan.json").read_text())
    torch.set_num_threads(1)
    memory = Memory()
    trainer.ROUNDS["federated"] = memory.watched(trainer.ROUNDS["federated"])
    done = flare_dist.train(load_config(*plan["layers"]), **plan["values"])
    found = {"state_bytes": memory.state, "peak_bytes": memory.peak, **_losses(done)}
    (directory / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


def _losses(done: Any) -> dict[str, Any]:
    names = ("test_loss", "test_accuracy", "uplink_bytes")
    return {name: done.summary[name] for name in names} | {"train_loss": done.metrics[-1]["train_loss"]}


if __name__ == "__main__":
    main()
