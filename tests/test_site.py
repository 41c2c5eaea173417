"""The site builds without a warning, and every page of it is reached, linked rightly and readable without a network."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import flare_dist
from flare_dist.algorithms.methods import AGGREGATORS, MODULES, OBJECTIVES
from flare_dist.compression.error_feedback import ERROR_FEEDBACK
from flare_dist.compression.index_codecs import INDEX_CODECS
from flare_dist.compression.value_codecs import VALUE_CODECS
from flare_dist.sparse_training.criteria import CRITERIA
from flare_dist.sparse_training.methods import METHODS
from tests.helpers.browser import Browser
from tests.helpers.extras import needs
from tests.helpers.pages import DOCS, ROOT, SOURCES, Page

pytestmark = needs("docs")

ASIDE = {"genindex.html", "search.html", "py-modindex.html"}
SECTIONS = ["Formula", "When to use it", "Keys", "Command", "Measured"]
# Options that are broken in two, docstrings that are cut off, and words of the drawing that reach beyond their box.
BROKEN = """(() => {
  const inside = (box, x, y) => x > box.x && x < box.x + box.width && y > box.y && y < box.y + box.height;
  const boxes = [...document.querySelectorAll(".drawing rect")].map(rectangle => rectangle.getBBox());
  const reaches = ({x, y, width, height}) => boxes.some(box => inside(box, x + width / 2, y + height / 2)
    && !(inside(box, x - 3, y) && inside(box, x + width + 3, y)));
  return [...document.querySelectorAll("article code .pre")].filter(word => word.getClientRects().length > 1)
    .concat([...document.querySelectorAll(".docstring pre")].filter(block => block.scrollWidth > block.clientWidth))
    .concat([...document.querySelectorAll(".drawing text")].filter(text => reaches(text.getBBox())))
    .map(element => element.textContent);
})()"""
METHOD_PAGES = [path for path in SOURCES if path.parent.name == "methods" and path.stem not in ("index", "tuning")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as launch/docs.sh does."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--nitpicky", "--quiet", "-b", "html"]
    command += ["--doctree-dir", str(directory / "doctrees"), str(DOCS), str(directory / "html")]
    # Matplotlib has no cache of fonts yet, as on a machine where the site is built first of all.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(directory / "matplotlib")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return directory / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def local(page: str, link: str) -> tuple[str, str] | None:
    """Resolve a link of a page to (path in the site, anchor); None if it leads elsewhere."""
    if re.match(r"[a-z]+:", link):
        return None
    path, _, anchor = link.partition("#")
    target = os.path.normpath(os.path.join(os.path.dirname(page), unquote(path))) if path else page
    return target, unquote(anchor)


def test_the_command_that_builds_it_is_the_one_that_is_tested() -> None:
    script = (ROOT / "launch" / "docs.sh").read_text()
    assert "-m sphinx --fail-on-warning --nitpicky --quiet -b html" in script
    assert "EXTRAS=docs bash launch/install.sh" in script


def test_every_source_is_a_page_and_every_page_is_two_clicks_away(pages: dict[str, Page]) -> None:
    expected = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in SOURCES}
    assert expected <= pages.keys()
    reached = {"index.html"}
    for _ in range(2):
        reached |= {found[0] for page in reached for link in pages[page].links if (found := local(page, link))
                    and found[0] in pages}  # fmt: skip
    assert pages.keys() - ASIDE <= reached


def test_every_link_leads_to_a_page_and_an_anchor_that_are_there(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for link in page.links:
            found = local(name, link)
            if found is None:
                assert re.match(r"https://[\w.-]+(/\S*)?$", link), f"{name} links to {link}"
                continue
            target, anchor = found
            assert (site / target).exists(), f"{name} links to {link}"
            assert not anchor or target not in pages or anchor in pages[target].ids, f"{name} links to {link}"


def test_a_page_fetches_nothing_from_a_network(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for source in page.fetched:
            assert not re.match(r"(https?:)?//", source), f"{name} fetches {source}"
            found = local(name, source)
            assert not source or found is None or (site / found[0].split("?")[0]).exists(), f"{name} fetches {source}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:@import\s+["']?|url\(\s*["']?)(?:https?:)?//""", text), style


def test_formulas_are_shown_by_the_browser_alone(pages: dict[str, Page]) -> None:
    for path in METHOD_PAGES:
        page = pages[f"methods/{path.stem}.html"]
        assert "math" in page.tags, path
        assert "merror" not in page.tags, path
    for name, page in pages.items():
        text = "".join(page.text)
        assert not re.search(r"\$\$|\\\(|\\frac|\\sum", text), name
        assert not any("mathjax" in source.lower() or "katex" in source.lower() for source in page.fetched), name


