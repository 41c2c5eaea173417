"""Refuse settings of optimizers that do not go together: rows of compatibility.py about clients and the server."""

from __future__ import annotations

from flare_dist.algorithms.excludes import METHOD
from flare_dist.conditions import conserves, has_own_optimizer, is_fednova, is_masked, keeps_optimizer, steps_by_name
from flare_dist.exclusion import Exclusion

KEEP = "clients.keep_optimizer"

# fmt: off
CLIENT_OPTIMIZERS = (
    Exclusion(("clients.momentum", "clients.optimizer"), "local momentum with an optimizer of your own",
              lambda c: c.clients.momentum > 0 and has_own_optimizer(c), "your own optimizer takes options alone",
              "write it under clients.optimizer_options"),
    Exclusion(("clients.weight_decay", "clients.optimizer"), "weight decay with an optimizer of your own",
              lambda c: c.clients.weight_decay > 0 and has_own_optimizer(c), "your own optimizer takes options alone",
              "write it under clients.optimizer_options"),
    Exclusion(("clients.optimizer", "engine.name"), "an optimizer of your own, or muon, with DeepSpeed",
              lambda c: steps_by_name(c) and c.engine.name == "deepspeed",
              "DeepSpeed's step divides flat parameters among ranks, which has no names", "use engine.name=accelerate"),
    Exclusion(("clients.momentum", "clients.optimizer"), "local momentum with adam, adamw or muon",
              lambda c: c.clients.momentum > 0 and c.clients.optimizer != "sgd",
              "only sgd takes momentum", "set 0, or use clients.optimizer=sgd (muon has clients.muon.momentum)"),
    Exclusion((KEEP, "clients.optimizer", "clients.momentum"), "plain SGD that is to be kept",
              lambda c: keeps_optimizer(c) and c.clients.optimizer == "sgd" and not c.clients.momentum,
              "sgd without momentum has nothing to keep", "set false, or use another optimizer or momentum", ("mode",)),
    Exclusion((KEEP, "engine.name"), "kept optimizers with DeepSpeed or fsdp",
              lambda c: keeps_optimizer(c) and c.engine.name != "accelerate",
              "their optimizers hold parts of the state on several ranks", "use engine.name=accelerate", ("mode",)),
    Exclusion((KEEP, METHOD), "kept optimizers with masks", lambda c: keeps_optimizer(c) and is_masked(c),
              "what an optimizer remembers does not follow masks", "set false, or use dense", ("mode",)),
    Exclusion((KEEP, "server.aggregator"), "kept optimizers with FedNova",
              lambda c: keeps_optimizer(c) and is_fednova(c),
              "fednova counts gradients from a momentum that begins at zero", "use mean", ("mode",)),
    Exclusion((KEEP, "clients.flare.conserve"), "kept optimizers with conserving FLARE",
              lambda c: keeps_optimizer(c) and conserves(c),
              "what the pull has moved is counted from a momentum that begins at zero", "set one of them to false",
              ("mode",)),
)
SERVER_OPTIMIZERS = (
    Exclusion(("server.momentum", "server.optimizer"), "server momentum with an optimizer without one",
              lambda c: bool(c.server.momentum) and not c.server.takes_momentum,
              "this optimizer takes no momentum", "leave it out, or use sgd, fedavgm or rmsprop"),
    Exclusion(("server.nesterov", "server.optimizer", "server.momentum"), "Nesterov momentum with a server without it",
              lambda c: c.server.nesterov and not (c.server.takes_nesterov and c.server.settings.momentum),
              "there is no momentum to look ahead by", "use sgd or fedavgm with a momentum, or set false"),
    Exclusion(("server.betas", "server.optimizer"), "server betas with an optimizer without moments",
              lambda c: c.server.betas is not None and not c.server.takes_betas,
              "this optimizer takes no betas", "leave them out"),
)
