"""A choice is a built-in name or package.module:callable, and its options are checked against the signature."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import nn

from flare_dist.named import bind, call, expect, find, is_own, made, name_of, options_key

KNOWN = {"topk": 1, "randk": 2}
HERE = "tests.test_named"


def small(shape: Any, classes: int, width: int = 8, *, depth: int) -> tuple[Any, ...]:
    return shape, classes, width, depth


def open_ended(shape: Any, **options: Any) -> dict[str, Any]:
    return options


def fails(**options: Any) -> None:
    raise KeyError("sites")


class Net:
    def __init__(self, width: int = 3) -> None:
        self.width = width

    @classmethod
    def wide(cls) -> Net:
        return cls(100)


def test_a_built_in_name_comes_first_and_a_callable_is_itself() -> None:
    assert find("a.name", "randk", KNOWN) == 2
    assert find("a.name", f"{HERE}:small", KNOWN) is small
    assert find("a.name", f"{HERE}:Net.wide", KNOWN)().width == 100
    assert find("a.name", small, KNOWN) is small
    assert find("a.name", "own:topk", {"own:topk": 3}) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "topkk",
            r"unknown choice, got 'topkk'; did you mean topk\? Choose from topk, randk, package\.",
        ),
        ("zip", r"unknown choice, got 'zip'; choose from topk, randk, package\.module:callable$"),
        (
            "no_such:thing",
            r"cannot import 'no_such:thing': there is no module 'no_such' in .*; start the command",
        ),
        (
            "tests.tset_named:small",
            r"cannot import 'tests.tset_named:small': tests has no module 'tset_named'; did you ",
        ),
        (f"{HERE}:smal", rf"cannot import '{HERE}:smal': {HERE} has no 'smal'; did you mean {HERE}:small\?$"),
        ("torch.nn:", r"cannot import 'torch.nn:': torch.nn has no ''"),
    ],
)
def test_what_cannot_be_found_is_told_with_the_key_and_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^compression\.sparsifier: {message}"):
        find("compression.sparsifier", name, KNOWN)


def test_only_paths_are_the_user_s_own() -> None:
    assert is_own("mine:net", KNOWN)
    assert is_own(small, KNOWN)
    assert not any(is_own(name, {"a:b"}) for name in ("topk", "step:0.1@20", "a:b", "mine:"))
    assert name_of(small) == f"{HERE}:small"
    assert name_of("mine:net") == "mine:net"


def test_the_name_of_a_section_has_options_and_its_other_keys_have_their_own() -> None:
    assert options_key("model.name") == "model.options"
    assert options_key("server.optimizer") == "server.optimizer_options"


def test_options_are_bound_by_keyword_and_copied() -> None:
    options = {"depth": 2, "width": 4}
    assert bind("model.name", "m:small", small, options, ["shape", "classes"])((1,), 3) == ((1,), 3, 4, 2)
    nested = {"lora": {"r": 8}}
    bound = bind("model.name", "m:open_ended", open_ended, nested, ["shape"])
    nested["lora"]["r"] = 9
    assert bound(1) == {"lora": {"r": 8}}
    assert bind("model.name", "m:Net", Net, {"width": 7})().width == 7


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (small, {"depht": 2, "depth": 1}, r"model\.options\.depht: m:f takes no such option, got 2; did you mean "
         r"depth\? \(m:f takes width, depth\)$"),
        (small, {"classes": 2, "depth": 1}, r"model\.options\.classes: m:f is given it already, got 2; leave it out"),
        (small, {}, r"model\.options\.depth: m:f needs it, got nothing; write a value \(m:f is called as "
         r"m:f\(shape, classes, \*\*options\)\)$"),
        (lambda shape: shape, {}, r"model\.name: m:f is called as m:f\(shape, classes, \*\*options\), got one that "
         r"takes \(shape\); give it these arguments$"),
        (3, {}, r"model\.name: must name a callable, got 'm:f', which is not callable; it is called as "),
    ],
)  # fmt: skip
def test_options_that_a_callable_does_not_take_are_told_before_it_is_called(
    function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        bind("model.name", "m:f", function, options, ["shape", "classes"])


def test_what_has_a_key_of_its_own_is_no_option() -> None:
    with pytest.raises(ValueError, match=r"^server\.optimizer_options\.width: n is given it already, got 1; leave"):
        bind("server.optimizer", "n", small, {"width": 1, "depth": 1}, ["shape", "classes"], reserved=["width"])


def test_a_callable_of_c_without_a_signature_is_called_as_it_is() -> None:
    assert bind("a.name", "m:f", dict, {"a": 1})() == {"a": 1}


@pytest.mark.parametrize("result", [3, None, nn.Linear])
def test_a_wrong_result_is_told_with_an_example_of_the_right_one(result: Any) -> None:
    got = type(result).__name__
    with pytest.raises(
        ValueError, match=rf"^model\.name: m:f must return a torch\.nn\.Module, got {got}; for example nn\.Linear\(3\)$"
    ):
        expect("model.name", "m:f", result, nn.Module, "nn.Linear(3)")


def test_a_record_is_built_in_or_made() -> None:
    def record(key: str, options: dict[str, Any]) -> Any:
        return made("a.name", key, {"ours": Net(1)}, options, Net, "Net()")

    assert record("ours", {}).width == 1
    assert record(f"{HERE}:Net", {"width": 5}).width == 5
    with pytest.raises(ValueError, match=r"^a\.options\.width: ours takes no such option, got 5; leave it out"):
        record("ours", {"width": 5})
    with pytest.raises(ValueError, match=rf"^a\.name: {HERE}:fails fails: KeyError: 'sites' \(.*test_named"):
        record(f"{HERE}:fails", {})


def test_an_exit_in_somebody_s_code_is_an_error_like_others() -> None:
    with pytest.raises(ValueError, match=r"^a\.name: m:f fails: SystemExit: usage"):
        call("a.name", "m:f", sys.exit, "usage")
