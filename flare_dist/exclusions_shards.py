"""Refuse what does not go with hosts of several ranks: the rows of compatibility.py about engine.shards."""

from __future__ import annotations

from typing import Any

from flare_dist.algorithms.excludes import METHOD
from flare_dist.conditions import steps_by_name
from flare_dist.exclusion import Exclusion

ZERO_STAGES_OF_HOSTS = (1, 2, 3)  # of several ranks
SCOPES = "tensor, block or global"


def _is_fsdp(c: Any) -> bool:
    return bool(c.engine.name == "fsdp")


def _has_shards(c: Any) -> bool:
    return _is_fsdp(c) or bool(c.engine.shards > 1)


def _is_zero(c: Any) -> bool:
    """Tell whether ZeRO divides a client's model among the ranks of a host."""
    return bool(c.engine.name == "deepspeed" and c.engine.shards > 1)


# fmt: off
SHARDS = [
    Exclusion(("engine.shards", "engine.name"), "several ranks a host with accelerate",
              lambda c: c.engine.shards > 1 and c.engine.name == "accelerate",
              "only FSDP2 and DeepSpeed's ZeRO divide a client's model among ranks", "use fsdp, deepspeed or 1"),
    Exclusion(("engine.shards", "ranks"), "ranks that do not make up whole hosts",
              lambda c: c.ranks % c.engine.shards != 0,
              "the number of ranks must be a multiple of it", "start so many, or choose a divisor"),
    Exclusion(("engine.shards", "clients.batch_size"), "batches that cannot be divided among the ranks of a host",
              lambda c: c.clients.batch_size % c.engine.shards != 0,
              "clients.batch_size must be a multiple of it", "choose one"),
    Exclusion(("engine.name", "engine.shards", "mode"), "several ranks a host in mode gradient or centralised",
              lambda c: _has_shards(c) and c.mode != "federated",
              "only federated clients have hosts; flare_dist.attach(model, mesh=...) is for steps",
              "use one rank a host, or mode=federated"),
    Exclusion(("engine.name", "engine.shards"), "fsdp with one rank a host",
              lambda c: _is_fsdp(c) and c.engine.shards == 1,
              "divides a client's model among the ranks of a host", "use more engine.shards, or accelerate"),
    Exclusion(("compression.scope", "engine.name", "engine.shards"), "scope row with the slices of ZeRO",
              lambda c: _is_zero(c) and c.compression.scope == "row",
              "ZeRO cuts rows in pieces", f"use engine.name=fsdp, or {SCOPES}"),
    Exclusion(("pruning.criterion", "engine.shards", METHOD), "grasp with several ranks a host",
              lambda c: _has_shards(c) and c.sparse_training.traits.is_scored and c.pruning.criterion == "grasp",
              "needs the Hessian, and gradients of a divided model cannot be differentiated again",
              "choose another, or 1"),
    Exclusion(("engine.shards", "clients.optimizer"), "an optimizer of your own, or muon, with several ranks a host",
              lambda c: _has_shards(c) and steps_by_name(c),
              "the step is of flat vectors of parts, without names", "use sgd, adam or adamw, or 1"),
    Exclusion(("engine.shards", "clients.state_dir"), "memory in files with several ranks a host",
              lambda c: _has_shards(c) and c.clients.state_dir is not None,
              "files hold whole vectors, and here each rank holds a part", "leave it out, or use 1"),
    Exclusion(("engine.shards", "engine.mixed_precision"), "fp16 with several ranks a host",
              lambda c: _has_shards(c) and c.engine.mixed_precision == "fp16",
              "a loss scale would be of one rank alone", "use bf16 or no"),
    Exclusion(("engine.shards", "engine.gradient_accumulation_steps"), "batches in pieces with several ranks a host",
              lambda c: _has_shards(c) and c.engine.gradient_accumulation_steps > 1,
              "the ranks of a host divide each batch already", "use 1, and more shards"),
    Exclusion(("engine.name", "weights"), "weights of bfloat16 with fsdp",
              lambda c: _is_fsdp(c) and c.weights != "float32",
              "fsdp keeps float32 weights and computes in bf16",
              "build it in float32, with engine.mixed_precision=bf16"),
    Exclusion(("engine.deepspeed_config", "zero_stage", "engine.shards"), "a ZeRO stage that does not divide the model",
              lambda c: _is_zero(c) and c.zero_stage not in ZERO_STAGES_OF_HOSTS,
              "zero_optimization.stage must divide the model among the ranks of a host", "use 1, 2 or 3"),
]
