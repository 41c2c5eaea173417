"""The sparse exchange as a communication hook of DistributedDataParallel: `ddp.register_comm_hook(state, sparse_hook)`.

For each bucket, once its gradients are there:

1. Divide by the loss scale, if there is one, and let error feedback add what was not sent before (float32).
2. Select per tensor, and send this rank's pairs in one packed all-gather; tensors of up to `dense_below` entries whole.
3. When it has arrived, add up all ranks' pairs in rank order, over the number of ranks, and put the loss scale back.

The memory is addressed by parameter name: DDP forms new buckets after the first backward, and one bucket cap gives the
same numbers as another. A tensor whose gradient is zero on this rank (unused, or the rank has joined) sends nothing
and keeps its residual. Where a gradient is not finite on any rank, the bucket becomes infinite on all of them, so that
every GradScaler skips the step, and the memory of the whole step is taken back.

What travels is the message of a round (comm/message.py), with flags (hook_saves.py) in place of the loss.
Annotations are evaluated here, since DDP looks at those of a hook.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flare_dist.comm.distributed import (
    GradBucket,
    ProcessGroup,
    all_gather_async,
    all_gather_wire,
    rank_and_size,
)
from flare_dist.comm.hook_checks import check_compression, check_parameters, check_saved
from flare_dist.comm.hook_dense import exchange_densely
from flare_dist.comm.hook_memory import BucketMemory
from flare_dist.comm.hook_meter import HookTraffic, StepClock
from flare_dist.comm.hook_saves import SaveWatch, failed_anywhere
from flare_dist.comm.hook_scale import LossScaler, is_finite, scale_of
from flare_dist.comm.hook_updates import OptimizerSteps, Unapplied
from flare_dist.comm.message import NOTE, Message, pack, slot_nbytes, unpack
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.payload import Sparse
from flare_dist.compression.selection import NotFiniteError, check_finite
from flare_dist.layout import ParameterLayout


class SparseHookState:
    """What `sparse_hook` remembers of a model between steps, and its settings. One for each DDP object.

    Args:
        model: the model, before or after DDP has wrapped it; its parameters' names address the memory, which is float32
            whatever their precision.
        density: fraction of each tensor's entries that a rank sends, in (0, 1]; 1 is plain DDP.
        scaler: the GradScaler of fp16 training, so that the memory is kept unscaled.
        process_group: the ranks to exchange with, as given to DDP (None = all).
        seed: of the randk sparsifier, and of rounding at random.
        compression: more keys of `CompressionConfig`: sparsifier (topk, randk or auto), error_feedback (ec, dgc or
            none), momentum, residual_decay, count, scope (tensor or block), block, dense_below, index_codec,
            value_codec, warmup and warmup_rounds, which here count steps. Their meanings and defaults:
            `help(flare_dist.CompressionConfig)`.

    `traffic` counts from the state's creation on: `wire_bytes` over all ranks, padding included, `uplink_bytes` of this
    rank before padding, `kept` entries in them, `collectives`; unsaved. Step or take back every synchronised backward.

    Raises ValueError for settings that make no sense here: scope global would make results depend on DDP's bucket
    sizes, a threshold gives payloads of unknown size, EF21 and compressed downlinks need a server, and blocks of values
    would cross tensors. So do complex parameters and sparse gradients below density 1.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float = 0.01,
        *,
        scaler: "LossScaler | None" = None,
        process_group: ProcessGroup | None = None,
        seed: int = 0,
        **compression: Any,
    ) -> None:
        self.config = CompressionConfig(density=density, **compression)
        check_compression(self.config)
        self.scaler = scaler
        self.process_group = process_group
        self.seed = seed
        self.step = 0  # backward passes that were synchronised
        self.traffic = HookTraffic()
        self.clock = StepClock()  # of this step
        self.state_names, self.rule, _ = self.config.feedback
        module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        check_parameters(module, self.config)
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._names = {parameter: name.replace("_orig_mod.", "") for name, parameter in trained.items()}  # if compiled
        self.shapes = {name: tuple(parameter.shape) for parameter, name in self._names.items()}
        self.is_attached = True  # False for a copy, whose DDP object has no hook
        self.saves = SaveWatch()
        self._memory: dict[str, dict[str, Tensor]] = {}  # by name, of parameters that are in no bucket (yet)
        self._buckets: dict[tuple[str, ...], BucketMemory] = {}
        self.is_whole = True  # False while DDP has buckets of the step left, and after a backward that was broken off
        self.held: list[Tensor] = []  # until the next step, for the GPU may still be using them when Python is done
        self._failures: list[Tensor] = []  # of each bucket of this step whether it was not finite somewhere
        self.unapplied = Unapplied(OptimizerSteps(self._names))

    @property
    def wire_bytes(self) -> int:
        """What the collectives moved over all ranks, padding included."""
        return self.traffic.wire_bytes

    def count(self, wire_bytes: int, uplink_bytes: int, kept: int) -> None:
        """Note one bucket that is about to be sent."""
        self.traffic += HookTraffic(wire_bytes, uplink_bytes, kept, collectives=1)
        self.clock.send(wire_bytes)

    def state_dict(self) -> dict[str, Any]:
        """This rank's memory by parameter name, the number of steps, and whose it is. Call it between steps; copies."""
        failed = self._failed()
        memory = dict(self._memory)
        for bucket in self._buckets.values():
            memory |= bucket.by_name(bucket.after_step(failed))
        names = [name for name in self.shapes if name in memory]  # in the model's order
        copies = {name: {kind: vector.clone() for kind, vector in memory[name].items()} for name in names}
        whose = {"rule": self.rule_name, "density": self.config.density, "shapes": dict(self.shapes)}
        return {"step": self.step - (not self.is_whole), "memory": copies} | whose

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a memory that `state_dict` gave; raises ValueError if it is another rule's or another model's."""
        check_saved(state, self.rule_name, self.state_names, self.shapes)
        self._commit()
        self.step = state["step"]
        self.unapplied.clear()
        self._buckets.clear()
        self._memory = {
            name: {kind: vector.detach().clone().float() for kind, vector in own.items()}
            for name, own in state["memory"].items()
        }

    @property
    def rule_name(self) -> str:
        """The rule of error feedback that holds: none if everything is sent."""
        return "none" if self.config.is_dense else self.config.rule

    def __getstate__(self) -> dict[str, Any]:
        """Settings, step and memory by name: no process group, no scaler, no parameters, nothing that is pending."""
        return {"config": self.config, "seed": self.seed, "saved": self.state_dict()}

    def __setstate__(self, copied: dict[str, Any]) -> None:
        SparseHookState.__init__(self, nn.Module(), seed=copied["seed"], **vars(copied["config"]))
        self.shapes = copied["saved"]["shapes"]
        self.load_state_dict(copied["saved"])
        self.is_attached = False

    def begin_step(self) -> None:
        """Start a step: what the one before it remembered counts from now on, unless it was not finite or not whole."""
        failed = self._commit()
        self.unapplied.begin(failed if self.state_names else None)
        self.held.clear()
        self.clock.begin_step()
        self.saves.look()
        self.step += 1

    def take_back(self) -> int:
        """Undo the synchronised backwards since the last optimizer step, for their gradients are thrown away.

            if norm > limit:
                state.take_back()
                optimizer.zero_grad()
                continue

        Called on all ranks or on none. The memory and the number of steps become what they were at the last optimizer
        step, and `traffic` stays: what was sent was sent. Returns how many backwards were taken back, 0 if there were
        none. Raises RuntimeError, and changes nothing, if the memory has taken over more than the last: put the others
        under no_sync. It waits for a GPU only if there were several. Steps are those
        of torch.optim and DeepSpeed optimizers of these parameters, or writes to them under no_grad.
        """
        count, kept = self.unapplied.count()
        if kept:
            raise RuntimeError(
                f"take_back: {count} synchronised backwards since the last optimizer step, of which only the last can "
                f"be taken back and {kept} cannot; run the others under no_sync, or call take_back after each"
            )
        if count:
            for bucket in self._buckets.values():
                bucket.forget_draft()
            self._failures.clear()
            self.is_whole = True
            self.step -= count
            self.unapplied.clear()
        return count

    def bucket_of(self, parameters: Sequence[Tensor]) -> BucketMemory:
        """The place of these parameters in one flat vector, and their memory, on their device."""
        layout = ParameterLayout.of((self._names[p], p) for p in parameters)
        names = tuple(entry.name for entry in layout.entries)
        if names not in self._buckets:
            for key in [key for key in self._buckets if set(key) & set(names)]:  # DDP has formed new ones
                self._memory |= self._buckets.pop(key).by_name()
            self._buckets[names] = BucketMemory(
                layout, parameters, self.state_names, self._memory, self.config, parameters[0].device
            )
            for name in names:
                self._memory.pop(name, None)
        return self._buckets[names]

    def note_failure(self, failed: Tensor) -> None:
        """Remember that a bucket of this step was not finite on some rank (a boolean scalar on the device)."""
        self._failures.append(failed)  # called from several threads, as buckets arrive

    def _failed(self) -> Tensor | None:
        """Tell if the last step came to nothing (a boolean scalar on the device); None if it remembered nothing."""
        failures = self._failures if self.is_whole else [*self._failures, torch.ones((), dtype=torch.bool)]
        if not failures:
            return None
        return torch.stack([failed.to(failures[0].device) for failed in failures]).any()

    def _commit(self) -> Tensor | None:
        """Make the memory of the last step the one that counts, or forget it if that step came to nothing."""
        failed = self._failed()
        if failed is not None:
            for bucket in self._buckets.values():
                bucket.commit(failed)
        self.step -= not self.is_whole
        self._failures.clear()
        self.is_whole = True
        return failed


def sparse_hook(state: SparseHookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Exchange one bucket sparsely; the future's value is the bucket's mean gradient, in its own precision."""
    if bucket.index() == 0:  # DDP hands its buckets over in the order of their numbers
        state.begin_step()
    state.is_whole = bucket.is_last()
    return exchange_gradients(state, bucket.parameters(), bucket.buffer())


