"""The state of `sparse_hook`: its settings, what it remembers of a model between steps, and what it has sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flare_dist.comm.collectives import ProcessGroup
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.preconditioners import Preconditioning
from flare_dist.hook.buckets import ModelMemory
from flare_dist.hook.checks import check_compression, check_parameters, check_saved, rule_name
from flare_dist.hook.clipping import HeldBack
from flare_dist.hook.footprint import report_memory
from flare_dist.hook.held_means import HeldMeans
from flare_dist.hook.memory import BucketMemory
from flare_dist.hook.meter import HookTraffic, StepClock
from flare_dist.hook.save_watch import SaveWatch
from flare_dist.hook.scale import Failures, LossScaler
from flare_dist.hook.shards import Shard
from flare_dist.hook.side_streams import SideStreams
from flare_dist.hook.updates import OptimizerSteps, Unapplied
from flare_dist.hook.wrappers import plain_name


class SparseHookState:
    """The memory of `sparse_hook` between steps, and its settings. One for each DDP object.

    Args:
        model: the model, before or after DDP has wrapped it; its parameters' names address the memory, which is float32
            whatever their precision.
        density: fraction of each tensor's entries that a rank sends, in (0, 1]; 1 is plain DDP.
        scaler: the GradScaler of fp16 training, so that the memory is kept unscaled.
        process_group: the ranks to exchange with, as given to DDP (None = all).
        seed: of the randk sparsifier, and of rounding at random.
        preconditioner: none, or adam: each rank's gradient becomes Adam's update before error feedback, and what comes
            back is a mean of updates, to be stepped by torch.optim.SGD without momentum; its weight_decay is AdamW's.
        betas, eps, update_clip: of adam; beta1 must be 0, and update_clip is the largest magnitude of its update.
        clip_norm: without preconditioner, the norm to which each rank clips its whole gradient before error feedback;
            it is known with the last bucket, so that no exchange overlaps with backward. None for none.
        quiet: do not say how much memory it takes.
        compression: more keys of `CompressionConfig`, whose rounds are steps here: sparsifier (topk, randk or auto),
            error_feedback (ec, dgc or none), residual_decay, scope (tensor, block or row), block, warmup and others.

    `traffic` counts from the state's creation on: `wire_bytes` over all ranks, padding included, `uplink_bytes` of this
    rank before padding, `kept` entries in them, `collectives`; unsaved. Step or take back every synchronised backward.

    Raises ValueError for settings that make no sense here: scope global (results would depend on DDP's bucket sizes), a
    threshold (payloads of unknown size), EF21 and compressed downlinks (there is no server), blocks of values; and for
    complex parameters and sparse gradients, but at density 1 without preconditioner, and float16 or dgc with one.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float = 0.01,
        *,
        scaler: LossScaler | None = None,
        process_group: ProcessGroup | None = None,
        seed: int = 0,
        preconditioner: str = "none",
        betas: tuple[float, float] = (0.0, 0.99),
        eps: float = 1e-8,
        update_clip: float = 3.0,
        clip_norm: float | None = None,
        quiet: bool = False,
        **compression: Any,
    ) -> None:
        self.config = CompressionConfig(density=density, **compression)
        self.preconditioning = Preconditioning(preconditioner, betas, eps, update_clip, clip_norm)
        check_compression(self.config, self.preconditioning)
        self.scaler = scaler
        self.process_group = process_group
        self.seed = seed
        self.step = 0  # backward passes that were synchronised
        self.traffic = HookTraffic()
        self.clock = StepClock()  # of this step
        self.rule = self.config.feedback.rule
        self.rule_name = rule_name(self.config, self.preconditioning)
        own = self.preconditioning.record
        self.fed_back = self.config.feedback.state_names
        self.state_names = (*self.fed_back, *own.vectors, *own.counts)
        module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        check_parameters(module, self.config, self.preconditioning)
        self._names = {p: plain_name(name) for name, p in module.named_parameters() if p.requires_grad}
        self.parameters = tuple(self._names)  # that are trained, in the model's order
        self.shapes = {name: tuple(parameter.shape) for parameter, name in self._names.items()}
        self.is_attached = True  # False for a copy, whose DDP object has no hook
        self.saves = SaveWatch()
        self.suffix = ""
        self.shard: Shard | None = None  # of parameters of which other ranks hold the rest
        self.memory = ModelMemory(self.config, self.preconditioning)
        self.held_back = HeldBack()
        self.is_whole = True  # False while DDP has buckets of the step left, and after a backward that was broken off
        self.side_streams = SideStreams()
        self.failures = Failures()
        self.unapplied = Unapplied(OptimizerSteps(self._names))
        self.held_means = HeldMeans(self._names if own.vectors else {})
        if not quiet:
            report_memory(self._names, self.config, self.preconditioning, process_group)

    @property
    def wire_bytes(self) -> int:
        """Return the bytes that the collectives moved over all ranks, padding included."""
        return self.traffic.wire_bytes

    @property
    def finished_steps(self) -> int:
        """Return the number of steps without one that is going on, or was broken off."""
        return self.step - (not self.is_whole)

    def count(self, wire_bytes: int, uplink_bytes: int, kept: int) -> None:
        """Note one bucket that is about to be sent."""
        self.traffic += HookTraffic(wire_bytes, uplink_bytes, kept, collectives=1)
        self.clock.send(wire_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Copy this rank's memory by parameter name, the number of steps, and whose it is. Call it between steps."""
        memory = self.memory.after_step(self.failures.of_step(self.is_whole))
        names = [name for name in self.shapes if name in memory]  # in the model's order
        copies = {name: {kind: vector.clone() for kind, vector in memory[name].items()} for name in names}
        whose = {"rule": self.rule_name, "density": self.config.density, "shapes": dict(self.shapes)}
        return {"step": self.finished_steps, "memory": copies, **whose, **(self.shard.saved() if self.shard else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a memory that `state_dict` gave; raises ValueError if it is another rule's or another model's."""
        check_saved(state, self.rule_name, self.state_names, self.shapes)
        self._commit()
        self.step = state["step"]
        self.unapplied.clear()
        self.memory.replace(state["memory"])

    def __getstate__(self) -> dict[str, Any]:
        """Pickle settings, step and memory by name: no process group, scaler or parameters, nothing that is pending."""
        settings = {"seed": self.seed} | vars(self.preconditioning)
        return {"config": self.config, "settings": settings, "saved": self.state_dict()}

    def __setstate__(self, copied: dict[str, Any]) -> None:
        settings = copied.get("settings") or {"seed": copied["seed"]}  # the latter in older versions
        SparseHookState.__init__(self, nn.Module(), **settings, **vars(copied["config"]))
        self.shapes = copied["saved"]["shapes"]
        self.load_state_dict(copied["saved"])
        self.is_attached = False

    def begin_step(self) -> None:
        """Start a step: what the one before it remembered counts from now on, unless it was not finite or not whole."""
        failed = self._commit()
        self.unapplied.begin(failed if self.state_names else None)
        self.side_streams.join()
        self.clock.begin_step()
        self.saves.look()
        self.step += 1
        self.held_back.clear()

    def take_back(self) -> int:
        """Undo the synchronised backwards since the last optimizer step, for their gradients are thrown away.

            if norm > limit:
                state.take_back()
                optimizer.zero_grad()
                continue

        Called on all ranks or on none. The memory and the number of steps become what they were at the last optimizer
        step, and `traffic` stays: what was sent was sent. Returns how many backwards were taken back, 0 if there were
        none. Raises RuntimeError, and changes nothing, if the memory has taken over more than the last: put the others
        under no_sync. Steps are those of torch.optim and DeepSpeed optimizers, or writes to parameters under no_grad.
        """
        count, kept = self.unapplied.count()
        if kept:
            raise RuntimeError(
                f"take_back: {count} synchronised backwards since the last optimizer step, of which only the last can "
                f"be taken back and {kept} cannot; run the others under no_sync, or call take_back after each"
            )
        if count:
            self.memory.forget_drafts()
            self.held_back.clear()
            self.failures.clear()
            self.is_whole = True
            self.step -= count
            self.unapplied.clear()
        return count

    def bucket_of(self, parameters: Sequence[Tensor]) -> BucketMemory:
        """Return the place in one flat vector, and the memory, of parameters that are about to be exchanged."""
        names = [self._names[parameter] for parameter in parameters]
        self.held_means.note(names)
        return self.memory.bucket_of(names, parameters)

    def _commit(self) -> Tensor | None:
        """Make the memory of the last step the one that counts, or forget it if that step came to nothing."""
        failed = self.failures.of_step(self.is_whole)
        if failed is not None:
            self.memory.commit(failed)
        self.step = self.finished_steps
        self.failures.clear()
        self.is_whole = True
        return failed
