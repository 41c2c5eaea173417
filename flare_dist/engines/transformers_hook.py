"""Exchange gradients sparsely inside transformers.Trainer and what is built on it, TRL's trainers for example."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.engines.attach import attach, is_engine
from flare_dist.engines.callback_run import CallbackRun, HookRun
from flare_dist.engines.callback_settings import Advice, check_trainer
from flare_dist.engines.outer_run import OuterRun, check_given
from flare_dist.errors import not_installed

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise not_installed("HookCallback", "transformers", "'flare_dist[hf]'") from error

_ADVICE = Advice("optim='sgd'", "max_grad_norm=0", "TrainingArguments(..., {})")


class HookCallback(TrainerCallback):
    """Attach the sparse hook when training begins, and keep its memory in the Trainer's checkpoints.

        trainer = Trainer(..., callbacks=[flare_dist.HookCallback(density=0.01)])

    `settings` are those of `flare_dist.attach`; the Trainer's optimizer and loss scaler are handed over by themselves.
    Each rank writes its memory to output_dir/checkpoint-{global_step} and loads it from there if the Trainer resumes;
    both go and are rotated together. `hook` is what `attach` or `outer` returned, None until training begins.

        trainer = Trainer(..., callbacks=[flare_dist.HookCallback(outer={"preset": "sparseloco"})])

    With `outer`, the settings of `flare_dist.outer`, ranks are replicas that train alone and exchange every so many
    steps. The Trainer evaluates and saves the global weights; each replica's own, and its optimizer's state, are beside
    them. All replicas end with the same weights.

    Args:
        resume_from: directory of the memory, if the Trainer resumes from a checkpoint outside its output_dir, or takes
            its weights from elsewhere. Used once.
        outer: settings of outer steps; then there are no others.
    """

    def __init__(
        self, resume_from: str | Path | None = None, outer: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        check_given("HookCallback", outer, settings)
        self._run = CallbackRun()
        self._outer = outer
        self._settings = settings
        self._resume_from = resume_from
        self._attached: Callable[[], nn.Module | None] = lambda: None

    @property
    def hook(self) -> Any:
        """Return what `attach` or `outer` returned, None until training begins."""
        return self._run.hook

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        """Attach to the model as the Trainer has wrapped it; its checkpoint is loaded by now."""
        wrapped = _wrapped(model, optimizer)
        if self._attached() is not wrapped:  # a second train() may go on with the same
            self._run = self._begin(args, wrapped, optimizer)
            self._attached = weakref.ref(wrapped)
        if state.global_step or self._resume_from is not None:
            self._run.load(Path(self._resume_from or _checkpoint(args, state)))
            self._resume_from = None

    def _begin(self, args: Any, wrapped: nn.Module, optimizer: Any) -> CallbackRun:
        if self._outer is not None:
            return OuterRun("HookCallback", wrapped, [optimizer], self._outer)
        check_trainer("HookCallback", self._settings, optimizer, wrapped, args.max_grad_norm, _ADVICE)
        settings = dict(self._settings)
        if not is_engine(wrapped):  # whose scale is its own
            settings["scaler"] = getattr(optimizer, "scaler", None)
        return HookRun(attach(wrapped, optimizer=optimizer, **settings))

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Write this rank's memory beside the weights, unless the checkpoint is none to resume from."""
        if not (args.save_only_model or state.is_hyper_param_search):
            self._run.save(_checkpoint(args, state))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Take an outer step if one is due."""
        self._run.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Let the Trainer evaluate and save the global weights; the next event gives each replica its own back."""
        if control.should_evaluate or control.should_save:
            self._run.show_global()

    on_epoch_end = on_step_end

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Go on with this replica's own weights."""
        self._run.hide_global()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Let all replicas end with the same weights; the best ones, if the Trainer has loaded them, are."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._run.leave()
        else:
            self._run.finish()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _wrapped(model: nn.Module, optimizer: Any) -> nn.Module:
    """Return the DistributedDataParallel object or the engine around `model`, or the model if there is none.

    The Trainer shows its callbacks the bare model alone, which does not know who holds it: Python does. If there are
    several, an earlier attempt with another batch size made them, and DeepSpeed's hooks on the model keep its engine:
    the one that goes with the Trainer's `optimizer` is trained.
    """
    found = _holders(model)
    if len(found) > 1:
        gc.collect()
        found = _holders(model)
    if len(found) > 1:
        inner = getattr(optimizer, "optimizer", None)  # under Accelerate's wrapper
        found = [each for each in found if inner is not None and getattr(each, "optimizer", None) is inner] or found
    if len(found) > 1:
        raise ValueError(
            f"HookCallback: one DistributedDataParallel object or engine is to hold the model, got {len(found)} "
            "DistributedDataParallel objects or engines; delete the others before training"
        )
    return found[0] if found else model


def _holders(model: nn.Module) -> list[nn.Module]:
    objects = gc.get_objects()
    # By type, since isinstance would run the code of objects that pretend to be of another class.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, nn.Module)}
    modules = [each for each in objects if type(each) in kinds]
    around = [each for each in modules if vars(each).get("_modules", {}).get("module") is model]
    return [each for each in around if isinstance(each, DistributedDataParallel) or is_engine(each)]
