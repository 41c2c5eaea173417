"""The record of one method: what clients and the server remember for it, what travels, and what is done with it.

An `Algorithm` sees flat float32 vectors and numbers. Its functions, but for `wraps`, see neither the configuration of a
run nor ranks nor bytes, so a method is one file: a function from its settings to a record. Records compose in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from flare_dist.exclusion import Exclusion
from flare_dist.layout import ParameterLayout

Vectors = dict[str, Tensor]  # flat vectors by name, float32 [total]


class LocalWork(NamedTuple):
    """The numbers of one client's round, known before anybody trains."""

    round: int  # from 1
    steps: int  # local steps
    lr: float  # of the local optimizer in this round
    momentum: float
    shrinking: float = 1.0  # by which factor a local step shrinks what earlier steps have moved (a proximal term)
    gradients: float = 1.0  # the number of gradients by which the delta is normalised before the wire


class Trained(NamedTuple):
    """The result of a client's training: its model delta, and the work behind it."""

    delta: Tensor  # local - where the client started; the trainer's own vector, which may be changed in place
    work: LocalWork


def as_it_is(vector: Tensor) -> Tensor:
    """Return the vector of a rank that has all of it."""
    return vector


@dataclass(frozen=True)
class LocalContext:
    """The givens of one client's training in one round, fixed while it trains; the vectors are read only."""

    layout: ParameterLayout
    round: int  # from 1
    lr: float  # of the local optimizer in this round
    momentum: float
    global_parameters: Tensor
    memory: Mapping[str, Tensor]  # all that the client remembers by name, its residual as well
    server: Mapping[str, Tensor]  # what the server remembers, as far as clients are told
    starts_at_global: bool = False  # the first step is taken at the global parameters themselves
    mask: Tensor | None = None  # bool [total]: of a sparse model, what the client begins with
    # A vector of which each rank of the host has a part, put together; all of them call it alike.
    of_all_shards: Callable[[Tensor], Tensor] = as_it_is


@dataclass(frozen=True)
class Penalty:
    """The gradient of what is added to the loss.

    `add_gradient` adds it at `local` to `gradient` in place, once for each local step, in order. It is active for the
    first `steps` local steps, None = all; the local optimizer starts afresh when it ends. `moved`, if given, is how
    far the penalty alone has moved the local model so far: not part of the model delta.
    """

    add_gradient: Callable[[Tensor, Tensor], None]  # (gradient, local)
    steps: int | None = None
    moved: Tensor | None = None


class Mean(Protocol):
    """The mean of the deltas that were received: a vector, or entries alone if the server has a plain step."""

    def mul_(self, factor: float, /) -> Any: ...


@dataclass(frozen=True)
class Senders:
    """The clients whose payloads were accepted."""

    works: Mapping[int, LocalWork]  # by client
    weights: Mapping[int, float]  # of the cohort's weights, which sum to 1
    num_clients: int  # of the whole federation

    def mean(self, number: Callable[[LocalWork], float]) -> float:
        """Average one of their numbers, by weight."""
        present = math.fsum(self.weights.values())
        return math.fsum(weight * number(self.works[client]) for client, weight in self.weights.items()) / present


Brief = Callable[[LocalWork], LocalWork]
MakePenalty = Callable[[LocalContext], Penalty | None]
BeforeWire = Callable[[Trained, Vectors, Vectors], Vectors]  # (trained, the client's memory, the server's)
AfterWire = Callable[[Mean, Vectors, Senders], None]  # (mean delta, the server's memory, senders)
AfterRound = Callable[[Vectors, Vectors, Senders], None]  # (means of the other payloads, the server's memory, senders)
Wraps = Callable[..., Any]  # (round, cohort, federation) -> rounds/uplink.py's Uplink
# (what the server keeps of a client, float32 [total], which changes; indices and values of a payload) -> its delta
Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]


def everybody_alike(work: LocalWork) -> LocalWork:
    """Leave the numbers as they are."""
    return work


def no_penalty(context: LocalContext) -> None:
    """Train on the loss alone."""


def the_delta(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
    """Send the delta."""
    return {"delta": trained.delta}


def the_mean(mean_delta: Mean, server: Vectors, senders: Senders) -> None:
    """Step by the mean delta as it is."""


def nothing(means: Vectors, server: Vectors, senders: Senders) -> None:
    """Leave the server's memory as it is."""


class Algorithm(NamedTuple):
    """One method; the defaults are FedAvg (McMahan et al. 2017).

    A vector of the server with the name of a payload is held by every rank and sent to the round's clients, as the
    global parameters are. The others are the server's own; the step is taken on rank 0 alone if there are any.
    """

    memory: tuple[str, ...] = ()  # vectors that each client remembers, zero at first; checkpoints have them by name
    server: tuple[str, ...] = ()  # vectors that the server remembers, likewise
    sends: tuple[str, ...] = ("delta",)  # payloads of a client, each with an error feedback of its own
    brief: Brief = everybody_alike  # before anybody trains, on every rank
    penalty: MakePenalty = no_penalty  # adds to the gradient of local steps; None leaves plain local training
    before_wire: BeforeWire = the_delta  # may change the delta and the client's memory in place; not if it was rejected
    after_wire: AfterWire = the_mean  # makes the server's step of the mean delta in place, on the ranks that step
    after_round: AfterRound = nothing  # moves what clients are told, on every rank
    wraps: Wraps | None = None  # opens a round's uplink around that of whole models, as masks of sparse models do
    estimate: Estimate | None = None  # if sparse payloads change a vector of each client that the server keeps as well
    excludes: tuple[Exclusion, ...] = ()  # settings with which it is refused

    @property
    def told(self) -> tuple[str, ...]:
        """Name the vectors of the server that clients are sent."""
        return tuple(name for name in self.server if name in self.sends)

    @property
    def remembers_alone(self) -> bool:
        """Tell whether the server's step depends on vectors that rank 0 alone keeps."""
        return len(self.told) < len(self.server)


FEDAVG = Algorithm()
