"""The memory of one bucket's parameters between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flare_dist.compression import gpu_trial
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.gpu_sums import add_row_by_row, add_runs
from flare_dist.compression.payload import Encoded
from flare_dist.compression.preconditioners import Preconditioning
from flare_dist.devices import moved_unwaited
from flare_dist.hook.selection import BucketSelection
from flare_dist.layout import ParameterLayout

_FEW = 64  # entries of a gradient that are looked at first
_ROOM = 104 * 2**20  # bytes; ResNet-18 on 64 ranks then holds two buckets and takes 4 % more launches than on 8
_PAIR = 40  # bytes that a GPU takes to decode an entry, to sort it (by the source of torch's sort) and to add it

Decode = Callable[[Tensor], tuple[Tensor, Tensor]]  # messages -> positions and values, a row each


def lengths_of(config: CompressionConfig, preconditioning: Preconditioning, layout: ParameterLayout) -> dict[str, int]:
    """Return the length of each vector that error feedback and the preconditioner remember of a layout, by its kind."""
    own = preconditioning.record
    lengths = dict.fromkeys((*config.feedback.state_names, *own.vectors), layout.total)
    return lengths | dict.fromkeys(own.counts, len(layout.entries))


class BucketMemory:
    """Select of one bucket's parameters, and hold what error feedback and the preconditioner remember of them.

    All of it lies on the device from the start: a copy to a GPU in the middle of backward would have to be waited for.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        parameters: Sequence[Tensor],
        memory: dict[str, dict[str, Tensor]],
        config: CompressionConfig,
        preconditioning: Preconditioning,
        device: torch.device,
    ) -> None:
        """Begin with what `memory` holds of these parameters, and with zeros for the others."""
        self.layout = layout
        self.config = config
        self.preconditioning = preconditioning
        self.device = device
        self.selection = BucketSelection(layout, config, device)
        lengths = lengths_of(config, preconditioning, layout)
        self.kept = {kind: torch.zeros(length, device=device) for kind, length in lengths.items()}
        self.pending = {kind: torch.zeros(length, device=device) for kind, length in lengths.items()}
        self.is_pending = False
        self._mean = torch.zeros(layout.total if device.type == "cpu" and not config.is_dense else 0)
        self._touched = torch.empty(0, dtype=torch.int64)  # where it may be other than zero
        self._starts = moved_unwaited(torch.tensor([entry.offset for entry in layout.entries]), device)
        self._parameters = parameters
        for name, own in self.by_name().items():
            for kind, vector in own.items():
                if kind in memory.get(name, {}):
                    vector.copy_(memory[name][kind])

    def by_name(self, vectors: dict[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """Divide vectors of the bucket (by default those that count) by parameter and kind: views until next step."""
        own: dict[str, dict[str, Tensor]] = {entry.name: {} for entry in self.layout.entries}
        for kind, vector in (self.kept if vectors is None else vectors).items():
            if kind in self.preconditioning.record.counts:
                for entry, count in zip(self.layout.entries, vector.unbind()):
                    own[entry.name][kind] = count
                continue
            for (name, flat), parameter in zip(self.layout.views(vector), self._parameters):
                own[name][kind] = _in_memory_order(flat, parameter)
        return own

    def mean_of(self, payloads: Sequence[Encoded], scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take the mean of what all ranks sent, times the loss scale; also return where it may not be zero (int64).

        On a CPU it is a vector of the bucket's own, good until the next call: it is cleared only where it was touched,
        which takes a fraction of the time of writing it.
        """
        places = [payload.indices.long() for payload in payloads]
        touched = torch.cat(places)
        if self.device.type == "cpu":
            mean = self._mean.index_fill_(0, self._touched, 0)
            self._touched = touched
        else:
            mean = torch.zeros(self.layout.total, device=self.device)
        for place, payload in zip(places, payloads):
            mean.index_add_(0, place, payload.values / len(payloads))
        if scale is not None:
            mean.mul_(scale)
        return mean, touched

    def mean_on_gpu(self, buffer: Tensor, slots: Tensor, decode: Decode, kept: int, scale: Tensor | None) -> Tensor:
        """Take the mean as `mean_of` does of messages of `kept` entries, uint8 [W, slot], which `decode` reads.

        It is `buffer` itself if that is float32. Ranks are taken together as far as that needs no more memory, with the
        mean if it is not, than two buckets of float32, or _ROOM beside it if they are smaller; one rank at least.
        """
        is_own = buffer.dtype != torch.float32
        mean = torch.zeros(buffer.shape, device=buffer.device) if is_own else buffer.zero_()
        add = add_runs if gpu_trial.works(buffer.device) else add_row_by_row
        room = max(_ROOM, (4 if is_own else 8) * self.layout.total)
        at_once = max(1, room // (_PAIR * kept))
        for some in slots.split(at_once):
            places, values = decode(some)
            add(mean, places, values, len(slots))
            del places, values  # before the next are decoded
        return mean if scale is None else mean.mul_(scale)

    def largest_of_tensors(self, gradient: Tensor) -> Tensor:
        """Return the largest magnitude in each tensor of the layout, NaN if it has one; two launches on a GPU."""
        # A tensor without entries has no largest one: the first entry of all stands for it.
        tensors = [own if own.numel() else gradient[:1] for _, own in self.layout.views(gradient)]
        return torch.stack(torch._foreach_norm(tensors, torch.inf))

    def is_used(self, gradient: Tensor) -> Tensor:
        """Tell of each tensor of the layout if its gradient, on a CPU, is other than zero, as 1.0 or 0.0."""
        values = gradient.numpy()
        flat = [values[entry.offset : entry.end] for entry in self.layout.entries]
        return torch.tensor([float(own[:_FEW].any() or own.any()) for own in flat])  # mostly a few are enough

    def draft(self) -> dict[str, Tensor]:
        """Open the vectors to write what they become in a step that may yet be taken back."""
        self.is_pending = True
        return self.pending

    def precondition(self, gradient: Tensor) -> None:
        """Replace the gradients of the bucket by what the preconditioner makes of them; its memory goes to the draft.

        What it remembers advances with every step, for a tensor without a gradient as well.
        """
        sizes = [entry.numel for entry in self.layout.entries]
        self.preconditioning.record.apply(self.preconditioning, gradient, self.kept, self.draft(), sizes)

    def keep_unused(self, used: Tensor) -> None:
        """Keep in the draft what is fed back of tensors without a gradient: neither decayed nor moved on."""
        if used.is_cuda:
            everywhere = self._spread(used)
            for kind in self.config.feedback.state_names:
                torch.where(everywhere, self.pending[kind], self.kept[kind], out=self.pending[kind])
            return
        for kind in self.config.feedback.state_names:
            olds, news = self.layout.views(self.kept[kind]), self.layout.views(self.pending[kind])
            for old, new, is_used in zip(olds, news, used):
                torch.where(is_used > 0, new[1], old[1], out=new[1])

    def _spread(self, used: Tensor) -> Tensor:
        """Spread what is true of each tensor over its entries, bool [total]; its launches do not grow with tensors."""
        own = used.to(torch.int8)
        steps = own.clone()
        steps[1:] -= own[:-1]
        changes = torch.zeros(self.layout.total + 1, dtype=torch.int8, device=self.device)  # 1: empty ones at the end
        return changes.index_add_(0, self._starts, steps).cumsum(0, dtype=torch.int8)[:-1].bool()

    def after_step(self, failed: Tensor | None) -> dict[str, Tensor]:
        """Return what `commit` would make of the memory, which stays as it is."""
        if failed is None or not self.is_pending:
            return self.kept
        if self.device.type == "cuda":
            return {kind: torch.where(failed, vector, self.pending[kind]) for kind, vector in self.kept.items()}
        return self.kept if failed else self.pending

    def forget_draft(self) -> None:
        """Take the step back in which it was written."""
        self.is_pending = False

    def commit(self, failed: Tensor) -> None:
        """Take the draft over, unless `failed`; without asking a GPU, which would have to be waited for."""
        if self.is_pending and self.device.type == "cuda":
            for kind, vector in self.kept.items():
                torch.where(failed, vector, self.pending[kind], out=vector)
        elif self.is_pending and not failed:
            self.kept, self.pending = self.pending, self.kept
        self.is_pending = False


def _in_memory_order(flat: Tensor, parameter: Tensor) -> Tensor:
    """View `flat` as `parameter` lies in memory, as DDP's buckets are: not by rows if it is channels_last."""
    if parameter.is_contiguous() or not torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return flat
    return flat.as_strided(parameter.shape, parameter.stride())
