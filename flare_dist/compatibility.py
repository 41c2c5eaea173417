"""What does not go with what, and why: the table of all refusals of combinations.

`flare-dist compatibility` prints it together with cautions.py, and docs/compatibility.md is what it prints. A new
restriction is one row. Rows see sections of `Config` under their names (`c.clients`), and facts: by_hook (the exchange
is that of every step), is_text (the data are), class_of (the task's labels: example, token, pixel or None), device
(cpu or cuda), zero_stage (of DeepSpeed), sync_batch_norm (the name of such a layer of the model, or None) and ranks.
"""

from __future__ import annotations

from typing import Any

from flare_dist.exclusion import Exclusion

WITHOUT_CLASSES = ("iid", "consecutive", "quantity", "natural")  # partitions that do not look at labels
ZERO_STAGES = {"federated": 2, "centralised": 2, "gradient": 1}  # the largest, by mode
OWN_MEAN = {"feddyn": "FedDyn", "feddc": "FedDC"}  # objectives with a plain mean of their own
CONTROLLED = {"scaffold": "SCAFFOLD", "feddc": "FedDC"}  # those whose second payload is of mean gradients
METHOD = "sparse_training.method"
OBJECTIVE = "clients.objective"
FEEDBACK = "compression.error_feedback"
SENT = (FEEDBACK, "compression.sparsifier", "compression.density")  # whether there is a residual


def _is_masked(c: Any) -> bool:
    return bool(c.sparse_training.is_sparse)


def _has_no_residual(c: Any) -> bool:
    return "residual" not in c.compression.feedback.state_names


def _trains(c: Any, objective: str) -> bool:
    """Tell whether clients have this objective."""
    return c.mode == "federated" and c.clients.objective == objective


def _is_ef21(c: Any) -> bool:
    return c.compression.rule == "ef21" and not c.compression.is_dense


def _is_fednova(c: Any) -> bool:
    return c.mode == "federated" and c.server.aggregator == "fednova"


def _conserves(c: Any) -> bool:
    return c.clients.objective == "flare" and c.clients.flare.conserve


def _looks_at_server_data(c: Any) -> bool:
    return c.sparse_training.traits.is_scored and c.pruning.looks_at_data and c.pruning.data == "server"


# fmt: off
ONE_BATCH = [  # rows of clients.together, as if it were always; auto trains one client after another for these reasons
    Exclusion(("clients.together", "mode"), "mode gradient or centralised", lambda c: c.mode != "federated",
              "only federated training has several clients", "use never"),
    Exclusion(("clients.together", "engine.name"), "engine deepspeed", lambda c: c.engine.name == "deepspeed",
              "an engine of DeepSpeed's trains one client at a time", "use auto or never"),
    Exclusion(("clients.together", "engine.mixed_precision"), "mixed precision",
              lambda c: c.engine.mixed_precision != "no", "mixed precision is for one client at a time",
              "use auto or never"),
    Exclusion(("clients.together", "engine.gradient_accumulation_steps"), "mini-batches in pieces",
              lambda c: c.engine.gradient_accumulation_steps > 1,
              "gradients are accumulated for one client at a time", "use auto or never"),
    Exclusion(("clients.together", OBJECTIVE), "any objective", lambda c: c.clients.objective != "none",
              "an objective is for one client at a time", "use auto or never"),
    Exclusion(("clients.together", "clients.step_ahead"), "step_ahead", lambda c: c.clients.step_ahead > 0,
              "step_ahead starts each client from another model", "use auto or never"),
    Exclusion(("clients.together", METHOD), "masks", _is_masked,
              "masks are those of one client at a time", "use auto or never"),
]


def _only_always(row: Exclusion) -> Exclusion:
    holds = row.holds
    return row._replace(condition=f"together always with {row.condition}",
                        holds=lambda c: c.clients.together == "always" and holds(c))


def _of_own_mean(name: str, title: str) -> list[Exclusion]:
    """Make the rows of an objective that takes a plain mean of its own."""
    return [
        Exclusion((OBJECTIVE, "clients.weighting"), f"{title} with weights by examples",
                  lambda c: c.clients.objective == name and c.clients.weighting != "uniform",
                  f"{name} takes the plain mean of its clients", "set clients.weighting=uniform"),
        Exclusion(("server.aggregator", OBJECTIVE), f"FedNova with {title}",
                  lambda c: _is_fednova(c) and _trains(c, name),
                  f"fednova does not go with {name}, which has a mean of its own", "use mean", ("mode",)),
    ]


