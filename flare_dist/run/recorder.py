"""The records that a run leaves as it goes: rows, the best model, the final one, the summary. Rank 0 writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from flare_dist.comm.failures import on_all_ranks
from flare_dist.config.config import Config
from flare_dist.data.holdings import CARD_CLIENTS, as_markdown, holdings
from flare_dist.json_lines import encoded
from flare_dist.records import rundir
from flare_dist.records.files import write_text
from flare_dist.records.summary import is_best, summarise
from flare_dist.records.tracking import Tracker
from flare_dist.rounds.build_run import Loaded, Run
from flare_dist.run.blame import blamed
from flare_dist.run.evaluation import evaluator
from flare_dist.run.export import save_global
from flare_dist.run.preprocessing import as_json, describe, header

OnRound = Callable[[dict[str, Any]], None]  # is given the row of a round


@contextmanager
def open_recorder(
    given: Loaded,
    run: Run,
    rows: list[dict[str, Any]],
    console: Console,
    first_round: int = 1,
    on_round: OnRound | None = None,
) -> Iterator[Recorder]:
    """Open the logs of a run that goes on after `rows`; all ranks enter it together.

    `first_round` is the first round of this configuration.
    """
    config = given.config
    described = describe(given.data)
    opened: Any = nullcontext()
    with on_all_ranks(run.world):
        if run.world.rank == 0:
            write_text(Path(config.output_dir) / rundir.PREPROCESSING, as_json(described))
            texts = {"partition": as_markdown(holdings(given.parts, given.data, CARD_CLIENTS))}
            opened = Tracker(config, rows, console, run.task.best, first_round, texts)
    with opened as tracker:
        evaluate = evaluator(config, run, given.data) if run.world.host_number == 0 else dict
        yield Recorder(config, run, tracker, evaluate, header(described), on_round)


class Recorder:
    """Keep the records of one run. All ranks call its methods together; an error of rank 0 is raised by all."""

    def __init__(
        self,
        config: Config,
        run: Run,
        tracker: Tracker | None,
        evaluate: Callable[[], dict[str, Any]],
        texts: dict[str, str],
        on_round: OnRound | None = None,
    ) -> None:
        """Take rank 0's `tracker`, None on others, a function that measures the global model, and the texts of models.

        `on_round` is called after each round with its row, as far as this rank knows it.
        """
        self.config = config
        self.run = run
        self.directory = Path(config.output_dir)
        self.tracker = tracker
        self.is_host_0 = run.world.host_number == 0  # all of whose ranks evaluate and save
        self.evaluate = evaluate
        self.texts = texts
        self.on_round = on_round

    def begin(self, beginning: dict[str, Any]) -> None:
        """Record the model before the first round, and what the beginning of masks took."""
        with on_all_ranks(self.run.world):
            if self.is_host_0:
                self._write({"round": 0} | self._evaluated(0) | beginning)

    def write(self, row: dict[str, Any], is_saved: bool) -> None:
        """Record a round, with an evaluation if one is due; if a checkpoint follows, the logs are on the disk first."""
        config = self.config
        is_due = row["round"] == config.rounds or config.mode == "gradient" or row["round"] % config.eval_every == 0
        with on_all_ranks(self.run.world):
            if self.is_host_0:
                row |= self._evaluated(row["round"]) if is_due else {}
                self._write(row)
            if self.tracker and is_saved:
                self.tracker.sync()
            if self.on_round:
                self.on_round(row)

    def finish(self) -> dict[str, Any]:
        """Write the final model and the summary; returns the summary, {} on ranks other than 0."""
        summary: dict[str, Any] = {}
        with on_all_ranks(self.run.world):
            if self.is_host_0:
                save_global(self.directory / rundir.MODEL, self.run, self.texts)
            if self.tracker:
                engine = self.config.engine
                hardware = {"device": engine.device, "ranks": self.run.world.size, "threads": engine.threads}
                summary = summarise(self.tracker.rows, self.tracker.elapsed_seconds, hardware, self.run.task.best)
                write_text(self.directory / rundir.SUMMARY, encoded(summary, indent=1))
        return summary

    def _evaluated(self, round_: int) -> dict[str, Any]:
        with blamed(self.config, round_, self.run.world.rank):
            return self.evaluate()

    def _write(self, row: dict[str, Any]) -> None:
        """Write one row to the logs, and the model if it is the best so far; all ranks of host 0 together."""
        is_new_best = self.tracker is not None and is_best(row, self.tracker.rows, self.run.task.best)
        if self.run.world.host.sums([int(is_new_best)]) != [0]:
            save_global(self.directory / rundir.BEST, self.run, self.texts)
        if self.tracker:
            self.tracker.write(row)
