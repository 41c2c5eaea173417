"""Tell which models can be trained for many clients as one batch, and how many clients there is room for."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from flare_dist.clients.stacked import forward, stack
from flare_dist.preserved import preserved
from flare_dist.seeding import seeded, states_outside_torch

REFUSED: list[tuple[type[nn.Module], str]] = [
    (_BatchNorm, "BatchNorm, whose statistics would count what fills unequal batches up"),
    (_DropoutNd, "dropout, which would not draw as for one client after another"),
    (nn.RNNBase, "recurrent layers, whose kernels take one set of weights"),
]
REFUSALS = (RuntimeError, TypeError, ValueError, UserWarning)  # the last is a loop over the clients in disguise

MOST_ON_CPU = 16  # a CPU is busy with one client, and memory there is not ours alone
MOST_ON_GPU = 256  # beyond it kernels are long and launches cost nothing any more


def why_not_batchable(model: nn.Module, blank: Tensor) -> str | None:
    """Say why clients of `model`, which is on the CPU, cannot be trained as one batch; None if they can.

    `blank` is one input, [1, ...]. Looks for layers that do not allow it, then tries two clients with weights that are
    not the initial ones, since these may hide what a layer does (a branch that begins with zeros).
    """
    for kind, reason in REFUSED:
        if any(isinstance(part, kind) for part in model.modules()):
            return f"the model has {reason}"
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        return "the model has weights that are not float32"
    with preserved(model):
        return _why_not_two(model.train(), blank)


def _why_not_two(tried: nn.Module, blank: Tensor) -> str | None:
    """Say why two clients cannot be trained as one batch; the model is left as they leave it."""
    buffers = list(tried.buffers())
    unchanged = [buffer.clone() for buffer in buffers]
    draws = torch.Generator().manual_seed(0)
    inputs = _drawn_inputs(tried, blank, draws)
    start = {name: value for name, value in tried.named_parameters() if value.requires_grad}
    stacked = dict(zip(start, stack(start, 2)))
    for values in stacked.values():
        values.data.add_(torch.randn(values.shape, generator=draws), alpha=0.1)
    try:
        with seeded(0), warnings.catch_warnings():
            warnings.filterwarnings("error", "There is a performance drop")
            before = states_outside_torch()
            scores = forward(tried, stacked, inputs)
            if states_outside_torch() != before:  # vmap sees what torch draws
                return "the model draws from numpy or random, which would be one draw for all clients of a batch"
            torch.autograd.grad(scores.sum(), list(stacked.values()), allow_unused=True)
            alone = forward(tried, stacked, inputs[:, :1])
    except REFUSALS as error:
        return f"torch.func.vmap does not take the model ({str(error).strip().splitlines()[0]})"
    if not torch.allclose(scores[:, :1], alone, rtol=1e-3, atol=1e-4):
        return "the model's examples are not independent of the others in their batch"
    is_same = [one is other for one, other in zip(buffers, tried.buffers(), strict=True)]
    if not all(is_same) or not all(map(torch.equal, buffers, unchanged)):
        return "the model changes its buffers"
    return None


def _drawn_inputs(model: nn.Module, blank: Tensor, draws: torch.Generator) -> Tensor:
    """Draw inputs like `blank` for two clients with three examples each, [2, 3, ...]."""
    inputs = blank.expand(2, 3, *blank.shape[1:]).clone()
    if inputs.is_floating_point():
        return inputs.normal_(generator=draws)
    known = [part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)]
    return inputs.random_(0, min(known, default=1), generator=draws)


def most_clients(model: nn.Module, blank: Tensor, batch_size: int, device: torch.device, is_fixed: bool = False) -> int:
    """Compute how many clients to train as one batch on `device`; `model` is on the CPU, `blank` one input, [1, ...].

    On a GPU they may take a quarter of its free memory (`ClientStates` leaves as much): six vectors of the model's size
    (values, gradients, two of Adam's, a temporary, deltas), and what an example keeps for its backward pass four times
    over (gradients and workspaces; a rule of thumb). With `is_fixed` it is a quarter of all its memory, so that the
    number, on which bits depend, does not depend on who else uses the GPU.
    """
    if device.type != "cuda":
        return MOST_ON_CPU
    total = sum(parameter.numel() for parameter in model.parameters())
    free, capacity = torch.cuda.mem_get_info(device)
    room = capacity if is_fixed else free
    return max(1, min(MOST_ON_GPU, room // 4 // (4 * (6 * total + 4 * batch_size * kept_for_backward(model, blank)))))


def kept_for_backward(model: nn.Module, blank: Tensor) -> int:
    """Count the entries of all tensors that a forward pass of one example keeps, the weights among them."""
    kept: list[int] = []

    def count(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    with preserved(model), seeded(0), saved_tensors_hooks(count, lambda saved: saved):
        model(blank)
    return sum(kept)
