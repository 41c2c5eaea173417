"""Exchange gradients sparsely inside a DeepSpeed engine, which has no hook of its own (DeepSpeed#886).

At ZeRO stage 0 DeepSpeed averages all gradients after backward, in `buffered_allreduce_fallback`; at stage 1 bucket by
bucket in the optimizer's `average_tensor`. Both are replaced on the engine, and nothing else: accumulation, clipping,
the loss scale and its skipped steps stay DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import proxy

import torch
from torch import Tensor, nn

from flare_dist.compression.payload import check_positions
from flare_dist.hook.checks import refuse_sparse_gradients
from flare_dist.hook.clipping import Bucket, clip
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.scale import EngineScale, scale_of
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.updates import Unapplied


class Engine(Protocol):
    """List what the hook reads and replaces of a DeepSpeed engine."""

    module: nn.Module
    optimizer: Any
    data_parallel_group: Any
    global_steps: int
    has_moe_layers: bool
    pipeline_parallelism: bool
    buffered_allreduce_fallback: Callable[..., None]  # replaced at ZeRO stage 0
    _sparse_hook_state: SparseHookState | None  # ours, set by `attach_engine`

    def zero_optimization_stage(self) -> int: ...

    def zero_round_robin_gradients(self) -> bool: ...

    def fp16_enabled(self) -> bool: ...

    def get_data_types(self) -> tuple[torch.dtype, torch.dtype]: ...

    def _get_gradients_for_reduction(self) -> tuple[list[Tensor], Any]: ...


def attach_engine(engine: Engine, **settings: Any) -> SparseHookState:
    """Exchange the engine's gradients sparsely from now on; raises ValueError with the reason if it cannot."""
    _check_stage(engine)
    _check_settings(engine)
    _check_clipping(engine, settings.get("clip_norm"))
    _check_length(engine, settings.get("density", 0.01))
    refuse_sparse_gradients(engine.module)
    group = engine.data_parallel_group
    state = SparseHookState(engine.module, process_group=group, scaler=EngineScale(engine), **settings)
    mortal = proxy(engine)  # for the state may outlive it
    state.unapplied = Unapplied(lambda: mortal.global_steps)  # it may step other tensors than these parameters
    engine._sparse_hook_state = state
    if engine.zero_optimization_stage() == 0:
        engine.buffered_allreduce_fallback = lambda grads=None, elements_per_buffer=0: _reduce(engine, state)
    else:
        _replace_average(engine.optimizer, state)
    return state


def _check_stage(engine: Engine) -> None:
    """Raise ValueError if the engine's ZeRO stage leaves no whole gradient to select from, or not in this precision."""
    stage = engine.zero_optimization_stage()
    if stage >= 2:
        raise ValueError(
            f"attach: ZeRO stage {stage} reduces the gradients of every micro-batch apart, shard by shard, so that "
            "there is no whole gradient to select from; use stage 0 or 1"
        )
    if engine.fp16_enabled() and stage == 0:
        raise ValueError("attach: DeepSpeed does not scale the loss with fp16 at ZeRO stage 0; use stage 1 or bf16")
    if stage == 0 and hasattr(engine.optimizer, "get_grads_for_reduction"):
        raise ValueError("attach: this bf16 optimizer keeps its gradients by group, not by parameter; use ZeRO stage 1")


def _check_settings(engine: Engine) -> None:
    """Raise ValueError if some of the engine's gradients would not go through the hook."""
    if engine.has_moe_layers or engine.pipeline_parallelism:
        raise ValueError("attach: experts and pipelines reduce their gradients in groups of their own")
    if len(set(engine.get_data_types())) > 1:
        raise ValueError("attach: data_types.grad_accum_dtype keeps a second set of gradients; leave it out")
    if engine.zero_optimization_stage() == 1:
        if engine.zero_round_robin_gradients():
            raise ValueError("attach: set zero_optimization.round_robin_gradients to false")
        if engine.optimizer.overlap_comm:
            raise ValueError("attach: set zero_optimization.overlap_comm to false: its buckets end at random moments")
        if not engine.optimizer.contiguous_gradients:
            raise ValueError("attach: set zero_optimization.contiguous_gradients to true")
    if getattr(engine, "_sparse_hook_state", None) is not None:
        raise ValueError("attach: the engine exchanges sparsely already")


def _check_clipping(engine: Engine, clip_norm: float | None) -> None:
    """Raise ValueError if the norm of the whole gradient is not known before a bucket must be sent."""
    if clip_norm is not None and engine.zero_optimization_stage() == 1:
        raise ValueError(
            "gradients.clip_norm: ZeRO stage 1 takes the mean of each bucket at once, before the norm of all is known, "
            f"got {clip_norm}; use stage 0, or leave it out"
        )


def _check_length(engine: Engine, density: float) -> None:
    """Raise ValueError if all gradients together, which stage 0 exchanges as one vector, have too many positions."""
    if engine.zero_optimization_stage() == 0 and density < 1:
        trained = [parameter.numel() for parameter in engine.module.parameters() if parameter.requires_grad]
        check_positions(sum(trained), "all gradients, which ZeRO stage 0 exchanges together")


def _reduce(engine: Engine, state: SparseHookState) -> None:
    """Exchange all gradients at stage 0, and write the mean to where DeepSpeed reads them."""
    state.begin_step()
    parameters = [p for p in engine.module.parameters() if p.requires_grad and p.numel()]
    gradients, _ = engine._get_gradients_for_reduction()
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    limit = state.preconditioning.clip_norm
    if limit is not None:
        clip([Bucket(parameters, flat)], parameters, limit, scale_of(state.scaler, flat.device))
    exchanged = exchange_gradients(state, parameters, flat).wait()
    for gradient, mean in zip(gradients, exchanged.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


def _replace_average(optimizer: Any, state: SparseHookState) -> None:
    """Exchange each bucket in place at stage 1; the optimizer then keeps its own part of the mean."""
    reduce_gradients = optimizer.reduce_gradients

    def begin_and_reduce(*arguments: Any, **options: Any) -> None:
        state.begin_step()
        reduce_gradients(*arguments, **options)

    def average_tensor(tensor: Tensor, communication_data_type: torch.dtype) -> None:
        bucket = optimizer.ipg_buckets[communication_data_type]
        _wait_for_copies(bucket, tensor)
        parameters = [optimizer.bit16_groups[group][index] for group, index, _ in bucket.params]
        mean = exchange_gradients(state, parameters, tensor).wait()
        if mean is not tensor:
            tensor.copy_(mean)

    optimizer.reduce_gradients = begin_and_reduce
    optimizer.average_tensor = average_tensor


def _wait_for_copies(bucket: Any, tensor: Tensor) -> None:
    """Let the current stream wait for the copies into a bucket, made on others if the optimizer is on the CPU.

    So does the function that is replaced (DeepSpeed#8061); DeepSpeed before 0.19 notes neither events nor streams.
    """
    if not tensor.is_cuda:
        return
    stream = torch.cuda.current_stream(tensor.device)
    for event in getattr(bucket, "ready_events", {}).values():
        stream.wait_event(event)
    for other in getattr(bucket, "copy_streams", ()):
        stream.wait_stream(other)
    tensor.record_stream(stream)
