"""Exchange gradients sparsely inside Lightning's Trainer, whose own `ddp_comm_hook` is ignored on CPUs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from flare_dist.engines.attach import attach, is_engine
from flare_dist.engines.callback_run import CallbackRun, HookRun
from flare_dist.engines.callback_settings import Advice, check_trainer
from flare_dist.engines.outer_run import OuterRun, check_given
from flare_dist.errors import not_installed, printable

_LIBRARIES = ("lightning.pytorch", "pytorch_lightning")  # one library under two names, with classes of their own


def _library() -> Any:
    """Return Lightning under the name by which it has been imported, or under any."""
    for name in _LIBRARIES:
        if sys.modules.get(name) is not None:
            return sys.modules[name]
    try:
        return import_module(_LIBRARIES[0])
    except ModuleNotFoundError as error:
        if error.name not in ("lightning", _LIBRARIES[0]):
            raise
    try:
        return import_module(_LIBRARIES[1])
    except ModuleNotFoundError as error:
        if error.name != "pytorch_lightning":
            raise
        raise not_installed("LightningHookCallback", "lightning", "'flare_dist[lightning]'") from error


Callback: Any = _library().Callback
_ADVICE = Advice("torch.optim.SGD in configure_optimizers", "Trainer(gradient_clip_val=None)")


class LightningHookCallback(Callback):
    """Attach the sparse hook when training starts, and keep its memory beside Lightning's checkpoints.

        trainer = lightning.Trainer(..., strategy="ddp", callbacks=[flare_dist.LightningHookCallback(density=0.01)])

    `settings` are those of `flare_dist.attach`; the optimizers and the loss scaler are handed over by themselves.
    Each rank writes its memory to PATH.hook beside a checkpoint PATH, by whomever it is saved, and loads it from there
    if `ckpt_path` is given to fit; it goes when Lightning removes the checkpoint. Checkpoints to resume from are on a
    local disk. `hook` is what `attach` or `outer` returned, None until training starts.

    With `outer`, the settings of `flare_dist.outer`, ranks are replicas that train alone and exchange every so many
    steps. Lightning validates and saves the global weights; each replica's own, and its optimizers' state, are beside
    the checkpoint. All replicas end with the same weights.

    Args:
        resume_from: directory of the memory, if it is not beside the checkpoint. Used once.
        outer: settings of outer steps; then there are no others.
    """

    def __init__(
        self, resume_from: str | Path | None = None, outer: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        check_given("LightningHookCallback", outer, settings)
        self._run = CallbackRun()
        self._outer = outer
        self._steps = 0  # of the trainer, when one was last counted
        self._settings = settings
        self._resume_from = resume_from
        self._step: int | None = None  # of the memory that goes with the checkpoint that was loaded
        self._strategy: Any = None  # that saves both

    @property
    def hook(self) -> Any:
        """Return what `attach` or `outer` returned, None until training starts."""
        return self._run.hook

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the model as the strategy has wrapped it; the checkpoint is loaded by now."""
        for each in trainer.checkpoint_callbacks:  # now, and not after the first steps
            if not getattr(each, "save_weights_only", False):
                _refuse_remote(getattr(each, "dirpath", None))
        self._run = self._begin(trainer)
        self._steps = trainer.global_step
        if self._strategy is not trainer.strategy:
            self._save_with(trainer.strategy)
        if trainer.ckpt_path is not None or self._resume_from is not None:
            step = self._step if self._resume_from is None else None
            self._run.load(Path(self._resume_from or _of_checkpoint(trainer.ckpt_path)), step)
            self._resume_from = None

    def _begin(self, trainer: Any) -> CallbackRun:
        model = trainer.strategy.model
        if self._outer is not None:
            return OuterRun("LightningHookCallback", model, trainer.optimizers, self._outer)
        clips = trainer.gradient_clip_val
        check_trainer("LightningHookCallback", self._settings, trainer.optimizers, model, clips, _ADVICE)
        settings = dict(self._settings)
        if not is_engine(model):  # whose scale is its own
            settings["scaler"] = getattr(trainer.precision_plugin, "scaler", None)
        return HookRun(attach(model, optimizer=trainer.optimizers, **settings))

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        """Take an outer step if the optimizers have stepped and one is due."""
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self._run.step()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validate the global weights."""
        self._run.show_global()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Go on with this replica's own weights."""
        self._run.hide_global()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let all replicas end with the same weights."""
        self._run.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint notes of the memory."""
        return {} if self.hook is None else {"step": self.hook.finished_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the checkpoint notes of the memory."""
        self._step = state_dict.get("step")

    def _save_with(self, strategy: Any) -> None:
        """Save and remove the memory of each rank when `strategy` does so with a checkpoint.

        Nothing else of Lightning's is called on every rank and knows the checkpoint's path.
        """
        save = strategy.save_checkpoint
        remove = strategy.remove_checkpoint

        def save_both(checkpoint: dict[str, Any], filepath: str | Path, *options: Any, **named: Any) -> None:
            goes_along = self.hook is not None and "optimizer_states" in checkpoint  # it is one to resume from
            if goes_along:
                _refuse_remote(filepath)
            with self._run.global_weights():  # whose memory the checkpoint shares
                save(checkpoint, filepath, *options, **named)
            if goes_along:
                self._run.save(_beside(filepath))

        def remove_both(filepath: str | Path) -> None:
            is_link = os.path.islink(filepath)  # to a checkpoint that stays
            remove(filepath)
            if not (is_link or _is_remote(filepath)) and getattr(strategy, "local_rank", 0) == 0:
                shutil.rmtree(_beside(filepath), ignore_errors=True)

        strategy.save_checkpoint = save_both
        strategy.remove_checkpoint = remove_both
        self._strategy = strategy


def _beside(checkpoint: str | Path) -> Path:
    """Name the directory of the memory that goes with a checkpoint; links are not followed."""
    return Path(f"{Path(checkpoint)}.hook")


def _of_checkpoint(checkpoint: str | Path) -> Path:
    """Name the directory of the memory to load with a checkpoint, or with the one that it is a link to."""
    _refuse_remote(checkpoint)
    return _beside(os.path.realpath(checkpoint))


def _is_remote(path: str | Path | None) -> bool:
    return "://" in str(path)


def _refuse_remote(path: str | Path | None) -> None:
    """Raise ValueError for a URL, since the memory is written to local disks only."""
    if _is_remote(path):
        raise ValueError(
            f"LightningHookCallback: the memory beside a checkpoint needs a local path, got {printable(str(path))}; "
            "give ModelCheckpoint a local dirpath or save_weights_only=True, and fit a local copy as ckpt_path"
        )
