"""Models in DeepSpeed engines: each rank's own for federated clients, or one of a data-parallel group.

The sparse hook goes inside an engine, which has no hook of its own (DeepSpeed#886).
At ZeRO stage 0 DeepSpeed averages all gradients after backward, in `buffered_allreduce_fallback`; at stage 1 bucket by
bucket in the optimizer's `average_tensor`. Both are replaced on the engine, and nothing else: accumulation, clipping,
the loss scale and its skipped steps stay DeepSpeed's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed import DeepSpeedEngine as DeepSpeedEngine
from deepspeed.utils import safe_get_full_grad, safe_set_full_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.ddp_hook import SparseHookState, exchange_gradients
from flare_dist.comm.distributed import ProcessGroup, all_gather_async, alone_group, rank_and_size
from flare_dist.comm.hook_checks import refuse_sparse_gradients
from flare_dist.comm.hook_scale import EngineScale
from flare_dist.comm.hook_updates import Unapplied
from flare_dist.data.batches import piece_sizes
from flare_dist.layout import buffer_layout, dtypes_of, in_own_dtype, parameter_layout


def attach_engine(engine: DeepSpeedEngine, **settings: Any) -> SparseHookState:
    """Exchange the engine's gradients sparsely from now on; raises ValueError with the reason where it cannot."""
    stage = engine.zero_optimization_stage()
    if stage >= 2:
        raise ValueError(
            f"attach: ZeRO stage {stage} reduces the gradients of every micro-batch apart, shard by shard, so that "
            "there is no whole gradient to select from; use stage 0 or 1"
        )
    if engine.fp16_enabled() and stage == 0:
        raise ValueError("attach: DeepSpeed does not scale the loss with fp16 at ZeRO stage 0; use stage 1 or bf16")
    if engine.has_moe_layers or engine.pipeline_parallelism:
        raise ValueError("attach: experts and pipelines reduce their gradients in groups of their own")
    if len(set(engine.get_data_types())) > 1:
        raise ValueError("attach: data_types.grad_accum_dtype keeps a second set of gradients; leave it out")
    if stage == 1 and engine.zero_round_robin_gradients():
        raise ValueError("attach: set zero_optimization.round_robin_gradients to false")
    if stage == 1 and engine.optimizer.overlap_comm:
        raise ValueError("attach: set zero_optimization.overlap_comm to false: its buckets end at random moments")
    if stage == 1 and not engine.optimizer.contiguous_gradients:
        raise ValueError("attach: set zero_optimization.contiguous_gradients to true")
    if stage == 0 and hasattr(engine.optimizer, "get_grads_for_reduction"):
        raise ValueError("attach: this bf16 optimizer keeps its gradients by group, not by parameter; use ZeRO stage 1")
    if getattr(engine, "_sparse_hook_state", None) is not None:
        raise ValueError("attach: the engine exchanges sparsely already")
    refuse_sparse_gradients(engine.module)
    group = engine.data_parallel_group
    state = SparseHookState(engine.module, process_group=group, scaler=EngineScale(engine), **settings)
    state.unapplied = Unapplied(lambda: engine.global_steps)  # it may step other tensors than these parameters
    engine._sparse_hook_state = state
    if stage == 0:
        engine.buffered_allreduce_fallback = lambda grads=None, elements_per_buffer=0: _reduce(engine, state)
    else:
        _replace_average(engine.optimizer, state)
    return state