def exchange_gradients(
    state: SparseHookState, parameters: Sequence[Tensor], buffer: Tensor
) -> torch.futures.Future[torch.Tensor]:
    """The mean over the ranks of `buffer`, the flat gradients of `parameters` on this rank, in its precision.

    It may be in `buffer`, which changes, or in a vector of the hook's own that is good until the next step. The ranks
    call it with the same parameters in the same order; a step begins with `state.begin_step()`.
    """
    rank, world_size = rank_and_size(state.process_group)
    state.clock.hand_over()
    if state.config.is_dense:
        return exchange_densely(buffer, state.process_group, state.count, state.clock.come_back)
    bucket = state.bucket_of(parameters)
    scale = scale_of(state.scaler, buffer.device)
    gradient = buffer.float().div(scale) if scale is not None else buffer.float()
    failed = torch.zeros((), dtype=torch.bool, device=buffer.device)
    if buffer.is_cuda:  # where nothing may wait for the answer
        failed = ~is_finite(buffer)
        gradient.nan_to_num_(0, 0, 0)
    used = bucket.is_used(gradient)
    packing = bucket.plan(state.step).packing

    def compress(update: Tensor) -> Sparse:
        chosen = bucket.select(update, (state.seed, state.step, rank))
        indices = packing.indices(chosen)
        values = update[indices] * used[packing.tensors_of(indices)]
        if not buffer.is_cuda:
            check_finite(values)  # those of whole tensors, which nobody has looked at
        # Values are rounded at random where no error feedback makes up for what rounding loses.
        draws = None if state.state_names else bucket.draws((state.seed, state.step, rank))
        return packing.pack(indices, values, draws)

    try:
        payload = state.rule(state.config, gradient, bucket.kept, compress, bucket.draft())
    except NotFiniteError:  # on a CPU, where selecting notices it; what is sent instead will not count
        failed.fill_(True)
        payload = state.rule(state.config, gradient.zero_(), bucket.kept, compress, bucket.draft())
    if state.config.residual_decay != 1 or "velocity" in state.state_names:
        bucket.keep_unused(used)
    own = Message(rank, state.saves.note(failed), payload, gradient[:0])
    kept, slot = payload.kept, slot_nbytes(packing.most_nbytes(payload.kept), 0)
    packed = pack([own], 1, slot, buffer.device)
    state.count(all_gather_wire(world_size, packed.nbytes), own.nbytes, kept)
    gathered, arrived = all_gather_async(packed, state.process_group)
    state.held += [packed, gathered] if scale is None else [packed, gathered, scale]

    def decode(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        future.wait()
        slots = gathered.to(buffer.device).view(world_size, -1)[:, :slot]
        # On a GPU what this rank has sent may be gone: decoding runs on another stream.
        on_cpu = not buffer.is_cuda
        read = [number for number in range(world_size) if number != rank or not on_cpu]
        received = unpack([slots[number] for number in read], read, lambda _: packing, kept=kept, kind="rank")
        messages = {message.sender: message for message in [own, *received]}
        payloads = [messages[number].payload for number in range(world_size)]
        mean, touched = bucket.mean_of([payload for payload in payloads if payload], scale)
        rounded = mean if on_cpu and buffer.dtype == torch.float32 else buffer.copy_(mean)
        state.saves.receive(gathered.view(world_size, -1)[:, NOTE])
        # Scaled up again, a residual may be too large for float16.
        anywhere = failed_anywhere(slots[:, NOTE]) | ~is_finite(rounded[touched])
        state.note_failure(anywhere)
        if not on_cpu or anywhere:
            rounded = buffer.copy_(rounded).masked_fill_(anywhere, math.inf)
        state.clock.come_back()
        return rounded

    return arrived.then(decode)
