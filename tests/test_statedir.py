"""Runs whose clients' memory lies in files: the bits of runs in memory, whatever happens to them on the way."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist.clients.mapped_states import FileStates
from flare_dist.comm import last_words
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.config.load import load_config
from flare_dist.records import statedir
from flare_dist.studies.grid import Grid
from flare_dist.studies.sweep import check_settings
from tests.helpers.runs import assert_same_run, results, start, start_rank, tiny
from tests.ranks import run_ranks

RULES = {
    "ec": CompressionConfig(density=0.02),
    "dgc": CompressionConfig(density=0.02, error_feedback="dgc"),
}


def spilling(directory: Path, rule: str = "ec", **changes: Any) -> Config:
    """A run whose clients have their memory in a folder beside the run directory."""
    clients = dataclasses.replace(tiny(directory).clients, state_dir=str(directory) + "-states")
    return tiny(directory, compression=RULES[rule], clients=clients, **changes)


def states(directory: Path) -> Path:
    return Path(str(directory) + "-states")


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in states(directory).glob("*/*.bin"))


def resume(path: Path) -> CheckpointConfig:
    return CheckpointConfig(every=2, resume=str(path))


@pytest.fixture(scope="module", params=RULES)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in memory without interruption, and its rule."""
    directory = tmp_path_factory.mktemp("straight")
    start(tiny(directory, compression=RULES[request.param]), 2)
    return directory, request.param


def test_files_give_the_bits_of_memory(straight: tuple[Path, str], tmp_path: Path) -> None:
    expected, rule = straight
    start(spilling(tmp_path / "run", rule), 2)
    assert_same_run(expected, tmp_path / "run")
    assert files(tmp_path / "run")
    saved = torch.load(max((tmp_path / "run" / "checkpoints").iterdir()) / "rank-00001.pt")
    assert saved["clients"] == {}
    assert saved["slots"]["versions"]
    assert {client % 2 for client in saved["slots"]["versions"]} == {1}


def start_and_die(world: World, config: Config, lends: int) -> None:
    """Rank 1 is killed by kill -9 while a client trains, with half of a change in its file."""
    lend, count = FileStates.lend, 0

    def lend_or_die(self: FileStates, client: int) -> Any:
        nonlocal count
        count += 1
        if count == lends:
            with lend(self, client) as state:
                state["residual"][::2] = 7.0
                os.kill(os.getpid(), signal.SIGKILL)
        return lend(self, client)

    last_words.SECONDS_TO_BE_HEARD = 0.1  # rank 1 will not listen
    if world.rank == 1:
        FileStates.lend = lend_or_die  # type: ignore[method-assign]
    start_rank(world, config, None)


@pytest.mark.parametrize(("lends", "ranks"), [(1, 2), (6, 2), (6, 3)])
def test_killed_amid_a_client_and_continued_equals_straight(
    straight: tuple[Path, str], tmp_path: Path, lends: int, ranks: int
) -> None:
    expected, rule = straight
    config = spilling(tmp_path / "run", rule)
    with pytest.raises(RuntimeError, match=r"terminated abruptly|Connection"):  # of the rank that died, or of the other
        run_ranks(start_and_die, 2, config, lends)
    start(config, ranks)
    assert_same_run(expected, tmp_path / "run", wire=ranks == 2)
    named = files(tmp_path / "run")
    assert all(name.partition("-")[0] in "01234" for name in named)
    assert len(named) <= 2 * 5  # of each client those of the two checkpoints that are kept


@pytest.mark.parametrize(("how", "parity"), [("missing", 0), ("cut", 1)])
def test_a_file_that_is_not_whole_makes_all_ranks_fall_back(
    straight: tuple[Path, str], tmp_path: Path, how: str, parity: int
) -> None:
    expected, rule = straight
    config = spilling(tmp_path / "run", rule)
    start(config, 2, kill_in_round=5)
    newest = [torch.load(p)["slots"] for p in sorted((tmp_path / "run/checkpoints/round-00000004").glob("*.pt"))]
    before = {client for s in newest for client, number in s["superseded"].get(4, [])}
    client = next(client for client in newest[parity]["versions"] if client in before)
    path = next(states(tmp_path / "run").glob(f"*/{client}-{newest[parity]['versions'][client][0]}.bin"))
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-4])
    start(config, 2)
    assert_same_run(expected, tmp_path / "run")


def test_a_flipped_bit_ends_the_run_with_the_name_of_the_file(tmp_path: Path) -> None:
    config = spilling(tmp_path / "run")
    start(config, kill_in_round=5)
    for path in states(tmp_path / "run").glob("*/*.bin"):
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"clients\.state_dir: .*-\d\.bin is damaged"):
        start(config)


