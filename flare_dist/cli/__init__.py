"""Run the commands of flare-dist, which COMMANDS lists."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from flare_dist.cli import bandwidth, compatibility, configs, densities, doctor, report, sweeps, training
from flare_dist.comm.group import is_left_over
from flare_dist.comm.last_words import PeerFailedError
from flare_dist.comm.launch import Launch
from flare_dist.comm.leave import run_and_leave
from flare_dist.config.parser import Parser
from flare_dist.errors import ReportedError
from flare_dist.progress import shown_on
from flare_dist.rounds.diverged import DIVERGED, DivergedError

log = logging.getLogger("flare_dist")

# Names a file for errors, which the scripts in launch/ print at the end, after the launcher's own output.
ERRORS = "FLARE_DIST_ERRORS"
SECONDS_FOR_LAUNCHER = 2.0  # to see which rank was the first to end
SECONDS_FOR_RANK_0 = 5.0  # after which the launcher would have ended this rank if rank 0 had the same error

Run = Callable[[Any, Any, Launch, Console], None]
COMMANDS: dict[str, tuple[Callable[[], Parser], Run]] = {
    "train": (training.train_parser, training.run_train),
    "evaluate": (training.evaluate_parser, training.run_evaluate),
    "export": (training.export_parser, training.run_export),
    "partition": (training.partition_parser, training.run_partition),
    "sweep": (sweeps.sweep_parser, sweeps.run_sweep),
    "compare": (sweeps.compare_parser, sweeps.run_compare),
    "bandwidth": (bandwidth.bandwidth_parser, bandwidth.run_bandwidth),
    "report": (report.report_parser, report.run_report),
    "densities": (densities.densities_parser, densities.run_densities),
    "compatibility": (compatibility.compatibility_parser, compatibility.run_compatibility),
    "configs": (configs.configs_parser, configs.run_configs),
    "doctor": (doctor.doctor_parser, doctor.run_doctor),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit status: 0, 1 if training diverged, 2 for wrong input or a disk that cannot be written, 130 for
    Ctrl-C. A rank that fails among others ends its process instead, after its traceback (comm/leave.py).
    """
    launch = Launch.from_environment()
    return run_and_leave(lambda: _run(launch, arguments), launch.rank, is_left_over)


def _run(launch: Launch, arguments: Sequence[str] | None) -> int:
    """Run one command; returns the exit status."""
    console = Console(stderr=True, quiet=launch.rank != 0)
    _start_logging(launch, console)
    if launch.size > 1:
        # A rank that waits in a collective never returns to Python to see an interrupt: let the signal end it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        parsers = _make_parsers(sys.argv[1:] if arguments is None else arguments)
        command, options = _parse(parsers, arguments)
        if options.quiet:
            console.quiet = True
            log.setLevel(max(log.level, logging.WARNING))
        # Ranks share the work of decoding: whichever does it shows it.
        with shown_on(Console(stderr=True, quiet=options.quiet) if launch.rank else console):
            COMMANDS[command][1](parsers[command], options, launch, console)
    except PeerFailedError:
        time.sleep(SECONDS_FOR_LAUNCHER)  # it has been reported
        return 1
    except (ArgumentError, ValueError, ReportedError) as error:
        return _fail(launch, " ".join(str(error).split()), 2)
    except DivergedError as error:
        return _fail(launch, f"{DIVERGED}{error}", 1)
    except KeyboardInterrupt:
        return _fail(launch, "interrupted; the same command continues from the last checkpoint, if there is one", 130)
    return 0


def _fail(launch: Launch, message: str, status: int) -> int:
    """Report the error in one line, once for all ranks, and return the exit status."""
    if ERRORS in os.environ:
        with open(os.environ[ERRORS], "a", encoding="utf-8") as file:
            file.write(f"error: {message}\n")
    elif launch.rank == 0 or launch.local_rank == 0:
        log.error("error: %s", message)
    else:
        time.sleep(SECONDS_FOR_RANK_0)
        sys.stderr.write(f"error: rank {launch.rank}: {message}\n")  # this rank alone has the error
    return status


def _start_logging(launch: Launch, console: Console) -> None:
    """Let rank 0 log, above the progress bar, and the first rank of every other node report errors.

    The rest are silent. Warnings of Python and of libraries are the same on every rank, so rank 0 alone shows them,
    unless `python -W` or PYTHONWARNINGS asks for them.
    """
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    if launch.rank != 0:
        handler = logging.StreamHandler() if launch.local_rank == 0 else logging.NullHandler()
    handler.addFilter(_mark_warning)
    log.handlers = [handler]
    log.setLevel(logging.INFO if launch.rank == 0 else logging.ERROR)
    log.propagate = False
    if launch.rank != 0 and not sys.warnoptions:
        warnings.simplefilter("ignore")


def _mark_warning(record: logging.LogRecord) -> bool:
    """Prefix a warning with the word, as errors are."""
    if record.levelno == logging.WARNING and not str(record.msg).startswith("warning: "):
        record.msg = f"warning: {record.msg}"
    return True


def _make_parsers(arguments: Sequence[str]) -> dict[str, Parser]:
    """Make the parser of the command that comes first, or else every command's: each takes a tenth of a second."""
    names = [name for name in arguments[:1] if name in COMMANDS] or list(COMMANDS)
    parsers = {name: COMMANDS[name][0]() for name in names}
    for parser in parsers.values():
        parser.add_argument(
            "--quiet", action="store_true", help="Show no progress: results, warnings and errors alone."
        )
    return parsers


def _parse(parsers: dict[str, Parser], arguments: Sequence[str] | None) -> tuple[str, Any]:
    """Parse the command line into the name of a command and its options."""
    parser = Parser(
        prog="flare-dist", description="Federated training with sparse updates.", version=version("flare_dist")
    )
    parser.add_argument("--local_rank", type=int | None, default=None, help="Given by some launchers; not used.")
    commands = parser.add_subcommands()
    for name, subparser in parsers.items():
        commands.add_subcommand(name, subparser, help=subparser.description)
    chosen = parser.parse_args(arguments)
    return chosen.subcommand, chosen[chosen.subcommand]
