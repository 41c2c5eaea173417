"""Refuse to train clients as one batch: the rows of compatibility.py about clients.together."""

from __future__ import annotations

from flare_dist.algorithms.excludes import METHOD, OBJECTIVE
from flare_dist.conditions import is_masked, steps_by_name
from flare_dist.exclusion import Exclusion

# fmt: off
ONE_BATCH = [  # rows of clients.together, as if it were always; auto trains one client after another for these reasons
    Exclusion(("clients.together", "mode"), "mode gradient or centralised", lambda c: c.mode != "federated",
              "only federated training has several clients", "use never"),
    Exclusion(("clients.together", "engine.name"), "engine deepspeed or fsdp", lambda c: c.engine.name != "accelerate",
              "this engine trains one client at a time", "use auto or never"),
    Exclusion(("clients.together", "engine.mixed_precision"), "mixed precision",
              lambda c: c.engine.mixed_precision != "no", "mixed precision is for one client at a time",
              "use auto or never"),
    Exclusion(("clients.together", "engine.gradient_accumulation_steps"), "mini-batches in pieces",
              lambda c: c.engine.gradient_accumulation_steps > 1,
              "gradients are accumulated for one client at a time", "use auto or never"),
    Exclusion(("clients.together", OBJECTIVE), "any objective", lambda c: c.clients.objective != "none",
              "an objective is for one client at a time", "use auto or never"),
    Exclusion(("clients.together", "clients.optimizer"), "an optimizer of your own, or muon", steps_by_name,
              "such an optimizer may not go entry by entry", "use auto or never"),
    Exclusion(("clients.together", "clients.keep_optimizer"), "kept optimizers", lambda c: c.clients.keep_optimizer,
              "each client goes on with its own optimizer", "use auto or never"),
    Exclusion(("clients.together", "clients.step_ahead"), "step_ahead", lambda c: c.clients.step_ahead > 0,
              "step_ahead starts each client from another model", "use auto or never"),
    Exclusion(("clients.together", METHOD), "masks", is_masked,
              "masks are for one client at a time", "use auto or never"),
]


def only_always(row: Exclusion) -> Exclusion:
    """Refuse what a row says only if clients.together is always."""
    holds = row.holds
    return row._replace(condition=f"together always with {row.condition}",
                        holds=lambda c: c.clients.together == "always" and holds(c))
