"""The tables of the study of outer steps, from the file of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from adamw_table import divided, with_spread
from outer_study_plan import Plan, best_rates, is_inside, tuned
from outer_study_rows import Row, Setting
from outer_study_ways import OVERLAPS

from flare_dist.analysis.links import Link

LINKS = (Link.parse("100Mbps"), Link.parse("1Gbps"))
HEADER = (
    *("method", "H", "rate", "outer", "validation", "test", "more than DDP"),
    *("MB sent", "of DDP's", "min at 100 Mbit", "at 1 Gbit", "trials", "seeds"),
)
NAMES = {
    "ddp": "DDP",
    "diloco": "DiLoCo",
    "sparseloco": "SparseLoCo",
    "hook": "the hook",
    "muloco": "MuLoCo",
    "local_sgd": "local SGD",
    "muon": "DDP with Muon",
    "muon_steps": "Muon's moves",
}
GOAL_NATS = 0.02  # that SparseLoCo may be behind DiLoCo
GOAL_TIMES = 100  # fewer bytes


@dataclass(frozen=True)
class Result:
    """A setting at its best rates so far."""

    plan: Plan
    best: Sequence[Row]  # its runs at these rates, the seed that tuned first
    trials: int
    has_ended: bool

    @property
    def test_loss(self) -> float:
        return mean(row.test_loss for row in self.best)

    @property
    def wire_bytes(self) -> float:
        return mean(row.wire_bytes for row in self.best)

    def seconds_on(self, link: Link) -> float:
        """Project the seconds of a run on a link; each replica has a core of the machine that measured it.

        The sum of compute and wire; the larger of both, which is the least possible, for what is sent during backward.
        """
        replicas = self.plan.setting.replicas
        compute = mean(row.cpu_seconds for row in self.best) / replicas
        wire = link.seconds(self.wire_bytes, mean(row.collectives for row in self.best), replicas)
        return max(compute, wire) if self.plan.setting.method in OVERLAPS else compute + wire


def name(setting: Setting) -> str:
    """Name a method with what is not as the preset says."""
    return ", ".join([NAMES[setting.method], *setting.settings.split()])


def window(setting: Setting) -> str:
    """Write the steps of a window, for what has one."""
    return "" if setting.method in OVERLAPS else str(setting.every)


def results_of(rows: Sequence[Row], plans: Sequence[Plan]) -> list[Result]:
    """Select the runs at the best rates of each setting that has some."""
    found = [_result(rows, plan) for plan in plans]
    return [result for result in found if result is not None]


def _result(rows: Sequence[Row], plan: Plan) -> Result | None:
    tried = tuned(rows, plan.setting, plan.seeds[0])
    rates = best_rates(tried)
    if rates is None:
        return None
    own = [row for row in rows if row.run.setting == plan.setting]
    best = [row for row in own if (row.run.lr, row.run.outer_lr) == rates]
    has_ended = is_inside(tried) if plan.follows is None else not plan.wanted(rows, tried)
    return Result(plan, best, len(tried), has_ended)


def results_table(results: Sequence[Result]) -> list[list[str]]:
    """Write a line for each result of one size of the model, compared with DDP."""
    ddp = next((result for result in results if result.plan.setting.method == "ddp"), None)
    return [[*_tuned_in_words(result), *_cost_in_words(result, ddp)] for result in results]


def _tuned_in_words(result: Result) -> list[str]:
    run = result.best[0].run
    return [
        name(result.plan.setting),
        window(result.plan.setting),
        f"{run.lr:g}{'' if result.has_ended else '*'}",
        f"{run.outer_lr:g}" if run.outer_lr else "",
        with_spread([row.validation_loss for row in result.best]),
        with_spread([row.test_loss for row in result.best]),
    ]


def _cost_in_words(result: Result, ddp: Result | None) -> list[str]:
    return [
        f"{result.test_loss - ddp.test_loss:+.3f}" if ddp else "",
        f"{result.wire_bytes / 1e6:,.4g}" if result.wire_bytes < 1e9 else f"{result.wire_bytes / 1e6:,.0f}",
        part(result.wire_bytes / ddp.wire_bytes) if ddp else "",
        *(f"{result.seconds_on(link) / 60:.2f}" for link in LINKS),
        str(result.trials),
        str(len(result.best)),
    ]


def part(share: float) -> str:
    """Write a share as one over what it goes into."""
    return "1" if share == 1 else f"1/{1 / share:,.0f}"


def trials_table(rows: Sequence[Row], plans: Sequence[Plan]) -> list[list[str]]:
    """Write a line for each setting: the validation losses of the first seed at all rates, least rates first."""
    lines = []
    for plan in plans:
        tried = tuned(rows, plan.setting, plan.seeds[0])
        losses = [f"{lr:g}{f' & {outer:g}' if outer else ''}: {tried[lr, outer]:.3f}" for lr, outer in sorted(tried)]
        lines.append([name(plan.setting), window(plan.setting), "; ".join(losses) or "to come"])
    return lines


def verdicts(results: Sequence[Result]) -> list[str]:
    """Compare SparseLoCo with DiLoCo of the same window, and say if it has reached the goal."""
    plain = {
        (result.plan.setting.method, result.plan.setting.every): result
        for result in results
        if not result.plan.setting.settings
    }
    lines = []
    for (method, every), sparse in plain.items():
        if method == "sparseloco" and ("diloco", every) in plain:
            lines.append(_verdict(sparse, plain["diloco", every], every))
    return lines


def _verdict(sparse: Result, dense: Result, every: int) -> str:
    behind = sparse.test_loss - dense.test_loss
    times = dense.wire_bytes / sparse.wire_bytes
    reached = behind <= GOAL_NATS and times >= GOAL_TIMES
    goal = f"The goal, {GOAL_NATS:g} at 1/{GOAL_TIMES}, is {'' if reached else 'not '}reached"
    so_far = "" if sparse.has_ended and dense.has_ended else ", before the searches have ended"
    runs = f"{len(sparse.best)} and {len(dense.best)} runs"
    where = "behind" if behind > 0 else "ahead of"
    return (
        f"- H = {every}{so_far}: SparseLoCo is {abs(behind):.3f} nats {where} DiLoCo with 1/{times:.1f} of its bytes "
        f"({runs}). {goal}."
    )


def to_come(rows: Sequence[Row], plans: Sequence[Plan]) -> list[str]:
    """Name the settings that still need runs."""
    lines = []
    for plan in plans:
        if plan.missing(rows) or not plan.done(rows):
            steps = window(plan.setting)
            done = f" ({plan.done(rows)} done)" if plan.done(rows) else ""
            lines.append(name(plan.setting) + (f" at H = {steps}" if steps else "") + done)
    return lines


def by_size(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Divide plans by the width of the model and the steps of a run."""
    sizes = divided((plan.setting.width, plan.setting.steps) for plan in plans)
    return [[plans[number] for number in own] for own in sizes.values()]
