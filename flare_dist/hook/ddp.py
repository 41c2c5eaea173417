"""The sparse exchange as a communication hook of DistributedDataParallel: `ddp.register_comm_hook(state, sparse_hook)`.

For each bucket, once its gradients are there:

0. With `clip_norm` wait for the last bucket, and clip all of them (clipping.py).
1. Divide by the loss scale, if there is one, let a preconditioner make an update of the gradient (compression/
   preconditioners.py), and let error feedback add what was not sent before (float32).
2. Select per tensor, and send this rank's pairs in one packed all-gather; tensors of up to `dense_below` entries whole.
3. When it has arrived, add up all ranks' pairs in rank order, over the number of ranks, and put the loss scale back.

The memory is addressed by parameter name: DDP forms new buckets after the first backward, and one bucket cap gives the
same numbers as another. A tensor whose gradient is zero on this rank (unused, or the rank has joined) sends nothing
and keeps its residual. If a gradient is not finite on any rank, the bucket becomes infinite on all of them, so that
every GradScaler skips the step, and the memory of the whole step is taken back.

What travels is the message of a round (comm/message.py), with flags (save_watch.py) in place of the loss.
Annotations are evaluated here, since DDP looks at those of a hook.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from flare_dist.comm.collectives import GradBucket, rank_and_size, start_gather
from flare_dist.comm.message import NOTE, Message, pack, slot_nbytes, unpack, unpack_rows
from flare_dist.comm.traffic import all_gather_wire
from flare_dist.compression.error_feedback import ec
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Encoded, Sparse
from flare_dist.compression.sparsifiers import NotFiniteError, check_finite
from flare_dist.hook.dense import exchange_densely
from flare_dist.hook.memory import BucketMemory
from flare_dist.hook.save_watch import failed_anywhere
from flare_dist.hook.scale import not_finite, scale_of
from flare_dist.hook.state import SparseHookState


def sparse_hook(state: SparseHookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Exchange one bucket sparsely; the future's value is the bucket's mean gradient, in its own precision."""
    if bucket.index() == 0:  # DDP hands its buckets over in the order of their numbers
        state.begin_step()
    state.is_whole = bucket.is_last()
    limit = state.preconditioning.clip_norm
    if limit is None:
        return exchange_gradients(state, bucket.parameters(), bucket.buffer())
    promised = state.held_back.hold(bucket.parameters(), bucket.buffer())
    if state.is_whole:
        scale = scale_of(state.scaler, bucket.buffer().device)
        state.held_back.release(state.parameters, limit, scale, partial(exchange_gradients, state))
    return promised


def exchange_gradients(
    state: SparseHookState, parameters: Sequence[Tensor], buffer: Tensor
) -> torch.futures.Future[torch.Tensor]:
    """Take the mean over the ranks of `buffer`, the flat gradients of `parameters` on this rank, in its precision.

    It may be in `buffer`, which changes, or in a vector of the hook's own that is good until the next step. The ranks
    call it with the same parameters in the same order; a step begins with `state.begin_step()`.
    """
    rank, world_size = rank_and_size(state.process_group)
    state.clock.hand_over()
    scale = scale_of(state.scaler, buffer.device)
    if state.config.is_dense:
        return _exchange_densely(state, parameters, buffer, scale)
    bucket = state.bucket_of(parameters)
    packing = bucket.selection.plan(state.step).packing
    payload, failed = _compress(state, bucket, buffer, scale, rank)
    own = Message(rank, state.saves.note(failed), payload, payload.values[:0])
    kept = payload.values.numel()
    slot = slot_nbytes(packing.most_nbytes(kept), 0)
    packed = pack([own], 1, slot, buffer.device)
    state.count(all_gather_wire(world_size, packed.nbytes), own.nbytes, kept)
    # Of this stream, which reads it at the next step; made before the work, for its memory may still be in use here.
    verdict = torch.empty((), dtype=torch.bool, device=buffer.device)
    gathered, work = start_gather(packed, state.process_group)
    state.side_streams.hold(packed, gathered, scale)

    def take() -> Tensor:
        slots = gathered.to(buffer.device).view(world_size, -1)[:, :slot]
        if buffer.is_cuda:
            mean = bucket.mean_on_gpu(buffer, slots, lambda some: unpack_rows(some, packing, kept), kept, scale)
            touched: Tensor | slice = slice(None)
        else:
            mean, touched = bucket.mean_of(_payloads(slots, own, packing, kept), scale)
        rounded = mean if mean.dtype == buffer.dtype else buffer.copy_(mean)
        state.saves.receive(gathered.view(world_size, -1)[:, NOTE])
        # Scaled up again, a residual may be too large for float16.
        anywhere = torch.logical_or(failed_anywhere(slots[:, NOTE]), not_finite(rounded[touched]), out=verdict)
        state.failures.note(anywhere)
        if buffer.is_cuda:
            rounded.masked_fill_(anywhere, math.inf)
        elif anywhere:
            rounded = buffer.copy_(rounded).fill_(math.inf)
        state.clock.come_back()
        return rounded

    return state.side_streams.behind(work, buffer.device, take)


