"""Keep a model's parameters, gradient and floating-point buffers in one flat vector each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from flare_dist.engines.flat_buffers import FlatBuffers
from flare_dist.layout import bind_parameters, dtypes_of, parameter_layout


class FlatModel:
    """Bind a model to flat vectors, and bind it again after a forward pass that replaced a parameter or a buffer.

    `parameters`, `gradient` (float32 [total]) and `buffers` (float32 [b]) are the model's current values. Weights of
    bfloat16 are rounded copies: the vector is what is stepped, by gradients added up in float32, and `refresh` rounds
    it for the model after each step. Otherwise steps of less than 1/256 of a weight would be lost.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = parameter_layout(module)
        self.dtypes = dtypes_of(module)
        self.parameters, self.gradient = bind_parameters(module, self.layout)
        named = dict(module.named_parameters())
        # The parameters one by one, in the layout's order, and the views of their values and gradients.
        self.tensors = [named[entry.name] for entry in self.layout.entries]
        self.values = [value for _, value in self.layout.views(self.parameters)]
        self.gradients = [gradient for _, gradient in self.layout.views(self.gradient)]
        self._halves = [
            (parameter, value) for parameter, value in zip(self.tensors, self.values) if parameter.dtype != value.dtype
        ]
        for parameter, gradient in zip(self.tensors, self.gradients):
            if parameter.dtype != gradient.dtype:
                parameter.register_post_accumulate_grad_hook(_adder(gradient))
        self._buffers = FlatBuffers(module)
        self.buffer_layout = self._buffers.layout
        self.buffers = self._buffers.vector

    @property
    def is_rounded(self) -> bool:
        """Tell whether the model computes with rounded copies of some parameters."""
        return bool(self._halves)

    def refresh(self) -> None:
        """Round what has been stepped for a model of lower precision."""
        for parameter, value in self._halves:
            parameter.data.copy_(value)

    def stepped(self, by_name: bool) -> dict[str, nn.Parameter]:
        """Return what an optimizer steps, with its gradients: the flat vector, or each tensor in it by its name."""
        pairs = {"parameters": (self.parameters, self.gradient)}
        if by_name:
            named = self.layout.views(self.parameters)
            pairs = {name: (value, own) for (name, value), own in zip(named, self.gradients)}
        parameters = {name: nn.Parameter(value) for name, (value, _) in pairs.items()}
        for name, (_, gradient) in pairs.items():
            parameters[name].grad = gradient
        return parameters

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values, and the buffers that no vector holds their initial ones.

        `parameters` of lower precision in the model are rounded in the vector too.
        """
        self.take_back()
        self.parameters.copy_(parameters)
        for parameter, value in self._halves:
            parameter.data.copy_(value)
            value.copy_(parameter.detach())
        self._buffers.load(buffers)

    def take_back(self) -> None:
        """Move parameters that a forward pass put elsewhere (`weight.data = ...`, as limits on norms do) back."""
        for parameter, value in zip(self.tensors, self.values):
            if parameter.data_ptr() != value.data_ptr() and parameter.dtype == value.dtype:
                value.copy_(parameter.detach())
                parameter.data = value

    def bind_gradients(self) -> None:
        """Let backward passes add to the flat gradient, which is zeroed."""
        self.gradient.zero_()
        for parameter, gradient in zip(self.tensors, self.gradients):
            if parameter.dtype == gradient.dtype:
                parameter.grad = gradient

    def collect(self) -> None:
        """Bring buffers that are not in the flat vector, or that the model replaced, back into it."""
        self._buffers.collect()


def _adder(gradient: Tensor) -> Callable[[Tensor], None]:
    """Return a hook that moves what backward passes leave at a parameter of lower precision to the flat gradient."""

    def add(parameter: Tensor) -> None:
        if parameter.grad is not None:
            gradient.add_(parameter.grad)
            parameter.grad = None

    return add
