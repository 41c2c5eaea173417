"""Refuse options that do not go together: the table of all refusals of combinations, with their reasons.

`flare-dist compatibility` prints it together with cautions.py as docs/reference/compatibility.md. A new restriction is
one row; those of a method stand in its file under algorithms/. Rows read sections of `Config` by name
(`c.clients`), and facts:

by_hook            the exchange is that of every optimizer step
is_text            the data are text
is_dataset         the data are a user's own Dataset
class_of           the owner of a class by the task: example, token, pixel, or None
num_clients        the number of clients among which the data are divided
device             cpu or cuda
zero_stage         the stage of DeepSpeed's ZeRO
weights            the lowest precision of the weights that are trained: float32 or bfloat16
sync_batch_norm    the name of a SyncBatchNorm layer of the model, or None
ranks              the number of ranks
test_groups        the number of groups in the test set
"""

from __future__ import annotations

from flare_dist.algorithms.excludes import FEEDBACK, METHOD
from flare_dist.algorithms.methods import EXCLUDES as METHODS_EXCLUDE
from flare_dist.conditions import (
    has_no_residual,
    is_ef21,
    is_masked,
    preconditions,
    scores_on_server_data,
)
from flare_dist.exclusion import Exclusion
from flare_dist.exclusions_one_batch import ONE_BATCH, only_always
from flare_dist.exclusions_optimizers import CLIENT_OPTIMIZERS, SERVER_OPTIMIZERS
from flare_dist.exclusions_shards import SHARDS

BY_CLASS = ("dirichlet", "dirichlet_unbalanced", "shards")  # partitions that look at the class of each example
WITHOUT_CLASSES = ("iid", "consecutive", "quantity", "natural")
ZERO_STAGES = {"federated": 2, "centralised": 2, "gradient": 1}  # the largest, by mode; of one rank a host
PRECONDITIONER = "gradients.preconditioner"
SENT = (FEEDBACK, "compression.sparsifier", "compression.density")  # whether there is a residual


