"""Every command of the README and of the site is run, or says what it needs besides the package."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flare_dist import cli
from tests.helpers.forked import RANKS, Forked
from tests.helpers.launching import ENVIRONMENT
from tests.helpers.pages import DOCUMENTS, ROOT, Command, commands

FOUND = [command for path in DOCUMENTS for command in commands(path)]
RUN = [command for command in FOUND if not command.needs]
SHORT = ["--rounds", "2", "--eval_every", "1"]  # what a run here is cut to: the rest is as it is written
TRAINS = {"train", "sweep"}
DATA = ("MNIST", "CIFAR-10", "images", "texts", "plays", "descriptions", "weights")
MACHINES = (
    "GPU",
    "Slurm",
    "nodes",
    "root",
    "network",
    "browser",
    "hours",
    "minutes",
    "core",
    "first line",
    "step above",
)
NEEDS = re.compile("|".join(DATA + MACHINES))


def by_document() -> dict[str, list[str]]:
    """List what each document has to run; a line that an earlier document has is not run again."""
    found: dict[str, list[str]] = {}
    for command in RUN:
        earlier = [line for document, lines in found.items() if document != command.document for line in lines]
        if command.line not in earlier:
            found.setdefault(command.document, []).append(command.line)
    return found


BY_DOCUMENT = by_document()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the directory in which a reader of all documents stands: one with configs/."""
    directory = tmp_path_factory.mktemp("reader")
    (directory / "configs").symlink_to(ROOT / "configs")
    return directory


def shortened(words: list[str]) -> list[str]:
    """Add what makes a run short, unless the command only prints."""
    trains = bool(TRAINS & set(words)) and not {"--help", "--print_config"} & set(words)
    return [*words, *SHORT] if trains else words


@pytest.mark.usefixtures("forked_runs")
@pytest.mark.parametrize("document", BY_DOCUMENT)
def test_commands_run_as_they_are_written(
    document: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone)
    for line in BY_DOCUMENT[document]:
        program, *arguments = shortened(shlex.split(line))
        if program == "flare-dist":
            status = run_here(arguments)
        else:
            assert program == "torchrun", f"{document}: {line}: say what it needs, `# needs ...`"
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
            launched = Forked(launcher, ENVIRONMENT | {RANKS: str(clone / "ranks")}, subprocess.PIPE, subprocess.PIPE)
            print(*launched.communicate(timeout=300))
            status = launched.returncode or 0
        said = capfd.readouterr()
        assert status == 0, f"{document}: {line}\n{said.out[-2000:]}{said.err[-2000:]}"


def run_here(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as end:  # --help and --print_config
        return int(end.code or 0)


def test_commands_that_need_something_say_what() -> None:
    for command in FOUND:
        if command.needs:
            assert NEEDS.search(command.needs), f"{command.document}: {command.line} needs {command.needs}"


def test_files_of_commands_exist() -> None:
    for command in FOUND:
        for name in re.findall(r"\b(?:launch|benchmarks|configs)/[\w./-]+\.\w+", command.line):
            assert (ROOT / name).exists(), f"{command.document} names {name}"


def test_enough_is_run() -> None:
    assert len(RUN) > 40
    assert {"README.md", "docs/start.md", "docs/guides/resume.md"} <= BY_DOCUMENT.keys()
    assert not [
        path.name for path in DOCUMENTS if re.search(r"^```(?:bash|shell|console)", path.read_text(), re.MULTILINE)
    ]


def test_a_command_is_found_with_what_it_needs(tmp_path: Path) -> None:
    path = ROOT / "docs" / "x.md"
    text = "```sh\na b \\\n    c   # comment\n# only a comment\nd   # needs a GPU, hours\n```\n"
    page = tmp_path / "x.md"
    page.write_text(text)
    found = [command._replace(document="x") for command in commands_of(page)]
    assert found == [Command("x", "a b c", ""), Command("x", "d", "a GPU, hours")]
    assert not path.exists()


def commands_of(page: Path) -> list[Command]:
    from unittest.mock import patch

    with patch("tests.helpers.pages.ROOT", page.parent):
        return list(commands(page))