def _reduce(engine: DeepSpeedEngine, state: SparseHookState) -> None:
    """Stage 0: the mean of all gradients, written back to where DeepSpeed reads them."""
    state.begin_step()
    parameters = [p for p in engine.module.parameters() if p.requires_grad and p.numel()]
    gradients, _ = engine._get_gradients_for_reduction()
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    exchanged = exchange_gradients(state, parameters, flat).wait()
    for gradient, mean in zip(gradients, exchanged.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


def _replace_average(optimizer: Any, state: SparseHookState) -> None:
    """Stage 1: the mean of each bucket in place, of which the optimizer then keeps its own part."""
    reduce_gradients = optimizer.reduce_gradients

    def begin_and_reduce(*arguments: Any, **options: Any) -> None:
        state.begin_step()
        reduce_gradients(*arguments, **options)

    def average_tensor(tensor: Tensor, communication_data_type: torch.dtype) -> None:
        bucket = optimizer.ipg_buckets[communication_data_type]
        parameters = [optimizer.bit16_groups[group][index] for group, index, _ in bucket.params]
        mean = exchange_gradients(state, parameters, tensor).wait()
        if mean is not tensor:
            tensor.copy_(mean)

    optimizer.reduce_gradients = begin_and_reduce
    optimizer.average_tensor = average_tensor


class DeepSpeedModel:
    """A model in a DeepSpeed engine of ZeRO stage 0 to 2, with the flat vectors that the round reads and writes.

    `parameters` are the float32 master weights, whatever precision the model computes in; they and `buffers` are
    brought up to date by `collect`. With `alone` the engine knows no other rank, so each rank's trains clients of its
    own; otherwise it is one of a data-parallel group, to be made sparse by `distribute`.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        model: nn.Module,
        device: torch.device,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        alone: bool,
        smallest_batch: int = 1,
    ) -> None:
        self._smallest_batch = smallest_batch
        self.layout, self.buffer_layout = parameter_layout(model), buffer_layout(model)
        self.dtypes = dtypes_of(model)
        self.module = model.to(device)
        named = dict(model.named_parameters())
        self._parameters = [named[entry.name] for entry in self.layout.entries]
        self._initial = {name: b.detach().clone() for name, b in model.named_buffers()}
        self.parameters = torch.cat([p.detach().flatten() for p in self._parameters])
        self.buffers = torch.empty(self.buffer_layout.total, device=device)
        for name, view in self.buffer_layout.views(self.buffers):
            view.copy_(self._initial[name])
        # The one operator that DeepSpeed compiles on CPUs, for a minute or two at its first start, serves inference.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(self._parameters),
            config=settings,
            mpu=_Alone() if alone else None,
            dist_init_required=False,
        )
        self.optimizer: Optimizer = self._engine.basic_optimizer
        self._dtype = self._parameters[0].dtype
        if self._dtype != torch.float32:
            model.register_forward_pre_hook(lambda module, inputs: tuple(map(self._to_model, inputs)))
            model.register_forward_hook(lambda module, inputs, outputs: outputs.float())
        self._shards = 1 if alone or not self._engine.zero_optimization_stage() else self._engine.dp_world_size
        self._initial_scale = copy.deepcopy(getattr(self._engine.optimizer, "loss_scaler", None))

    def _to_model(self, value: Any) -> Any:
        """Floating-point inputs in the model's precision."""
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def distribute(self, gradients: GradientsConfig, seed: int, **settings: Any) -> SparseHookState:
        """From now on each `step` takes the mean gradient of all ranks, exchanged sparsely by these settings."""
        assert gradients.hook == "sparse", "the others are hooks of DistributedDataParallel"
        return attach_engine(self._engine, seed=seed, **settings)

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones."""
        self.parameters.copy_(parameters)
        self.buffers.copy_(buffers)
        self._scatter(self.parameters, self._stepped())
        for (_, value), parameter in zip(self.layout.views(self.parameters), self._parameters):
            parameter.data.copy_(value)
        averaged = dict(self.buffer_layout.views(self.buffers))
        for name, buffer in self.module.named_buffers():
            initial = self._initial[name]
            buffer.copy_(in_own_dtype(averaged[name], initial) if name in averaged else initial)

    def mask_(self, factor: Tensor) -> None:
        """Multiply the parameters by `factor`, in place: the master weights, and those that the model computes with."""
        for own, share in self._shares(self._stepped(), factor):
            own.mul_(share)
        if self._dtype == torch.float32 and not self._engine.zero_optimization_stage():
            return  # they are the same
        for (_, view), parameter in zip(self.layout.views(factor), self._parameters):
            parameter.data.mul_(view)

    def collect(self) -> None:
        """Read the master weights and the buffers into the flat vectors; ranks of one group call it together."""
        self.parameters.copy_(self._gather(self._stepped()))
        named = dict(self.module.named_buffers())
        for name, value in self.buffer_layout.views(self.buffers):
            value.copy_(named[name])

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """What a checkpoint keeps of the optimizer, as of one flat vector; ranks of one group call it together."""
        parts = [self.optimizer.state[part] for part in self._stepped()]
        whole = {
            key: self._gather([part[key] for part in parts]) if isinstance(value, Tensor) and value.dim() else value
            for key, value in parts[0].items()
        }
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {"name": name, "state": {0: whole} if whole else {}, "scaler": dict(vars(scaler)) if scaler else {}}

    def load_optimizer_state(self, name: str, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` gave, on any number of ranks; ValueError where it is another optimizer's."""
        if saved.get("scaler"):
            vars(self._engine.optimizer.loss_scaler).update(saved["scaler"])
        if not saved["state"]:
            return
        if saved["name"] != name:
            raise ValueError(f"clients.optimizer: the checkpoint holds the state of {saved['name']}, not of {name}")
        stepped = self._stepped()
        for key, value in saved["state"][0].items():
            is_vector = isinstance(value, Tensor) and value.dim()
            values = [torch.zeros_like(part.data) if is_vector else copy.deepcopy(value) for part in stepped]
            if is_vector:
                self._scatter(value, values)
            for part, own in zip(stepped, values):
                self.optimizer.state[part][key] = own

    def _stepped(self) -> list[Tensor]:
        """The float32 tensors that the optimizer steps: one for each parameter, or a flat one of this rank's shard."""
        return [part for group in self.optimizer.param_groups for part in group["params"]]

    def _gather(self, parts: list[Tensor]) -> Tensor:
        """One vector of what lies in the layout's order in `parts`, and in those of the other ranks."""
        own = torch.cat([part.detach().flatten() for part in parts]).to(self.parameters.device)
        if self._shards > 1:
            own, arrival = all_gather_async(own, None)
            arrival.wait()
        return own[: self.layout.total].clone()

    def _scatter(self, vector: Tensor, parts: list[Tensor]) -> None:
        """Write this rank's share of a whole vector to `parts`."""
        for own, share in self._shares(parts, vector):
            own.copy_(share)

    def _shares(self, parts: list[Tensor], vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What of `parts` and of a whole vector belongs together on this rank, without the padding behind its end."""
        start = rank_and_size(None)[0] * parts[0].numel() if self._shards > 1 else 0
        for part in parts:
            share = vector[start : start + part.numel()]
            yield part.data.view(-1)[: len(share)], share
            start += part.numel()

    def reset(self) -> None:
        """Forget the optimizer's state and the loss scale, so that no client depends on the one trained before it."""
        self.optimizer.state.clear()
        self._engine.zero_grad()
        self._engine.micro_steps = 0
        if self._initial_scale is not None:
            vars(self._engine.optimizer.loss_scaler).update(copy.deepcopy(vars(self._initial_scale)))

    def step(self, inputs: Tensor, labels: Tensor, penalty: Callable[[Tensor, Tensor], None] | None = None) -> Tensor:
        """One optimizer step on a batch, in `gradient_accumulation_steps` pieces; returns the mean loss.

        `penalty` adds to (gradient, parameters) before the step, on unscaled float32 copies.
        """
        loss_sum = torch.zeros((), device=labels.device)
        sizes = piece_sizes(len(labels), self._engine.gradient_accumulation_steps(), self._smallest_batch)
        pieces = list(zip(inputs.split(sizes), labels.split(sizes)))
        for number, (some_inputs, some_labels) in enumerate(pieces, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(pieces))
            loss = F.cross_entropy(self._engine(some_inputs), some_labels) * (len(some_labels) / len(labels))
            self._engine.backward(loss, scale_wrt_gas=False)
            if penalty is not None and number == len(pieces):
                self._penalise(penalty)
            self._engine.step()
            loss_sum += loss.detach()
        return loss_sum

    def _penalise(self, penalty: Callable[[Tensor, Tensor], None]) -> None:
        optimizer = self._engine.optimizer
        scale = optimizer.loss_scale if self._engine.fp16_enabled() else 1.0
        self.collect()
        gradients = [safe_get_full_grad(parameter) for parameter in self._parameters]
        flat = torch.cat([gradient.flatten().float() for gradient in gradients]).div_(scale)
        penalty(flat, self.parameters)
        for parameter, (_, view) in zip(self._parameters, self.layout.views(flat.mul_(scale))):
            safe_set_full_grad(parameter, view)
            if getattr(optimizer, "cpu_offload", False):  # has taken the norms, for clipping, with backward
                optimizer.norm_for_param_grads[optimizer.get_param_id(parameter)] = view.double().norm()


class _Alone:
    """The groups of a rank that trains by itself, as DeepSpeed asks for them."""

    def __init__(self) -> None:
        self._rank, self._group = alone_group()

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._group

    get_model_parallel_group = get_data_parallel_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [self._rank]

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_world_size(self) -> int:
        return 1

    get_model_parallel_rank = get_data_parallel_rank
    get_model_parallel_world_size = get_data_parallel_world_size