# fmt: off
EXCLUSIONS = (
    # Clients
    Exclusion(("clients.smallest_batch", "clients.batch_size"), "a smallest batch above the batch size",
              lambda c: c.clients.smallest > c.clients.batch_size,
              "must be at most clients.batch_size", "choose a smaller one"),
    Exclusion(("clients.per_round", "clients.num"), "more clients per round than clients",
              lambda c: c.clients.per_round is not None and c.clients.num != "auto"
              and c.clients.per_round > c.clients.num,
              "more clients per round than there are", "choose at most clients.num, or null for all"),
    *CLIENT_OPTIMIZERS,
    Exclusion(("clients.step_ahead", *SENT), "step_ahead without a residual",
              lambda c: c.mode == "federated" and c.clients.step_ahead > 0 and has_no_residual(c),
              "step_ahead follows the residual, and there is none", "send less, with ec or dgc", ("mode",)),
    *METHODS_EXCLUDE,
    # Server
    *SERVER_OPTIMIZERS,
    # Compression
    Exclusion(("compression.dense_below", "compression.scope"), "whole small tensors with a scope other than tensor",
              lambda c: c.compression.dense_below > 0 and c.compression.scope != "tensor",
              "needs compression.scope=tensor", "set it, or 0"),
    Exclusion(("compression.residual_decay", FEEDBACK), "residual_decay without ec",
              lambda c: c.compression.residual_decay != 1 and c.compression.rule != "ec",
              "only ec decays its residual", "leave it out, or use ec"),
    Exclusion(("compression.momentum", FEEDBACK), "compression.momentum without dgc",
              lambda c: c.compression.momentum is not None and c.compression.rule != "dgc",
              "only dgc takes momentum", "leave it out, or use dgc"),
    Exclusion(("compression.warmup", "compression.sparsifier", "compression.density"), "warm-up of dense updates",
              lambda c: bool(c.compression.warmup) and c.compression.sends_everything,
              "a warm-up leads to a density below 1, and here every update is dense", "leave it out"),
    # The exchange in every step
    Exclusion(("compression.scope",), "scope global, in steps", lambda c: c.by_hook and c.compression.scope == "global",
              "global would let DDP's bucket sizes decide what is sent", "use tensor, block or row", ("by_hook",)),
    Exclusion(("compression.sparsifier",), "sparsifier threshold, in steps",
              lambda c: c.by_hook and c.compression.sparsifier == "threshold",
              "the size of what threshold sends is not known in advance", "use topk", ("by_hook",)),
    Exclusion(("compression.downlink",), "a compressed downlink, in steps",
              lambda c: c.by_hook and c.compression.downlink != "dense",
              "in steps there is no server that sends, ranks take every step themselves", "use dense", ("by_hook",)),
    Exclusion(("compression.value_block",), "value blocks, in steps",
              lambda c: c.by_hook and c.compression.value_block > 0,
              "in steps every tensor has a table of its own, so that unused ones send zeros", "use 0", ("by_hook",)),
    Exclusion((FEEDBACK,), "ef21, in steps", lambda c: c.by_hook and c.compression.rule == "ef21",
              "ef21 needs a server that keeps the estimates", "use ec or dgc", ("by_hook",)),
    Exclusion((PRECONDITIONER, FEEDBACK), "a preconditioner with dgc",
              lambda c: c.by_hook and c.gradients.preconditioner != "none" and c.compression.rule == "dgc",
              "dgc's momentum comes on top of the residual's, and costs most of the loss", "use ec", ("by_hook",)),
    Exclusion((PRECONDITIONER, "gradients.clip_norm"), "a preconditioner with clip_norm",
              lambda c: c.by_hook and c.gradients.preconditioner != "none" and c.gradients.clip_norm is not None,
              "its update has the same size whatever the gradient's norm",
              "leave it out; gradients.update_clip bounds every entry", ("by_hook",)),
    Exclusion(("gradients.clip_norm", "gradients.hook"), "clip_norm with PyTorch's hooks",
              lambda c: c.mode == "gradient" and c.gradients.clip_norm is not None and c.gradients.hook != "sparse",
              "these hooks exchange gradients as they are", "use clients.gradient_clipping, or gradients.hook=sparse",
              ("mode",)),
    Exclusion(("gradients.clip_norm", "engine.deepspeed_config", "zero_stage"), "clip_norm at ZeRO stage 1",
              lambda c: c.mode == "gradient" and c.gradients.clip_norm is not None and c.zero_stage == 1,
              "stage 1 takes the mean of each bucket at once, before the norm of all is known",
              "use stage 0, or leave it out", ("mode",)),
    Exclusion((PRECONDITIONER, "gradients.hook"), "a preconditioner with PyTorch's hooks",
              lambda c: preconditions(c) and c.gradients.hook != "sparse",
              "these hooks exchange gradients as they are", "use none, or gradients.hook=sparse", ("mode",)),
    Exclusion((PRECONDITIONER, "clients.optimizer"), "a preconditioner with adam or adamw outside",
              lambda c: preconditions(c) and c.clients.optimizer != "sgd",
              "the update is Adam's already", "use clients.optimizer=sgd; its weight_decay is AdamW's", ("mode",)),
    Exclusion((PRECONDITIONER, "clients.momentum"), "a preconditioner with momentum outside",
              lambda c: preconditions(c) and c.clients.momentum > 0,
              "what waits in the residual acts as momentum", "use clients.momentum=0", ("mode",)),
    Exclusion((PRECONDITIONER, "clients.gradient_clipping"), "a preconditioner with clipping by the norm",
              lambda c: preconditions(c) and c.clients.gradient_clipping is not None,
              "the norm is that of a mean of updates, and clipping it stops learning",
              "leave it out; gradients.update_clip bounds every entry", ("mode",)),
    Exclusion((PRECONDITIONER, "engine.name", "engine.mixed_precision"), "a preconditioner with DeepSpeed's fp16",
              lambda c: preconditions(c) and c.engine.name == "deepspeed" and c.engine.mixed_precision == "fp16",
              "updates times the loss scale are too large for float16", "use bf16", ("mode",)),
    Exclusion(("gradients.hook", "engine.name"), "PyTorch's hooks with DeepSpeed",
              lambda c: c.mode == "gradient" and c.gradients.hook != "sparse" and c.engine.name != "accelerate",
              "needs engine.name=accelerate, whose DDP has it", "use sparse, or engine.name=accelerate", ("mode",)),
    # Sparse models
    Exclusion((METHOD, "mode"), "masks in mode gradient or centralised",
              lambda c: is_masked(c) and c.mode != "federated",
              "only federated clients train with masks", "use dense, or mode=federated"),
    Exclusion(("compression.scope", METHOD), "scope row with masks",
              lambda c: is_masked(c) and c.compression.scope == "row",
              "the active weights of a tensor lie in one vector without rows", "use tensor, block or global"),
    Exclusion((FEEDBACK, METHOD), "ef21 with masks", lambda c: is_masked(c) and is_ef21(c),
              "ef21's estimates do not follow masks", "use ec, dgc or none"),
    Exclusion(("compression.downlink", METHOD), "a compressed downlink with masks",
              lambda c: is_masked(c) and c.compression.downlink != "dense",
              "active weights of a mask are sent in float32", "use dense"),
    Exclusion(("sparse_training.hetero", METHOD), "budgets without a first stage",
              lambda c: bool(c.sparse_training.hetero) and not c.sparse_training.traits.has_stage_one,
              "needs spdst or jmwst", "use one of them, or no budgets"),
    Exclusion(("pruning.data", "data.validation", METHOD), "scores by the server's data, and none are held out",
              lambda c: scores_on_server_data(c) and not c.data.validation,
              "the server has examples only if data.validation holds some out", "set it, or use clients"),
    # How clients are run
    *map(only_always, ONE_BATCH),
    *SHARDS,
    Exclusion(("engine.mixed_precision", "device"), "fp16 on a CPU",
              lambda c: c.engine.mixed_precision == "fp16" and c.device == "cpu",
              "fp16 needs a GPU (on a CPU it would do nothing)", "use bf16, which works on both"),
    Exclusion(("engine.deepspeed_config", "zero_stage", "mode"),
              "a ZeRO stage above 2 with one rank a host, or above 1 in mode gradient",
              lambda c: c.engine.shards == 1 and c.zero_stage not in range(ZERO_STAGES[c.mode] + 1),
              "this zero_optimization.stage shards the weights, or leaves no whole gradient to select from",
              "use 0 to 2, in mode gradient 0 or 1, or more engine.shards"),
    Exclusion(("engine.deepspeed_config", "zero_stage", "engine.mixed_precision"), "fp16 at ZeRO stage 0",
              lambda c: c.zero_stage == 0 and c.engine.mixed_precision == "fp16",
              "fp16 needs zero_optimization.stage 1; at 0 DeepSpeed scales no loss", "set it to 1"),
    # Evaluation
    Exclusion(("evaluation.client_holdout", "mode"), "what clients hold out in mode gradient or centralised",
              lambda c: c.evaluation.client_holdout > 0 and c.mode != "federated",
              "only federated training has clients", "use 0, or mode=federated"),
    Exclusion(("evaluation.by_group", "test_groups"), "a test set without groups",
              lambda c: c.evaluation.by_group and not c.test_groups,
              "the test set has no groups", "give it some, or set false"),
    # Data and models
    Exclusion(("data.augment", "data.name"), "augmentation of text", lambda c: c.is_text and c.data.augment != "none",
              "augmentation is for images, and these data are text", "use none", ("is_text",)),
    Exclusion(("data.augment", "is_dataset"), "augmentation of a user's own Dataset",
              lambda c: c.is_dataset and c.data.augment != "none",
              "a Dataset is taken as it is", "use none, and the Dataset's own transforms", ("is_text",)),
    Exclusion(("data.partition", "data.name", "class_of"), "a partition by classes, of examples without one class each",
              lambda c: c.class_of != "example" and c.data.partition in BY_CLASS,
              "this partition divides by the class of each example, and these labels are other ones",
              f"choose from {', '.join(WITHOUT_CLASSES)}"),
    Exclusion(("model.name", "sync_batch_norm", "mode"), "SyncBatchNorm if ranks train by themselves",
              lambda c: c.sync_batch_norm is not None
              and (c.mode == "federated" or (c.mode == "centralised" and c.ranks > 1)),
              "SyncBatchNorm averages over all ranks, and here each trains by itself", "use BatchNorm", ("ranks",)),
    Exclusion(("model.name", "weights", "mode"), "weights of bfloat16 in mode gradient",
              lambda c: c.weights != "float32" and c.mode == "gradient",
              "the hook exchanges gradients of float32", "build it in float32, with engine.mixed_precision=bf16"),
    Exclusion(("model.name", "weights", "engine.name"), "weights of bfloat16 with DeepSpeed",
              lambda c: c.weights != "float32" and c.engine.name == "deepspeed",
              "DeepSpeed rounds the weights by itself", "build it in float32, with engine.mixed_precision=bf16"),
    Exclusion(("model.name", "sync_batch_norm", "engine.device"), "SyncBatchNorm on a CPU",
              lambda c: c.sync_batch_norm is not None and c.engine.device == "cpu",
              "SyncBatchNorm works on GPUs only", "use BatchNorm"),
)