def _of_controls(name: str, title: str) -> list[Exclusion]:
    """Make the rows of an objective whose second payload is of mean gradients."""
    return [
        Exclusion((OBJECTIVE, "clients.optimizer", "clients.momentum"), f"{title} with momentum, adam or adamw",
                  lambda c: c.clients.objective == name and (c.clients.optimizer != "sgd" or c.clients.momentum > 0),
                  f"{name}'s controls are mean gradients of plain sgd", "use clients.optimizer=sgd without momentum"),
        Exclusion((OBJECTIVE, FEEDBACK), f"{title} with ef21", lambda c: _trains(c, name) and _is_ef21(c),
                  f"{name}'s controls have no estimates for ef21", "use ec, dgc or none", ("mode",)),
        Exclusion((OBJECTIVE, METHOD), f"{title} with masks", lambda c: _trains(c, name) and _is_masked(c),
                  f"{name}'s controls do not follow masks", "use another, or sparse_training.method=dense", ("mode",)),
    ]


EXCLUSIONS = (
    # Clients
    Exclusion(("clients.smallest_batch", "clients.batch_size"), "a smallest batch above the batch size",
              lambda c: c.clients.smallest > c.clients.batch_size,
              "must be at most clients.batch_size", "choose a smaller one"),
    Exclusion(("clients.per_round", "clients.num"), "more clients per round than clients",
              lambda c: c.clients.per_round is not None and c.clients.per_round > c.clients.num,
              "more clients per round than there are", "choose at most clients.num, or null for all"),
    Exclusion(("clients.momentum", "clients.optimizer"), "local momentum with adam or adamw",
              lambda c: c.clients.momentum > 0 and c.clients.optimizer != "sgd",
              "only sgd has one", "set 0, or use clients.optimizer=sgd"),
    Exclusion(("clients.flare.conserve", "clients.optimizer", "clients.weight_decay", "clients.gradient_clipping"),
              "conserving FLARE without plain sgd",
              lambda c: _conserves(c) and (c.clients.optimizer != "sgd" or c.clients.weight_decay > 0
                                                   or c.clients.gradient_clipping is not None),
              "needs clients.optimizer=sgd without weight decay and clipping", "leave them out, or set false"),
    Exclusion(("clients.flare.conserve", "engine.mixed_precision"), "conserving FLARE with fp16",
              lambda c: c.mode == "federated" and _conserves(c) and c.engine.mixed_precision == "fp16",
              "not with fp16, whose skipped steps it would subtract", "use bf16 or no", ("mode",)),
    Exclusion((OBJECTIVE, *SENT), "FLARE without a residual", lambda c: _trains(c, "flare") and _has_no_residual(c),
              "flare pulls towards the residual, and there is none", "send less, with ec or dgc", ("mode",)),
    Exclusion(("clients.step_ahead", *SENT), "step_ahead without a residual",
              lambda c: c.mode == "federated" and c.clients.step_ahead > 0 and _has_no_residual(c),
              "follows the residual, and there is none", "send less, with ec or dgc", ("mode",)),
    *(row for name, title in OWN_MEAN.items() for row in _of_own_mean(name, title)),
    *(row for name, title in CONTROLLED.items() for row in _of_controls(name, title)),
    # Server
    Exclusion(("server.momentum", "server.optimizer"), "server momentum with an optimizer without one",
              lambda c: bool(c.server.momentum) and not c.server.takes_momentum,
              "this optimizer has none", "leave it out, or use sgd, fedavgm or rmsprop"),
    Exclusion(("server.betas", "server.optimizer"), "server betas with an optimizer without moments",
              lambda c: c.server.betas is not None and not c.server.takes_betas,
              "this optimizer has none", "leave them out"),
    Exclusion(("server.aggregator", "clients.optimizer"), "FedNova with adam or adamw",
              lambda c: _is_fednova(c) and c.clients.optimizer != "sgd", "fednova counts steps of sgd",
              "use clients.optimizer=sgd", ("mode",)),
    Exclusion(("server.aggregator", METHOD), "FedNova with masks", lambda c: _is_fednova(c) and _is_masked(c),
              "fednova does not go with sparse models, which have a mean of their own", "use mean", ("mode",)),
    # Compression
    Exclusion(("compression.dense_below", "compression.scope"), "whole small tensors with scope block or global",
              lambda c: c.compression.dense_below > 0 and c.compression.scope != "tensor",
              "needs compression.scope=tensor", "set it, or 0"),
    Exclusion(("compression.residual_decay", FEEDBACK), "residual_decay without ec",
              lambda c: c.compression.residual_decay != 1 and c.compression.rule != "ec",
              "only ec has one", "leave it out, or use ec"),
    Exclusion(("compression.momentum", FEEDBACK), "compression.momentum without dgc",
              lambda c: c.compression.momentum is not None and c.compression.rule != "dgc",
              "only dgc has one", "leave it out, or use dgc"),
    Exclusion(("compression.warmup", "compression.sparsifier", "compression.density"), "warm-up of dense updates",
              lambda c: bool(c.compression.warmup) and c.compression.sends_everything,
              "leads to a density below 1, not to dense updates", "leave it out"),
    # The exchange in every step
    Exclusion(("compression.scope",), "scope global, in steps", lambda c: c.by_hook and c.compression.scope == "global",
              "global would let DDP's bucket sizes decide what is sent", "use tensor or block", ("by_hook",)),
    Exclusion(("compression.sparsifier",), "sparsifier threshold, in steps",
              lambda c: c.by_hook and c.compression.sparsifier == "threshold",
              "threshold sends too little to know how much", "use topk", ("by_hook",)),
    Exclusion(("compression.downlink",), "a compressed downlink, in steps",
              lambda c: c.by_hook and c.compression.downlink != "dense",
              "needs a server, and here ranks take every step themselves", "use dense", ("by_hook",)),
    Exclusion(("compression.value_block",), "value blocks, in steps",
              lambda c: c.by_hook and c.compression.value_block > 0,
              "every tensor has a table of its own here, so that unused ones send 0", "use 0", ("by_hook",)),
    Exclusion((FEEDBACK,), "ef21, in steps", lambda c: c.by_hook and c.compression.rule == "ef21",
              "ef21 needs a server that keeps the estimates", "use ec or dgc", ("by_hook",)),
    Exclusion(("gradients.hook", "engine.name"), "PyTorch's hooks with DeepSpeed",
              lambda c: c.mode == "gradient" and c.gradients.hook != "sparse" and c.engine.name != "accelerate",
              "needs engine.name=accelerate, whose DDP has it", "use sparse, or engine.name=accelerate", ("mode",)),
    # Sparse models
    Exclusion((METHOD, "mode"), "masks in mode gradient or centralised",
              lambda c: _is_masked(c) and c.mode != "federated",
              "masks are those of federated clients", "use dense, or mode=federated"),
    Exclusion((FEEDBACK, METHOD), "ef21 with masks", lambda c: _is_masked(c) and _is_ef21(c),
              "ef21's estimates do not follow masks", "use ec, dgc or none"),
    Exclusion(("compression.downlink", METHOD), "a compressed downlink with masks",
              lambda c: _is_masked(c) and c.compression.downlink != "dense",
              "active weights of a mask are sent in float32", "use dense"),
    Exclusion(("sparse_training.hetero", METHOD), "budgets without a first stage",
              lambda c: bool(c.sparse_training.hetero) and not c.sparse_training.traits.has_stage_one,
              "needs spdst or jmwst", "use one of them, or no budgets"),
    Exclusion(("pruning.data", "data.validation", METHOD), "scores by the server's data, and none are held out",
              lambda c: _looks_at_server_data(c) and not c.data.validation,
              "the server has examples only if data.validation holds some out", "set it, or use clients"),
    # How clients are run
    *map(_only_always, ONE_BATCH),
    Exclusion(("engine.mixed_precision", "device"), "fp16 on a CPU",
              lambda c: c.engine.mixed_precision == "fp16" and c.device == "cpu",
              "fp16 needs a GPU (on a CPU it would do nothing)", "use bf16, which works on both"),
    Exclusion(("engine.deepspeed_config", "zero_stage", "mode"), "a ZeRO stage above 2, or above 1 in mode gradient",
              lambda c: c.zero_stage not in range(ZERO_STAGES[c.mode] + 1),
              "zero_optimization.stage shards the weights, or leaves no whole gradient to select from",
              "use 0 to 2, in mode gradient 0 or 1"),
    Exclusion(("engine.deepspeed_config", "zero_stage", "engine.mixed_precision"), "fp16 at ZeRO stage 0",
              lambda c: c.zero_stage == 0 and c.engine.mixed_precision == "fp16",
              "fp16 needs zero_optimization.stage 1; at 0 DeepSpeed scales no loss", "set it to 1"),
    # Data and models
    Exclusion(("data.augment", "data.name"), "augmentation of text", lambda c: c.is_text and c.data.augment != "none",
              "is for images, and these data are text", "use none", ("is_text",)),
    Exclusion(("data.partition", "data.name", "class_of"), "a partition by classes, of examples without one class each",
              lambda c: c.class_of != "example" and c.data.partition not in WITHOUT_CLASSES,
              "goes by the class of each example, and these labels are other ones",
              f"choose from {', '.join(WITHOUT_CLASSES)}"),
    Exclusion(("model.name", "sync_batch_norm", "mode"), "SyncBatchNorm if ranks train by themselves",
              lambda c: c.sync_batch_norm is not None
              and (c.mode == "federated" or (c.mode == "centralised" and c.ranks > 1)),
              "SyncBatchNorm averages over all ranks, and here each trains by itself", "use BatchNorm", ("ranks",)),
    Exclusion(("model.name", "sync_batch_norm", "engine.device"), "SyncBatchNorm on a CPU",
              lambda c: c.sync_batch_norm is not None and c.engine.device == "cpu",
              "SyncBatchNorm works on GPUs only", "use BatchNorm"),
)
