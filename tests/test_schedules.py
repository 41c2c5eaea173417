"""Schedules: how they are written, where they begin and end, and what is refused."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from flare_dist.clients.config import ClientsConfig
from flare_dist.schedules import FORMS, SCHEDULES, parse_schedule
from flare_dist.server.config import ServerConfig

WELL_FORMED = ["constant", "linear", "cosine", "exponential:0.01", "exponential:1", "exponential:3", "step:0.1@2,5"]
MALFORMED = [
    "constant:1",
    "linear:2",
    "cosine:0.5",
    "exponential",
    "exponential:",
    "exponential:0",
    "exponential:-1",
    "exponential:x",
    "exponential:nan",
    "exponential:0.1@0",
    "exponential:0.1@x",
    "exponential:0.1@",
    "exponential:inf",
    "step",
    "step:0.1",
    "step:0.1@",
    "step:@3",
    "step:x@3",
    "step:nan@3",
    "step:inf@3",
    "step:-0.1@3",
    "step:0.1@x",
    "step:0.1@3,",
    "step:0.1@1.5",
]
UNKNOWN = ["", "sawtooth", "Linear", " linear", ":0.1", "0.1"]


def factors(text: str, rounds: int = 10) -> list[float]:
    schedule = parse_schedule(text, "clients.lr_schedule")
    return [schedule(round_, rounds) for round_ in range(1, rounds + 1)]


@pytest.mark.parametrize("text", WELL_FORMED)
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_schedules_start_at_one_and_stay_positive(text: str, rounds: int) -> None:
    assert factors(text, rounds)[0] == 1
    assert all(factor > 0 for factor in factors(text, rounds))


def test_exponential_over_a_fixed_number_of_rounds_does_not_depend_on_how_many_are_played() -> None:
    """FLASH's code: the rate falls by the same factor each round and would reach its end after 1000."""
    short, long = (parse_schedule("exponential:0.01@1000", "clients.lr_schedule")(101, n) for n in (200, 2000))
    assert short == long == pytest.approx(0.01 ** (100 / 1000))
    assert parse_schedule("exponential:0.01@1000", "clients.lr_schedule")(1, 5) == 1.0


@pytest.mark.parametrize("text", [text for text in WELL_FORMED if text != "exponential:3"])
def test_schedules_never_rise(text: str) -> None:
    assert factors(text) == sorted(factors(text), reverse=True)


def test_every_schedule_is_tested_and_says_how_it_is_written() -> None:
    assert {text.partition(":")[0] for text in WELL_FORMED} == set(SCHEDULES) == set(FORMS)


def test_constant_linear_and_step_have_these_factors() -> None:
    assert factors("constant") == [1.0] * 10
    assert factors("linear") == pytest.approx([round_ / 10 for round_ in range(10, 0, -1)])
    assert factors("step:0.5@3,5,9") == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125, 0.125]
    assert factors("step:0@10") == [1.0] * 9 + [0.0]


def test_cosine_is_half_down_half_way_and_symmetric() -> None:
    cosine = factors("cosine")
    assert cosine[5] == pytest.approx(0.5)
    assert [cosine[i] + cosine[10 - i] for i in range(1, 10)] == pytest.approx([1.0] * 9)
    assert cosine[-1] == pytest.approx(math.sin(math.pi / 20) ** 2)  # by the half-angle formula


@pytest.mark.parametrize("final", [0.01, 1.0, 3.0])
def test_exponential_reaches_its_end_in_equal_ratios(final: float) -> None:
    values = factors(f"exponential:{final}")
    assert values[-1] == final
    ratio = final ** (1 / 9)
    assert [b / a for a, b in pairwise(values)] == pytest.approx([ratio] * 9)


@pytest.mark.parametrize("key", ["clients.lr_schedule", "server.lr_schedule"])
@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_schedules_name_the_key_and_the_form(text: str, key: str) -> None:
    message = f"{key}: cannot read the schedule, got {text!r}; write {FORMS[text.partition(':')[0]]}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_schedule(text, key)


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_schedules_name_the_key_and_the_choices(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"^clients\.lr_schedule: unknown choice, got .*hoose from constant, linear, cosine, .*package\.module",
    ):
        parse_schedule(text, "clients.lr_schedule")


def test_configurations_refuse_what_is_no_schedule() -> None:
    with pytest.raises(ValueError, match=r"^clients\.lr_schedule: cannot read the schedule, got 'step:x@3'"):
        ClientsConfig(lr_schedule="step:x@3")
    with pytest.raises(ValueError, match=r"^server\.lr_schedule: unknown choice, got 'cos'"):
        ServerConfig(lr_schedule="cos")
