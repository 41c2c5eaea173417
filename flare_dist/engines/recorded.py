"""Record the tensor operations of a small model's step, and call them without autograd.

More than half of a small model's step on a CPU is bookkeeping of autograd and the dispatcher. If a model's Python does
nothing but call layers, the operations of a forward and a backward pass are the same for all batches of one shape. They
are recorded once, below autograd, and called directly from then on. The same kernels in the same order give the same
bits, which is checked before a recording is used.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode

from flare_dist.seeding import draws_kept, states_outside_torch
from flare_dist.tasks.losses import mean_criterion
from flare_dist.tasks.task import Batch, Count, Task

LARGEST = 2**20  # weights; beyond it kernels are long and calling them costs nothing any more
SHAPES = 4  # of batches that are recorded; clients' last batches may have any
KNOWN = ("torch.nn.modules.", "torchvision.models.", "flare_dist.models.")  # whose modules do the same at every call

# (*tensors, inputs, labels) -> (number of labels that count, mean loss, gradient of each tensor)
Recording = Callable[..., tuple[Any, ...]]


class NotRecordableError(Exception):
    """Signal that a pass does something that a list of operations cannot do again."""


class Recorder(TorchDispatchMode):
    """Record every operation whose result is new: memory of the same address and layout is the same value here."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._alive: list[Tensor] = []  # so that no address is given away twice
        self._nodes: dict[tuple[Any, ...], fx.Node] = {}
        for number, tensor in enumerate(inputs):
            if tensor.numel() and _place(tensor) in self._nodes:
                raise NotRecordableError("two inputs that are the same memory")
            self._add(tensor, self.graph.placeholder(f"input_{number}"))

    def node(self, value: Any) -> Any:
        """Return the node that stands for `value`; raises NotRecordableError for a tensor that comes from elsewhere."""
        if not isinstance(value, Tensor):
            return value
        if _place(value) not in self._nodes:
            raise NotRecordableError("a tensor that is neither parameter nor input")
        return self._nodes[_place(value)]

    def _add(self, tensor: Tensor, node: fx.Node) -> None:
        self._alive.append(tensor)
        self._nodes.setdefault(_place(tensor), node)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tags = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if func._schema.is_mutable or tags & set(func.tags):
            raise NotRecordableError(str(func))
        inputs = fx.node.map_aggregate(args, self.node)
        named = fx.node.map_aggregate(kwargs, self.node)
        result = func(*args, **kwargs)
        function = _shortest(func, args, kwargs, result)
        if isinstance(result, Tensor):
            if _place(result) not in self._nodes:
                self._add(result, self.graph.call_function(function, inputs, named))
            return result
        if not isinstance(result, tuple | list):
            raise NotRecordableError(str(func))
        results = self.graph.call_function(function, inputs, named)
        for number, part in enumerate(result):
            if isinstance(part, Tensor):
                self._add(part, self.graph.call_function(operator.getitem, (results, number)))
        return result


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _shortest(func: Any, args: Any, kwargs: Any, result: Any) -> Callable[..., Any]:
    """Find the fastest function with this result: torch's own takes a third of the time of an operation's overload."""
    name = func._schema.name.removeprefix("aten::")
    for function in (getattr(torch, name, None), getattr(Tensor, name, None)):
        if function is not None and isinstance(result, Tensor):
            try:
                other = function(*args, **kwargs)
            except (TypeError, RuntimeError):  # it has other arguments
                continue
            if isinstance(other, Tensor) and _place(other)[1:] == _place(result)[1:] and torch.equal(other, result):
                return function
    return func


def why_not_recorded(model: nn.Module) -> str | None:
    """Return why the steps of `model` must not be recorded; None if they may be."""
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return "it is large"
    if any(True for _ in model.buffers()):
        return "it has buffers, which may change"
    hooks = [getattr(modules, name) for name in vars(modules) if name.startswith("_global_") and "hooks" in name]
    hooks += [p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters()]
    if any(hooks):
        return "there are hooks on its parameters or on all modules"
    return next(filter(None, map(_why_not_module, model.modules())), None)


def _why_not_module(part: nn.Module) -> str | None:
    """Say why the calls of one module, its submodules aside, must not be recorded; None if they may be."""
    name = type(part).__name__
    if not type(part).__module__.startswith(KNOWN):
        return f"its {name} may do something else at every call"
    own = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    if any(own) or part._compiled_call_impl is not None:
        return f"its {name} has hooks or is compiled"
    if any(callable(value) and not isinstance(value, nn.Module | nn.Parameter) for value in vars(part).values()):
        return f"its {name} has been given a function"
    return None


class Recordings:
    """Keep the recordings of one model, one for each of the first few shapes of batches that it is trained on.

    Only its weights may change after that: it must be given neither hooks nor frozen parameters.
    """

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor], task: Task) -> None:
        self._model = model
        self._task = task
        self._tensors = tensors
        self._by_shape: dict[tuple[Any, ...], Recording | None] = {}

    def step(self, values: Sequence[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor], Count] | None:
        """Return (mean loss, gradient of each tensor, how many labels count) of a batch at the weights `values`.

        None if autograd has to take the step. In training mode only: dropout, which is not recorded, would be nothing
        at all in the other.
        """
        if not self._model.training:
            return None
        if not (isinstance(batch, tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
            return None
        inputs, labels = batch
        shape = (inputs.shape, inputs.stride(), inputs.dtype, labels.shape, labels.stride(), labels.dtype)
        if shape not in self._by_shape:
            if len(self._by_shape) == SHAPES:
                return None
            self._by_shape[shape] = record(self._model, self._tensors, inputs, labels, self._task)
        recording = self._by_shape[shape]
        if recording is None:
            return None
        count, loss, *gradients = recording(*values, inputs, labels)
        return loss, gradients, count


def record(model: nn.Module, tensors: Sequence[Tensor], inputs: Tensor, labels: Tensor, task: Task) -> Recording | None:
    """Record a step on batches of these shapes.

    `tensors` are the parameters of `model`. None if a pass cannot be recorded, or does not repeat its bits.
    """
    try:
        recorder = Recorder([*tensors, inputs, labels])
        with draws_kept(), recorder:  # if it comes to nothing, the step that is taken instead draws anew
            before = states_outside_torch()
            loss, count = mean_criterion(task, model(inputs), labels)
            results = (loss, *torch.autograd.grad(loss, tensors))
            if states_outside_torch() != before:
                raise NotRecordableError("a draw from numpy or random, which would be the same at every step")
        recorder.graph.output(tuple(recorder.node(result) for result in (count, *results)))
    except (NotRecordableError, RuntimeError):
        return None
    recorder.graph.eliminate_dead_code()
    recording: Recording = fx.GraphModule({}, recorder.graph).forward
    _, *again = recording(*[tensor.detach() for tensor in tensors], inputs, labels)
    return recording if all(torch.equal(one, other) for one, other in zip(results, again)) else None