def test_the_font_of_formulas_is_in_the_site(site: Path) -> None:
    (font,) = re.findall(r'url\("([^"]+)"\)', (DOCS / "static" / "site.css").read_text())
    assert (site / "_static" / font).stat().st_size > 100_000


def test_pages_in_a_browser_are_as_wide_as_the_screen_and_show_formulas(site: Path, tmp_path: Path) -> None:
    names = ("index", "start", "guides/loops", "methods/topk", "results/index", "how", "reference/keys")
    with Browser(tmp_path) as browser:
        browser.resize(400)
        for name in names:
            browser.open(site / f"{name}.html")
            assert browser.too_wide() == [], name
            assert browser.errors() == [], name
            assert all(url.startswith(site.as_uri()) for url in browser.fetched()), name
        browser.resize(1000)
        for name in ("index", "how", "methods/topk"):
            browser.open(site / f"{name}.html")
            assert browser.run(BROKEN) == [], name
        brace = "[...document.querySelectorAll('div.math mo')].find(operator => operator.textContent === '{')"
        height = browser.run(f"document.fonts.ready.then(() => {brace}.getBoundingClientRect().height)")
        assert height > 30  # of the two rows behind it, in a font for mathematics


@pytest.mark.parametrize("path", METHOD_PAGES, ids=lambda path: path.stem)
def test_a_method_has_a_formula_a_paper_keys_a_use_a_command_and_a_figure(path: Path, pages: dict[str, Page]) -> None:
    headings = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    page = pages[f"methods/{path.stem}.html"]
    papers = [link for link in page.links if link.startswith("https://arxiv.org/abs/")]
    assert papers or path.stem == "downlink"  # which is our own
    assert "```{keys-named}" in path.read_text()


def test_every_method_by_name_has_a_page() -> None:
    text = "\n".join(path.read_text() for path in METHOD_PAGES)
    names = {*OBJECTIVES, *AGGREGATORS, *ERROR_FEEDBACK, *METHODS, *CRITERIA, *INDEX_CODECS, *VALUE_CODECS}
    assert not [name for name in names if f"`{name}`" not in text and f" {name}" not in text]
    for module in MODULES:
        assert f"{{from-module}} {module.__name__}" in text


def keys_of_the_configuration() -> Iterator[str]:
    from site_keys import anchor, every_key

    return (anchor(key.name) for key in every_key())


def test_every_key_has_an_anchor(pages: dict[str, Page]) -> None:
    assert set(keys_of_the_configuration()) <= pages["reference/keys.html"].ids


def test_every_public_name_is_in_the_api(pages: dict[str, Page]) -> None:
    ids = pages["reference/api.html"].ids
    for name, home in flare_dist._HOMES.items():
        assert {f"flare_dist.{name}", f"{home}.{name}"} & ids, name


def test_error_messages_are_those_of_the_package() -> None:
    text = (DOCS / "reference" / "errors.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) > 35
    source = "".join(path.read_text() for path in (ROOT / "flare_dist").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a string that goes on in the next line
    assert not [message for message in messages if message not in source]


def test_metrics_of_a_run_are_described(straight: Path) -> None:
    text = (DOCS / "reference" / "metrics.md").read_text()
    described = set(re.findall(r"`([a-z_<>]+)`", text))
    patterns = [re.compile(re.escape(name).replace("<metric>", r"\w+")) for name in described]
    patterns += [re.compile("(compute|select|communication|waiting)_seconds")]
    for row in (straight / "metrics.jsonl").read_text().splitlines():
        for key in json.loads(row):
            assert any(pattern.fullmatch(key) for pattern in patterns), key


def test_files_of_a_run_are_described(straight: Path) -> None:
    text = (DOCS / "reference" / "files.md").read_text()
    for path in straight.iterdir():
        if not path.name.startswith((".", "events.")):
            assert f"`{path.name}" in text, path.name


def test_figures_are_drawn_from_numbers_of_the_tables(tmp_path: Path) -> None:
    figures = DOCS / "figures"
    subprocess.run([sys.executable, str(figures / "draw.py"), str(tmp_path)], check=True, timeout=120)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in figures.glob("*.svg")} - {"round.svg"}
    frontier = (DOCS / "results" / "frontier.md").read_text()
    for row in rows(figures / "frontier.csv"):
        assert f"{row['accuracy']} ± {row['deviation']}" in frontier
    summary = (DOCS / "results" / "index.md").read_text()
    for row in rows(figures / "bytes.csv"):
        assert f"({os.path.relpath(DOCS / row['page'], DOCS / 'results')}" in summary
        assert all(re.search(rf"(?<!\d){re.escape(row[key])}(?!\d)", summary) for key in ("dense", "sparse"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
