"""Trial of a model before it is trained: whether it takes the data, and how many examples it needs at once.

A trial leaves no trace but what a model makes at its first call (`preserved.preserved`): lazy parameters, whose
values are then drawn from the generators as the caller has seeded them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flare_dist.errors import reason_in_code
from flare_dist.models.task_trial import check_task
from flare_dist.named import WrongResultError
from flare_dist.preserved import preserved
from flare_dist.seeding import CPU, derive_seed, draws_kept, seed_draws, seeded
from flare_dist.tasks.batch import Blank, describe, scores_of
from flare_dist.tasks.losses import OfOutputs, mean_loss
from flare_dist.tasks.metrics import measure
from flare_dist.tasks.task import Batch, Shape, Task

KNOWN = ("torch.nn.modules.", "torchvision.models.", "flare_dist.models.")  # modules that never skip a layer
DRAWS = 16  # of models that may skip layers at random


def check_fit(model: nn.Module, blank: Blank, num_classes: int | None, task: Task) -> None:
    """Raise ValueError with the reason if `model` cannot be evaluated and trained on inputs like `blank`.

    Evaluation comes first: lazy parameters are made there, and norms do not learn from it.
    """
    for training in (False, True):
        _outputs(model, blank, num_classes, task, 2, training)
    unmade = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if unmade:
        shown = ", ".join(unmade[:4])
        raise ValueError(f"has lazy parameters that its forward pass does not reach ({shown}); give them sizes")


def why_not_one(model: nn.Module, blank: Blank, num_classes: int | None, task: Task) -> str | None:
    """Return why `model` cannot be trained on a batch of a single example; None if it can.

    BatchNorm cannot if that is one value a channel, as on maps of 1x1, and works on larger maps: so it is tried.
    """
    with seeded(derive_seed(0, "trial")), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the very failure that is looked for
        try:
            one = _outputs(model, blank, num_classes, task, 1, training=True)
        except ValueError as error:
            return str(error)
        if _is_finite(one) or not _is_finite(_outputs(model, blank, num_classes, task, 2, training=True)):
            return None
    return "gives scores that are not finite"  # as the standard deviation of one example


def unused_parameters(model: nn.Module, blank: Blank, task: Task) -> list[str]:
    """Name the trainable parameters that take no part in the scores of `model`, or not in all of a few draws.

    Raises ValueError with the reason if its scores cannot be differentiated.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    draws = 1 if all(type(part).__module__.startswith(KNOWN) for part in model.modules()) else DRAWS
    with draws_kept(), preserved(model):
        model.train()
        for draw in range(draws):
            seed_draws(derive_seed(0, "trial", draw), CPU)
            try:
                parts = torch.autograd.grad(
                    _forward(model, blank, 2, task).sum(), list(named.values()), allow_unused=True
                )
            except Exception as error:  # whatever somebody's code may raise
                raise ValueError(f"has no gradient: {reason_in_code(error)}") from error
            unused = [name for name, part in zip(named, parts) if part is None]
            if unused:
                return unused
    return []


def constant_buffers(model: nn.Module, batch: Batch, task: Task) -> list[str]:
    """Name the floating-point buffers that a step of training does not change, nor others of their module."""
    floats = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    if not floats:
        return []
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with seeded(derive_seed(0, "trial")), preserved(model):
            mean_loss(task, model.train(), batch)[0].backward()
            changed = {name for name, buffer in model.named_buffers() if not _is_same(buffer, before.get(name))}
            for parameter in model.parameters():
                parameter.grad = None
    except Exception as error:  # whatever somebody's code may raise
        raise ValueError(f"model.name: fails on two examples of the data: {reason_in_code(error)}") from error
    owners = {name.rpartition(".")[0] for name in changed}
    return [name for name in floats if name.rpartition(".")[0] not in owners]


def _is_same(buffer: Tensor, before: Tensor | None) -> bool:
    return before is not None and buffer.shape == before.shape and bool(((buffer == before) | (buffer != buffer)).all())


