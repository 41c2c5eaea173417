"""Of ranks whose processes live, the one whose steps stop is named, and nobody who only waits, loads or saves."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore

from flare_dist.comm import heartbeat as module
from flare_dist.comm.heartbeat import heartbeat
from flare_dist.comm.rank_progress import RankProgress
from flare_dist.comm.step_watch import StepWatch
from flare_dist.comm.world import World
from flare_dist.rounds.build_run import build_run, load_parts, resolve_by_model
from flare_dist.run.evaluation import evaluator
from tests.helpers.rounds import DENSE

LIMIT = 10.0


class Ranks:
    """Ranks that tell each other of their progress, on a clock of their own."""

    def __init__(self, size: int) -> None:
        self.progress = [RankProgress() for _ in range(size)]
        store = HashStore()
        self.watches = [StepWatch(store, rank, size, own, LIMIT) for rank, own in enumerate(self.progress)]
        self.alive = dict.fromkeys(range(size), 1)

    def exchange(self) -> None:
        for watch in (*self.watches, *self.watches):  # twice, so that the first ones read of the last ones
            watch.exchange({rank: count for rank, count in self.alive.items() if rank != watch.rank})

    def late(self, seconds: float) -> list[int]:
        """Return whom all name if so many seconds go by before the next exchange."""
        for watch in self.watches:
            watch.begin_again(time.monotonic() - seconds)
        self.exchange()
        found = [watch.late() for watch in self.watches]
        assert all(other == found[0] for other in found)
        return found[0]


def test_the_rank_that_the_others_wait_for_is_named() -> None:
    ranks = Ranks(3)
    with ranks.progress[0].watched(), ranks.progress[1].watched(), ranks.progress[2].watched():
        for progress in ranks.progress:
            progress.advance()
        ranks.progress[0].arrive()
        ranks.progress[2].arrive()
        ranks.exchange()
        assert ranks.late(LIMIT / 2) == []
        assert ranks.late(LIMIT + 1) == [1]
        ranks.progress[1].advance()
        assert ranks.late(LIMIT + 1) == []


def test_a_rank_that_steps_on_its_own_is_no_reason_to_blame_those_that_wait() -> None:
    ranks = Ranks(2)
    with ranks.progress[0].watched(), ranks.progress[1].watched():
        ranks.progress[0].arrive()
        for _ in range(3):
            ranks.progress[1].advance()
            assert ranks.late(LIMIT + 1) == []


def test_loading_saving_and_compiling_are_signs_of_life() -> None:
    ranks = Ranks(2)
    ranks.progress[1].arrive()
    ranks.exchange()
    assert ranks.late(LIMIT + 1) == []  # rank 0 is outside of watched blocks: each exchange shows a sign
    reads = [ranks.progress[0].read() for _ in range(2)]
    assert reads[0] != reads[1]
    with ranks.progress[0].watched():
        assert ranks.progress[0].read() == ranks.progress[0].read()
        with ranks.progress[0].busy():
            assert ranks.progress[0].read() != ranks.progress[0].read()
        ranks.progress[0]._begin_compiling()
        assert ranks.progress[0].read() != ranks.progress[0].read()
        ranks.progress[0]._end_compiling()
        assert ranks.progress[0].read() == ranks.progress[0].read()


def test_compiling_is_noticed_by_torch_s_own_callbacks() -> None:
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    progress = RankProgress()
    with progress.watched():
        with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0/0"):
            assert progress.read() != progress.read()
        assert progress.read() == progress.read()
    progress.close()
    assert progress._begin_compiling not in callback_handler.start_callbacks


class OnGpu:
    """A mark that the GPU reaches when it is told so."""

    def __init__(self) -> None:
        self.is_over = False

    def query(self) -> bool:
        return self.is_over


def test_a_mark_counts_once_the_gpu_has_got_there() -> None:
    """The host gives the GPU work for many steps; the GPU of one rank hangs in the second."""
    marks: list[OnGpu] = []

    def mark() -> OnGpu:
        marks.append(OnGpu())
        return marks[-1]

    progress = RankProgress(mark)
    with progress.watched():
        for _ in range(3):
            progress.arrive()
        assert progress.read()[0] == 0
        for reached in marks[:3]:
            reached.is_over = True
        marks[3].is_over = False
        assert progress.read()[0] == 2
        assert progress.read() == progress.read()


def test_ranks_that_left_are_not_waited_for() -> None:
    ranks = Ranks(2)
    with ranks.progress[0].watched():
        ranks.progress[0].arrive()
        ranks.alive[1] = -1
        ranks.exchange()
        assert ranks.watches[0].late() == []


def test_a_network_that_hangs_is_no_rank_s_fault() -> None:
    ranks = Ranks(2)
    with ranks.progress[0].watched(), ranks.progress[1].watched():
        for progress in ranks.progress:
            progress.arrive()
        ranks.exchange()
        ranks.exchange()
        late = ranks.late(LIMIT + 1)
        assert late == [0, 1]
        assert ranks.watches[0].describe(late).startswith("no rank has advanced for 10 s (engine.step_timeout_seconds)")


def test_a_live_process_whose_steps_stop_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    monkeypatch.setattr(module, "_end", lambda problem, shows_stack=False: named.append(problem))
    store = HashStore()
    progress = [RankProgress(), RankProgress()]
    done = threading.Event()

    def step_alone() -> None:
        while not done.wait(0.05):
            progress[0].advance()

    stepping = threading.Thread(target=step_alone)
    with heartbeat(store, 0, 2, 60.0, progress[0], 1.5), heartbeat(store, 1, 2, 60.0, progress[1], 1.5):
        with progress[0].watched(), progress[1].watched():
            stepping.start()
            end = time.monotonic() + 20
            while not named and time.monotonic() < end:
                time.sleep(0.01)
        done.set()
    stepping.join()
    assert named[0] == "rank 1 has not advanced for 1.5 s (engine.step_timeout_seconds), and the others wait for it"


def test_batches_of_an_evaluation_are_signs_too() -> None:
    given = load_parts(DENSE)
    run = build_run(resolve_by_model(given, "cpu"), World(), given.data, given.parts, given.model)
    run.world.size = 2  # nobody is told of the only rank
    evaluate = evaluator(DENSE, run, given.data)
    before = run.world.progress._signs
    evaluate()
    assert run.world.progress._signs >= before + 2  # that it begins, and its batches
