"""The parts of pages that are made from the code: papers from docstrings, keys from dataclasses, sizes from codecs."""

from __future__ import annotations

import pytest

site_codecs = pytest.importorskip("site_codecs", reason="needs the extra docs")
site_docstrings = pytest.importorskip("site_docstrings")
site_keys = pytest.importorskip("site_keys")
site_methods = pytest.importorskip("site_methods")
site_units = pytest.importorskip("site_units")


def test_a_docstring_is_divided_into_summary_paper_and_rest() -> None:
    summary, paper, rest = site_methods.described("flare_dist.algorithms.fedprox")
    assert summary == "FedProx: a proximal term keeps local training near the global model."
    assert paper is not None
    assert paper["title"] == "Federated Optimization in Heterogeneous Networks"
    assert paper["link"] == "https://arxiv.org/abs/1812.06127"
    assert paper["authors"].startswith("Tian Li, ")
    assert rest.startswith("Clients minimise f_k(w)")
    assert site_methods.described("flare_dist.server.downlink").paper is None


def test_docstrings_are_plain_text_with_literals_and_examples() -> None:
    lines = ["Take `x_` and **values.", "", "    y = a * b", "", "Then go on.", "", "Args:", "    a: of a_ kind."]
    site_docstrings.as_rst(None, "function", "f", None, None, lines)
    assert lines[0] == r"Take ``x_`` and \*\*values."
    assert lines[2:6] == ["::", "", "    y = a * b", ""]
    assert lines[-1] == r"    a: of a\_ kind."


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [("int | None", "integer or null"), ("tuple[str, ...]", "list"), ("bool", "true or false"), ("str", "text"),
     ("str | dict[str, Any]", "text or keys and values"), ("int | tuple[int, int] | None", "integer or list or null")],
)  # fmt: skip
def test_types_are_written_as_in_yaml(annotation: str, shown: str) -> None:
    assert site_keys.readable(annotation) == shown


def test_keys_have_the_defaults_and_descriptions_of_their_dataclasses() -> None:
    found = {key.name: key for key in site_keys.every_key()}
    assert found["clients.lr"].default == "0.1"
    assert found["clients.lr"].description == "learning rate of the local optimizer."
    assert found["clients.flare.tau"].type == "number"
    assert all(key.description for key in found.values())
    assert len({site_keys.anchor(name) for name in found}) == len(found)
    assert site_keys.written(()) == "[]"
    assert site_keys.written(None) == "null"


def test_sizes_are_those_of_the_codecs() -> None:
    (head, *indices), (_, *values) = site_codecs.index_rows(), site_codecs.value_rows()
    assert head[1] == "``elias_fano``"
    assert [row[head.index("``int32``")] for row in indices] == ["4.00"] * len(indices)
    assert all(float(row[1]) >= float(row[-1]) for row in indices)
    assert dict(values)["``fp16``"] == "2,000"


def test_no_line_ends_between_a_number_and_its_unit() -> None:
    assert site_units.unbroken("1 % of 84 kB in 3 s") == "1_% of 84_kB in 3_s".replace("_", "\N{NO-BREAK SPACE}")
    assert site_units.unbroken("2 seeds, 10 Big steps, 4 hosts") == "2 seeds, 10 Big steps, 4 hosts"
