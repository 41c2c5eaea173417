"""The report in a real browser: plots are drawn, controls work, no script fails, nothing is fetched or cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flare_dist import cli
from tests.helpers.browser import Browser, find_browser
from tests.helpers.extras import needs
from tests.helpers.run_logs import write_run

pytestmark = needs("plots")

LABEL = "a-directory-whose-name-is-longer-than-the-screen-of-a-telephone-is-wide-and-has-no-place-to-break"
HEIGHTS = "[...document.querySelectorAll('.plot .main-svg')].map(plot => plot.getBoundingClientRect().height)"
LINES = "[...document.querySelectorAll('#{} .scatterlayer .js-line')].map(line => line.getAttribute('d'))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report on two seeds of one setting, on one of another and on a run without a configuration."""
    find_browser()
    directory = tmp_path_factory.mktemp("report")
    runs = []
    for name, seed, density in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 1.0), (LABEL, 0, None)):
        members = {f"hospital of a long name {n}": {"accuracy": n / 10} for n in range(5)}
        run = write_run(directory / name, uplink_bytes=400_000 * (1 + seed), groups=members)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config |= {"seed": seed, "compression": {"density": density}}
        (run / "config.yaml").write_text(yaml.safe_dump(config)) if density else (run / "config.yaml").unlink()
        runs.append(str(run))
    command = ["report", *runs, "--target", "0.2", "--link", "100Mbps", "--output_dir", str(directory / "out")]
    assert cli.main(command) == 0
    return directory / "out" / "report.html"


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Open the page once, on the screen of a telephone."""
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(400)
        opened.open(page)
        yield opened


@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_plots_are_drawn_and_nothing_is_cut_off_at_any_width(width: int, browser: Browser) -> None:
    browser.resize(width)
    heights = browser.run(HEIGHTS)
    assert len(heights) >= 3
    assert min(heights) > 100
    for name in ("curves", "projected"):
        drawn = browser.run(LINES.format(name))
        assert len(drawn) >= 3
        assert all(drawn)
    assert len(browser.run("[...document.querySelectorAll('#members .point')].map(() => 1)")) == 15
    assert browser.too_wide() == []
    assert browser.errors() == []
    assert browser.fetched() == []


def test_the_slider_the_legend_and_the_button_of_seeds_work(browser: Browser) -> None:
    seconds = "document.querySelector('td[data-seconds]').textContent"
    before = browser.run(seconds)
    lines = len(browser.run(LINES.format("curves")))
    drag = "const slider = document.getElementById('rate'); slider.value = 0; slider.dispatchEvent(new Event('input'))"
    browser.run(f"(() => {{ {drag} }})()")
    assert browser.run("document.querySelector('.rate').textContent") == "1 Mbps"
    assert browser.run(seconds) not in ("", before)
    browser.run("document.querySelectorAll('#legend input')[1].click()")
    assert len(browser.run(LINES.format("curves"))) == lines - 1
    seeds = "[...document.querySelectorAll('tr.seed')].filter(row => row.getClientRects().length).length"
    assert browser.run(seeds) == 0
    browser.run("document.querySelector('button[data-group]').click()")
    assert browser.run(seeds) == 2
    browser.run("(() => { const axis = document.getElementById('axis'); axis.value = 'rounds';"
                "axis.dispatchEvent(new Event('change')) })()")  # fmt: skip
    assert browser.run("document.querySelector('#curves .xtitle').textContent") == "round"
    assert browser.errors() == []
