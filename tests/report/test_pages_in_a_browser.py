"""The pages of the report room in a real browser: narrow, light and dark, and as a screen reader meets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser
from clinic_fixtures import Finished, call

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the pages with")


def report(finished: Finished, folder: Path) -> Path:
    return finished.folder / "report.html"


def dossier(finished: Finished, folder: Path) -> Path:
    done = call("dossier", finished.folder, "--out", folder / "dossier.html")
    assert done.code == 0, done.stderr
    return folder / "dossier.html"


def drift(finished: Finished, folder: Path) -> Path:
    scans = sorted((finished.clinic.data / "scans").glob("*.dcm"))[:30]
    predicted = call("predict", finished.release, *scans, "--out", folder / "answers.csv")
    assert predicted.code == 0, predicted.stderr
    done = call("drift", finished.release, folder / "answers.csv", "--out", folder / "drift.html")
    assert done.code == 0, done.stderr
    return folder / "drift.html"


def comparison(finished: Finished, folder: Path) -> Path:
    done = call("compare", finished.folder, "--out", folder / "compared.html")
    assert done.code == 0, done.stderr
    return folder / "compared.html"


@pytest.mark.parametrize("made", [report, dossier, drift, comparison])
def test_a_page_has_no_barriers_and_fits_a_telephone(
    made: Callable[[Finished, Path], Path], finished: Finished, tmp_path: Path
) -> None:
    path = made(finished, tmp_path)
    with browser(tmp_path / "profile", 400, 800) as page:
        page.watch()
        page.open(path.as_uri())
        page.until("document.readyState == 'complete'")
        assert page.barriers() == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert [url for url in page.requests if not url.startswith(("data:", "file:"))] == []
        assert dark_ground(page) and page.said == []


DRAWINGS = """
[...document.querySelectorAll('figure svg')].map(one => {
    const place = one.getBoundingClientRect(), type = one.querySelector('text').getBoundingClientRect();
    return [one.closest('.front') !== null, place.width, place.height, type.height];
})
"""


def test_a_printed_report_has_charts_that_can_be_read(finished: Finished, tmp_path: Path) -> None:
    width, height = 695, 1016  # A4 less its margins, 96 pixels an inch
    with browser(tmp_path / "profile", width, height) as page:
        page.call("Emulation.setEmulatedMedia", media="print")
        page.open(report(finished, tmp_path).as_uri())
        page.until("document.readyState == 'complete'")
        drawings = [one[1:] for one in page.run(DRAWINGS) if not one[0]]  # those of the first page are small
        assert len(drawings) > 3
        for wide, high, _ in drawings:
            assert 0.35 * width < wide <= width and high < height
        types = [type_height for _, _, type_height in drawings]
        assert min(types) > 8 and max(types) < min(12, 1.3 * min(types))  # one size of type, that of the text, in all
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def dark_ground(page: Page) -> bool:
    """Whether the page, last seen in the dark, has a dark ground."""
    red = page.run("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    return bool(red < 64)
