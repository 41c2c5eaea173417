"""A model is placed without a wrapper, with the threads that were asked for."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.placement import place
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.engines import CPU, sgd, small_net

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_placing_adds_no_wrapper() -> None:
    net = small_net()
    assert place(EngineConfig(threads=1), net, CPU)[1] is net
    AcceleratorState._reset_state(True)
    assert AccelerateModel(EngineConfig(threads=1), net, CPU, sgd, CLASSIFICATION).module is net


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(threads: int) -> None:
    torch.set_num_threads(3 - threads)
    place(EngineConfig(threads=threads), small_net(), CPU)
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_model_on_another_device_than_the_run_is_refused() -> None:
    with pytest.raises(AssertionError, match="Accelerate chose cpu, not cuda"):
        place(EngineConfig(), small_net(), torch.device("cuda"))
