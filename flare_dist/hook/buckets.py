"""The memory of a model, in the buckets in which DDP hands over its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.preconditioners import Preconditioning
from flare_dist.hook.memory import BucketMemory
from flare_dist.layout import ParameterLayout


class ModelMemory:
    """The memory of the hook for a model by parameter name, whichever buckets its parameters are in."""

    def __init__(self, config: CompressionConfig, preconditioning: Preconditioning) -> None:
        self.config = config
        self.preconditioning = preconditioning
        self.waiting: dict[str, dict[str, Tensor]] = {}  # by name, of parameters that are in no bucket (yet)
        self._buckets: dict[tuple[str, ...], BucketMemory] = {}

    def bucket_of(self, parameter_names: Sequence[str], parameters: Sequence[Tensor]) -> BucketMemory:
        """Return the memory of these parameters, on their device; a new bucket takes over what others held of them."""
        names = tuple(parameter_names)
        if names not in self._buckets:
            for key in [key for key in self._buckets if set(key) & set(names)]:  # DDP has formed new ones
                self.waiting |= self._buckets.pop(key).by_name()
            layout = ParameterLayout.of(zip(names, parameters))
            self._buckets[names] = BucketMemory(
                layout, parameters, self.waiting, self.config, self.preconditioning, parameters[0].device
            )
            for name in names:
                self.waiting.pop(name, None)
        return self._buckets[names]

    def after_step(self, failed: Tensor | None) -> dict[str, dict[str, Tensor]]:
        """Return what `commit` would make of the memory, by parameter name and kind: views."""
        memory = dict(self.waiting)
        for bucket in self._buckets.values():
            memory |= bucket.by_name(bucket.after_step(failed))
        return memory

    def replace(self, memory: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over copies of this memory, by parameter name and kind, instead of all that is there."""
        self._buckets.clear()
        self.waiting = {
            name: {kind: vector.detach().clone().float() for kind, vector in own.items()}
            for name, own in memory.items()
        }

    def forget_drafts(self) -> None:
        """Take back the step in which they were written."""
        for bucket in self._buckets.values():
            bucket.forget_draft()

    def commit(self, failed: Tensor) -> None:
        """Take over what the last step remembered, unless it `failed` (a boolean scalar on the device)."""
        for bucket in self._buckets.values():
            bucket.commit(failed)