@pytest.mark.parametrize(("first", "second"), [("memory", "files"), ("files", "memory"), ("files", "files")])
def test_another_run_goes_on_whichever_way_it_remembers(
    straight: tuple[Path, str], tmp_path: Path, first: str, second: str
) -> None:
    expected, rule = straight

    def make(way: str, name: str, **changes: Any) -> Config:
        if way == "files":
            return spilling(tmp_path / name, rule, **changes)
        return tiny(tmp_path / name, compression=RULES[rule], **changes)

    start(make(first, "one"), 2, kill_in_round=5)
    if first == "files":
        before = {path: path.read_bytes() for path in states(tmp_path / "one").glob("*/*.bin")}
    start(make(second, "two", checkpoint=resume(tmp_path / "one")), 2)
    assert torch.equal(*(results(path)[0]["1.weight"] for path in (expected, tmp_path / "two")))
    assert results(expected)[1] == results(tmp_path / "two")[1]
    if first == "files":
        assert all(path.read_bytes() == content for path, content in before.items())


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    one = spilling(tmp_path / "one")
    start(one, kill_in_round=3)
    two = dataclasses.replace(one, output_dir=str(tmp_path / "two"), checkpoint=resume(tmp_path / "one"))
    with pytest.raises(
        ValueError, match=r"^clients\.state_dir: .*one-states holds the memory of the clients of .*/one"
    ):
        start(two)
    with statedir.claim(one), pytest.raises(ValueError, match=r"^clients\.state_dir: another run is writing to"):
        start(one)
    start(one)
    shutil.move(tmp_path / "one", tmp_path / "moved")
    statedir.check(dataclasses.replace(one, output_dir=str(tmp_path / "moved")))
    with pytest.raises(ValueError, match=r"/one, which is not there any more; remove it, or choose another"):
        statedir.check(dataclasses.replace(two, checkpoint=CheckpointConfig()))
    (tmp_path / "one-states" / statedir.OWNER).unlink()
    with pytest.raises(ValueError, match="a run that left no name"):
        statedir.check(two)
    (tmp_path / "one-states" / statedir.OWNER).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^clients\.state_dir: .* cannot be read"):
        statedir.check(two)
    (tmp_path / "one-states" / statedir.OWNER).unlink()
    shutil.rmtree(tmp_path / "one-states" / "00000")
    statedir.check(two)


def test_a_sweep_is_several_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^clients\.state_dir: belongs to one run"):
        check_settings(spilling(tmp_path), Grid({"clients.lr": ["0.1"]}, {}, [0]))


def test_starting_over_removes_what_was_remembered(tmp_path: Path) -> None:
    start(spilling(tmp_path / "run"), kill_in_round=5)
    left = files(tmp_path / "run")
    start(spilling(tmp_path / "run", rounds=1, checkpoint=CheckpointConfig(resume="never")))
    assert files(tmp_path / "run") != left
    assert all(name.endswith("-1.bin") for name in files(tmp_path / "run"))
    start(tiny(tmp_path / "run", rounds=1, checkpoint=CheckpointConfig(resume="never")))
    assert files(tmp_path / "run") == []


def test_another_directory_is_another_configuration(tmp_path: Path) -> None:
    start(spilling(tmp_path / "run"), kill_in_round=3)
    with pytest.raises(ValueError, match=r"different: clients\.state_dir"):
        start(tiny(tmp_path / "run"))


def relative(directory: Path, **changes: Any) -> Config:
    """A run whose clients have their memory in a folder of the directory where it is started."""
    clients = dataclasses.replace(tiny(directory).clients, state_dir="st")
    return tiny(directory, **{"compression": RULES["ec"], "clients": clients, **changes})


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two directories to start commands from; the first is the present one."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_relative_path_is_the_same_from_elsewhere(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = places / "run"
    start(relative(places / "straight"))
    shutil.rmtree("st")
    start(relative(run), kill_in_round=5)
    monkeypatch.chdir(places / "there")
    start(relative(run))
    start(relative(run))  # which is finished
    assert_same_run(places / "straight", run)
    assert not list((places / "there").iterdir())
    assert statedir.state_dir_of(run) == places / "here" / "st"
    assert load_config(run / "config.yaml").data.root == str(places / "there" / "data")


def test_a_run_is_moved_with_its_states(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(relative(places / "straight"))
    shutil.rmtree("st")
    start(relative(places / "run"), kill_in_round=5)
    shutil.move(places / "run", places / "there" / "run")
    shutil.move(places / "here" / "st", places / "there" / "st")
    monkeypatch.chdir(places / "there")
    start(relative(places / "there" / "run"))
    assert_same_run(places / "straight", places / "there" / "run")
    assert statedir.state_dir_of(places / "there" / "run") == places / "there" / "st"


def test_states_that_are_not_there_are_missed_before_the_run_starts(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = places / "run", places / "run" / "config.yaml"
    start(relative(run), kill_in_round=5)
    config.write_text(config.read_text().replace(str(places / "here" / "st"), "st"))  # as older versions wrote it
    monkeypatch.chdir(places / "there")
    with pytest.raises(ValueError, match=r"^clients\.state_dir: .* relative to the start of its command: start"):
        start(relative(run))
    with pytest.raises(
        ValueError, match=r"^checkpoint\.resume: the memory of the clients of .* is not in st; start from"
    ):
        start(tiny(places / "two", compression=RULES["ec"], checkpoint=resume(run)))
    assert not list((places / "there").iterdir())
    monkeypatch.chdir(places / "here")
    start(relative(run))
    (run / "summary.json").unlink()
    moved = dataclasses.replace(relative(run).clients, state_dir="/nowhere/st")
    with pytest.raises(ValueError, match=r"^clients\.state_dir: .* is not in /nowhere/st, the run had it in .*/st;"):
        start(relative(run, clients=moved))
