"""The steps of a small model as the list of tensor operations that they come to, called without autograd.

More than half of a small model's step on a CPU is bookkeeping of autograd and the dispatcher. For batches of one shape
the operations of a forward and a backward pass are always the same, where a model's Python does nothing else: they are
recorded once, below autograd, and called directly from then on. The same kernels in the same order give the same bits,
which is seen to before a recording is used.
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
from flare_dist.tasks.task import Task, mean_criterion

LARGEST = 2**20  # weights; beyond it kernels are long and calling them costs nothing any more
SHAPES = 4  # of batches that are recorded; clients' last batches may have any
KNOWN = ("torch.nn.modules.", "torchvision.models.", "flare_dist.models.")  # whose modules do the same at every call

Recording = Callable[..., tuple[Tensor, ...]]


class NotRecordableError(Exception):
    """A pass does something that a list of operations cannot do again."""


class Recorder(TorchDispatchMode):
    """Writes every operation down whose result is new: memory of the same place and form is the same value here."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._alive: list[Tensor] = []  # for no place in memory to be given away twice
        self._nodes: dict[tuple[Any, ...], fx.Node] = {}
        for number, tensor in enumerate(inputs):
            if tensor.numel() and _place(tensor) in self._nodes:
                raise NotRecordableError("two inputs that are the same memory")
            self._know(tensor, self.graph.placeholder(f"input_{number}"))

    def node(self, value: Any) -> Any:
        """What stands for `value`; raises NotRecordableError for a tensor that comes from elsewhere."""
        if not isinstance(value, Tensor):
            return value
        if _place(value) not in self._nodes:
            raise NotRecordableError("a tensor that is neither parameter nor input")
        return self._nodes[_place(value)]

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        self._alive.append(tensor)
        self._nodes.setdefault(_place(tensor), node)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tags = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if func._schema.is_mutable or tags & set(func.tags):
            raise NotRecordableError(str(func))
        inputs, named = fx.node.map_aggregate(args, self.node), fx.node.map_aggregate(kwargs, self.node)
        result = func(*args, **kwargs)
        function = _shortest(func, args, kwargs, result)
        if isinstance(result, Tensor):
            if _place(result) not in self._nodes:
                self._know(result, self.graph.call_function(function, inputs, named))
            return result
        if not isinstance(result, tuple | list):
            raise NotRecordableError(str(func))
        together = self.graph.call_function(function, inputs, named)
        for number, part in enumerate(result):
            if isinstance(part, Tensor):
                self._know(part, self.graph.call_function(operator.getitem, (together, number)))
        return result


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _shortest(func: Any, args: Any, kwargs: Any, result: Any) -> Callable[..., Any]:
    """What to call for an operation with this result: torch's own function takes a third of the time of an overload."""
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
    """Why the steps of `model` are not to be recorded; None where they may be."""
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return "it is large"
    if any(True for _ in model.buffers()):
        return "it has buffers, which may change"
    hooks = [getattr(modules, name) for name in vars(modules) if name.startswith("_global_") and "hooks" in name]
    hooks += [p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters()]
    if any(hooks):
        return "there are hooks on its parameters or on all modules"
    for part in model.modules():
        if not type(part).__module__.startswith(KNOWN):
            return f"its {type(part).__name__} may do something else at every call"
        own = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        if any(own) or part._compiled_call_impl is not None:
            return f"its {type(part).__name__} has hooks or is compiled"
        if any(callable(value) and not isinstance(value, nn.Module | nn.Parameter) for value in vars(part).values()):
            return f"its {type(part).__name__} has been given a function"
    return None


class Recordings:
    """Of one model, a recording for each of the first few shapes of batches that it is trained on.

    Nothing else may become of the model than other weights: neither hooks nor frozen parameters.
    """

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor], task: Task) -> None:
        self._model = model
        self._task = task
        self._tensors = tensors
        self._by_form: dict[tuple[Any, ...], Recording | None] = {}

    def of(self, inputs: Tensor, labels: Tensor) -> Recording | None:
        """What `record` makes of batches like this one; None where the step has to be taken in the usual way.

        In training mode only: dropout, which is not recorded, would be nothing at all in the other.
        """
        if not self._model.training:
            return None
        form = (inputs.shape, inputs.stride(), inputs.dtype, labels.shape, labels.stride(), labels.dtype)
        if form not in self._by_form:
            if len(self._by_form) == SHAPES:
                return None
            self._by_form[form] = record(self._model, self._tensors, inputs, labels, self._task)
        return self._by_form[form]


def record(model: nn.Module, tensors: Sequence[Tensor], inputs: Tensor, labels: Tensor, task: Task) -> Recording | None:
    """A function (*tensors, inputs, labels) -> (mean loss, gradient of each tensor), for batches of these shapes.

    `tensors` are the parameters of `model`. None where a pass cannot be recorded, or does not repeat its bits.
    """
    try:
        recorder = Recorder([*tensors, inputs, labels])
        with draws_kept(), recorder:  # if it comes to nothing, the step that is taken instead draws anew
            before = states_outside_torch()
            loss, _ = mean_criterion(task, model(inputs), labels)
            results = (loss, *torch.autograd.grad(loss, tensors))
            if states_outside_torch() != before:
                raise NotRecordableError("a draw from numpy or random, which would be the same at every step")
        recorder.graph.output(tuple(recorder.node(result) for result in results))
    except (NotRecordableError, RuntimeError):
        return None
    recorder.graph.eliminate_dead_code()
    recording: Recording = fx.GraphModule({}, recorder.graph).forward
    again = recording(*[tensor.detach() for tensor in tensors], inputs, labels)
    return recording if all(torch.equal(one, other) for one, other in zip(results, again)) else None
