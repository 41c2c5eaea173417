"""A check that an optimizer steps by what the hook returned: not clipped, not scaled by a scaler unknown to the hook.

A few parameters of each optimizer are its witnesses. Some of their entries are copied when the hook returns them, and
compared with their gradients when the optimizer steps. On a GPU both happen there, and the answer is read when it has
arrived, a step later or more, so that nothing waits for it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_dist.comm.collectives import rank_and_size
from flare_dist.hook.scale import scale_of
from flare_dist.hook.state import SparseHookState

_WITNESSES = 4  # of an optimizer
_ENTRIES = 1024  # of a witness
_STEPS = 100  # that are all checked; then only some
_EVERY = 16
_TOLERANCE = 0.01  # of the largest entry
_CLIPPED = (
    "clipped or scaled after backward, when their full size had left the memory; turn clipping off (max_grad_norm=0, "
    "gradient_clipping: 0); attach(clip_norm=...) clips before anything is sent, but for a preconditioner"
)
_NO_SCALER = "by a GradScaler that the hook does not have; attach with scaler=scaler"


class Witness:
    """The first entries of one parameter's gradient, as the hook returned them last."""

    def __init__(self, parameter: Tensor) -> None:
        self.sent = torch.zeros(min(parameter.numel(), _ENTRIES), device=parameter.device)
        self.is_fresh = False  # True from the exchange until another backward adds to the gradient, or a step
        self._parameter = ref(parameter)
        parameter.register_post_accumulate_grad_hook(self.forget)

    def take(self, returned: Tensor) -> None:
        """Copy some of what the hook returned of this parameter, flat."""
        self.sent.copy_(returned[: len(self.sent)])
        self.is_fresh = True

    def forget(self, parameter: Tensor) -> None:
        """Discard the copy, because a backward adds to the gradient; if it is synchronised, it brings another."""
        self.is_fresh = False

    def gradient(self) -> Tensor | None:
        """Return the same entries of the gradient as it is now, in float32, if they can be compared."""
        parameter = self._parameter()
        gradient = None if parameter is None else parameter.grad
        if not self.is_fresh or gradient is None or gradient.is_sparse or not gradient.is_contiguous():
            return None
        return gradient.detach().view(-1)[: len(self.sent)].float()


class GradientWatch:
    """The witnesses of one optimizer; `check` is to be called before each of its steps."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        """Choose some of its `trained` parameters, on one device; they are witnesses from their first exchange on."""
        fit = [p for p in trained if p.is_contiguous() and p.is_floating_point() and p.device == trained[0].device]
        self._chosen = fit[:: max(1, len(fit) // _WITNESSES)][:_WITNESSES]
        self._witnesses: dict[Tensor, Witness] = {}
        self._state: ref[SparseHookState] | None = None
        self._step = 0  # of the state, when it returned what the witnesses hold
        self._scale: Tensor | None = None
        self._figures: Tensor | None = None  # of an earlier step
        self._event: torch.cuda.Event | None = None  # recorded behind their copy, if they come from a GPU
        self._has_warned = False

    def witnesses_among(self, state: SparseHookState, parameters: Sequence[Tensor]) -> dict[int, Witness]:
        """Return by their place the witnesses among the parameters of a bucket that is about to be exchanged."""
        has_memory = not state.config.is_dense or state.preconditioning.applies
        if self._has_warned or not has_memory or (state.step > _STEPS and state.step % _EVERY):
            return {}
        if self._step != state.step or self._state is None:
            self._state = ref(state)
            self._step = state.step
            self._scale = scale_of(state.scaler, parameters[0].device)
        found = {}
        for place, parameter in enumerate(parameters):
            if any(parameter is chosen for chosen in self._chosen):
                if parameter not in self._witnesses:
                    self._witnesses[parameter] = Witness(parameter)
                found[place] = self._witnesses[parameter]
        return found

    @torch._disable_dynamo
    def check(self, optimizer: Optimizer, *step: Any) -> None:
        """Compare the witnesses' gradients with what the hook returned; warn once if they were changed."""
        self._look()
        pairs = [(own.sent, own.gradient()) for own in self._witnesses.values()]
        known = [(sent, gradient) for sent, gradient in pairs if gradient is not None]
        for own in self._witnesses.values():
            own.is_fresh = False
        state = None if self._state is None else self._state()
        if self._has_warned or not known or state is None or not state.is_whole or state.step != self._step:
            return
        if state.scaler is None and getattr(optimizer, "grad_scale", None) is not None:
            self._warn("will be unscaled inside the step", _NO_SCALER)
            return
        sent = torch.cat([sent for sent, _ in known])
        gradients = torch.cat([gradient for _, gradient in known])
        self._keep(_compare(sent, gradients, self._scale))
        self._look()

    def _keep(self, figures: Tensor) -> None:
        """Copy the figures of one step to the CPU without waiting for them, unless earlier ones are on their way."""
        if self._figures is not None:
            return
        if figures.is_cuda:
            arrived = torch.empty(figures.shape, pin_memory=True)
            arrived.copy_(figures, non_blocking=True)
            self._event = torch.cuda.current_stream(figures.device).record_event()
            figures = arrived
        self._figures = figures

    def _look(self) -> None:
        """Read the figures that have arrived by now."""
        if self._figures is None or (self._event is not None and not self._event.query()):
            return
        change, largest_change, largest_sent, largest, factor = self._figures.tolist()
        self._figures = self._event = None
        if largest == 0 or largest_sent == 0 or not change > _TOLERANCE:  # zero_grad, nothing arrived; NaN is no change
            return
        is_scaled = largest_change <= _TOLERANCE * largest_sent
        how = f"are {factor:.3g} times what the hook returned" if is_scaled else "are not what the hook returned"
        state = None if self._state is None else self._state()
        has_scaler = state is not None and state.scaler is not None
        self._warn(how, _NO_SCALER if is_scaled and not has_scaler and _is_of_scaler(factor) else _CLIPPED)

    def _warn(self, how: str, why: str) -> None:
        self._has_warned = True
        self._witnesses.clear()
        state = None if self._state is None else self._state()
        if state is None or rank_and_size(state.process_group)[0] == 0:  # what changes them does so on all ranks
            warnings.warn(f"the gradients that the optimizer steps by {how}: {why}", stacklevel=2)


def _is_of_scaler(factor: float) -> bool:
    """Tell if this is one over a power of two, as scales of losses are, and as hardly any norm is."""
    if not 0 < factor < 1:
        return False
    mantissa, _ = math.frexp(factor)
    return abs(mantissa - 0.5) < 1e-5 or abs(mantissa - 1) < 1e-5


def _compare(sent: Tensor, gradients: Tensor, scale: Tensor | None) -> Tensor:
    """Compare gradients with what was sent; float32 [5] on their device.

    | relative change, unscaled or not | largest rest beside a factor | largest sent | largest gradient | factor |
    """
    largest_sent = sent.abs().amax()
    change = (gradients - sent).abs().amax() / largest_sent
    if scale is not None:
        unscaled = (gradients * scale - sent).abs().amax() / largest_sent
        change = torch.minimum(change, unscaled)
    factor = gradients.dot(sent) / sent.dot(sent)
    rest = (gradients - factor * sent).abs().amax() / factor.abs()
    return torch.stack([change, rest, largest_sent, gradients.abs().amax(), factor])