def _exchange_densely(
    state: SparseHookState, parameters: Sequence[Tensor], buffer: Tensor, scale: Tensor | None
) -> torch.futures.Future[torch.Tensor]:
    """Take the mean of all entries; those of a preconditioner's update come back times the loss scale, as others do."""
    if not state.state_names:
        return exchange_densely(
            buffer, state.process_group, state.count, state.side_streams, lambda mean: state.clock.come_back()
        )
    update = _unscaled(buffer, scale)
    state.bucket_of(parameters).precondition(update)
    buffer.copy_(update if scale is None else update.mul_(scale))
    verdict = torch.empty((), dtype=torch.bool, device=buffer.device)  # of this stream, which reads it at the next step

    def look(mean: Tensor) -> None:
        state.failures.note(torch.ne(not_finite(mean), 0, out=verdict))
        state.clock.come_back()

    return exchange_densely(buffer, state.process_group, state.count, state.side_streams, look)


def _unscaled(buffer: Tensor, scale: Tensor | None) -> Tensor:
    """Return the gradients in float32 without the loss scale; `buffer` itself if that changes nothing."""
    return buffer.float().div(scale) if scale is not None else buffer.float()


def _compress(
    state: SparseHookState, bucket: BucketMemory, buffer: Tensor, scale: Tensor | None, rank: int
) -> tuple[Sparse, Tensor]:
    """Make this rank's payload of a bucket; also tell if its gradients were not finite, a boolean on their device."""
    gradient = _unscaled(buffer, scale)
    if buffer.is_cuda:  # so that nothing waits for the answer
        largest = bucket.largest_of_tensors(gradient)
        used = largest.ne(0)  # NaN is other than zero
        bucket.precondition(gradient)
        if state.preconditioning.applies:
            largest = torch.linalg.vector_norm(gradient, torch.inf)
        failed = largest.mul(0).any()  # of what is not finite that is NaN, which counts as true
        gradient.nan_to_num_(0, 0, 0)
    else:
        used = bucket.is_used(gradient)
        bucket.precondition(gradient)
        failed = torch.zeros((), dtype=torch.bool)
    packing = bucket.selection.plan(state.step).packing
    draw = (state.seed, state.step, rank)

    def compress(update: Tensor) -> Sparse:
        indices = bucket.selection.choose(update, draw)
        values = update[indices] * used[packing.tensors_of(indices)]
        if not buffer.is_cuda:
            check_finite(values)  # those of whole tensors, which nobody has looked at
        # Values are rounded at random if no error feedback makes up for what rounding loses.
        at_random = packing.looks_at_draws and not state.config.feedback.state_names
        return packing.pack(indices, values, bucket.selection.draws(draw) if at_random else None)

    try:
        payload = state.rule(state.config, gradient, bucket.kept, compress, bucket.draft())
    except NotFiniteError:  # on a CPU, where selecting notices it; what is sent instead will not count
        failed.fill_(True)
        payload = state.rule(state.config, gradient.zero_(), bucket.kept, compress, bucket.draft())
    if state.rule is not ec or state.config.residual_decay != 1:  # which leaves a tensor that sent zeros as it was
        bucket.keep_unused(used)
    return payload, failed


def _payloads(slots: Tensor, own: Message, packing: Packing, kept: int) -> list[Encoded]:
    """Decode what the ranks have sent, in their order, on a CPU; what this rank has sent itself is taken as it is."""
    ranks = [rank for rank in range(len(slots)) if rank != own.sender]
    received = unpack([slots[rank] for rank in ranks], ranks, lambda _: packing, kept=kept, kind="rank")
    messages = {message.sender: message for message in [own, *received]}
    payloads = [messages[rank].payload for rank in range(len(slots))]
    return [payload for payload in payloads if payload]
