"""Refuse what does not go with hosts of several ranks: the rows of compatibility.py about engine.shards."""

from __future__ import annotations

from typing import Any

from flare_dist.algorithms.excludes import METHOD
from flare_dist.conditions import is_masked, steps_by_name
from flare_dist.exclusion import Exclusion


def _is_sharded(c: Any) -> bool:
    return bool(c.engine.name == "fsdp")


# fmt: off
SHARDS = [
    Exclusion(("engine.shards", "engine.name"), "several ranks a host without fsdp",
              lambda c: c.engine.shards > 1 and not _is_sharded(c),
              "only FSDP2 divides a client's model among ranks", "use engine.name=fsdp, or 1"),
    Exclusion(("engine.shards", "ranks"), "ranks that do not make up whole hosts",
              lambda c: c.ranks % c.engine.shards != 0,
              "the number of ranks must be a multiple of it", "start so many, or choose a divisor"),
    Exclusion(("engine.shards", "clients.batch_size"), "batches that cannot be divided among the ranks of a host",
              lambda c: c.clients.batch_size % c.engine.shards != 0,
              "clients.batch_size must be a multiple of it", "choose one"),
    Exclusion(("engine.name", "mode"), "fsdp in mode gradient or centralised",
              lambda c: _is_sharded(c) and c.mode != "federated",
              "only federated clients have hosts; flare_dist.attach(model, mesh=...) is for steps",
              "use accelerate or mode=federated"),
    Exclusion(("engine.name", "engine.shards"), "fsdp with one rank a host",
              lambda c: _is_sharded(c) and c.engine.shards == 1,
              "divides a client's model among the ranks of a host", "use more engine.shards, or accelerate"),
    Exclusion(("engine.name", METHOD), "fsdp with masks", lambda c: _is_sharded(c) and is_masked(c),
              "masks are chosen of whole weights, and here each rank holds rows", "use accelerate, or dense"),
    Exclusion(("engine.name", "clients.optimizer"), "an optimizer of your own, or muon, with fsdp",
              lambda c: _is_sharded(c) and steps_by_name(c),
              "the step is of one flat vector of rows, without names", "use sgd, adam or adamw, or accelerate"),
    Exclusion(("engine.name", "clients.state_dir"), "memory in files with fsdp",
              lambda c: _is_sharded(c) and c.clients.state_dir is not None,
              "files hold whole vectors, and here each rank holds rows", "leave it out, or use accelerate"),
    Exclusion(("engine.name", "engine.mixed_precision"), "fp16 with fsdp",
              lambda c: _is_sharded(c) and c.engine.mixed_precision == "fp16",
              "a loss scale would be of one rank alone", "use bf16 or no"),
    Exclusion(("engine.name", "engine.gradient_accumulation_steps"), "mini-batches in pieces with fsdp",
              lambda c: _is_sharded(c) and c.engine.gradient_accumulation_steps > 1,
              "the ranks of a host divide each batch already", "use 1, and more shards"),
    Exclusion(("engine.name", "weights"), "weights of bfloat16 with fsdp",
              lambda c: _is_sharded(c) and c.weights != "float32",
              "fsdp keeps float32 weights and computes in bf16",
              "build it in float32, with engine.mixed_precision=bf16"),
]