def has_lazy(model: nn.Module) -> bool:
    """Tell whether parameters or buffers get their sizes at the first call."""
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


def blank_of(input_shape: Shape, dtype: torch.dtype) -> Tensor:
    """Make one input of zeros, [1, ...]."""
    return torch.zeros(1, *input_shape, dtype=dtype)


def _forward(model: nn.Module, blank: Blank, examples: int, task: Task) -> Any:
    """Compute outputs for blank examples; of what is no tensor the loss, and in evaluation the metrics beside it."""
    if isinstance(blank, Tensor):
        return scores_of(model(_copies(blank, examples)))
    if model.training:
        return mean_loss(task, model, blank(examples))[0]
    amount = measure(task, model, blank(examples))["loss"]
    return amount[0] if isinstance(amount, tuple) else amount


def _copies(blank: Tensor, examples: int) -> Tensor:
    return blank.expand(examples, *blank.shape[1:]).clone()


def _is_finite(outputs: Any) -> bool:
    """Tell whether no output is NaN or infinite; only tensors can be."""
    return not isinstance(outputs, Tensor) or bool(outputs.isfinite().all())


def _outputs(model: nn.Module, blank: Blank, num_classes: int | None, task: Task, examples: int, training: bool) -> Any:
    """Compute outputs for blank examples; ValueError with the reason if there are none, or not those of the task."""
    inside: list[nn.Module] = []  # the model, while it runs
    try:
        with preserved(model), torch.set_grad_enabled(training), _noted(model, inside):
            shapes = _buffer_shapes(model)
            outputs = _forward(model.train(training), blank, examples, task)
            others = _buffer_shapes(model)
    except Exception as error:  # whatever somebody's code may raise
        if not inside and not isinstance(blank, Tensor) and not isinstance(task.loss, OfOutputs):
            _blame_task(model, blank(examples), task)
        batch = _described(blank, examples)
        how = "while it trains" if training else "in evaluation"
        raise ValueError(f"does not take {batch} {how}: {reason_in_code(error)}") from error
    expected = None
    if isinstance(blank, Tensor) and task.outputs is not None and num_classes is not None:
        expected = (examples, *task.outputs(tuple(blank.shape[1:]), num_classes))
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if expected is not None and shape != expected:
        are_last = len(expected) > 2 and shape == (expected[0], *expected[2:], expected[1])
        hint = "; move the classes to axis 1, scores.movedim(-1, 1)" if are_last else ""
        raise ValueError(f"must give scores of shape {expected} for a batch of {examples}, got {shape}{hint}")
    changed = next((name for name in shapes if others.get(name) != shapes[name]), None)
    if changed is not None:
        raise ValueError(
            f"changes the shape of its buffer {changed} from {shapes[changed]} to {others.get(changed)}; keep values "
            "that depend on the batch as a plain attribute"
        )
    if not isinstance(outputs, Tensor):
        return outputs
    if training and not outputs.requires_grad and any(p.requires_grad for p in model.parameters()):
        raise ValueError("gives scores without a gradient while it trains; compute them without detach() and no_grad()")
    return outputs.detach()


@contextmanager
def _noted(model: nn.Module, inside: list[nn.Module]) -> Iterator[None]:
    """Keep `model` in the list while its forward pass runs, also after an error of it."""
    handles = (
        model.register_forward_pre_hook(lambda module, inputs: inside.append(module)),
        model.register_forward_hook(lambda module, inputs, outputs: inside.clear()),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blame_task(model: nn.Module, batch: Batch, task: Task) -> None:
    """Raise WrongResultError that names task.name if the user's task fails by itself; else return."""
    try:
        check_task(model, batch, task)
    except ValueError as error:
        raise WrongResultError(str(error)) from error


def _described(blank: Blank, examples: int) -> str:
    if isinstance(blank, Tensor):
        return f"{'a batch of one input' if examples == 1 else 'inputs'} of shape {tuple(blank.shape[1:])}"
    return f"a batch of {examples}, {describe(blank(examples))},"


def _buffer_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if not is_lazy(buffer)}
