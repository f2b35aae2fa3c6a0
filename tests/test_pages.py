"""What the pages name is there: paths, and the files on the way from `medopt run` to the first gradient."""

from __future__ import annotations

import re

import pytest
import yaml
from real_data import REPO

PATH = re.compile(r"(?<![\w/.-])((?:medopt|tests|benchmarks|pipelines|data_manifests|mlflow)/[\w/]*(?:\.\w+)?)")
OWN = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "NOTICE", "mlflow/README.md", "tests/fixtures/README.md")
PAGES = (*OWN, *sorted(path.relative_to(REPO).as_posix() for path in (REPO / "docs").rglob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_paths_named_on_a_page_exist(page: str) -> None:
    named = set(PATH.findall((REPO / page).read_text(encoding="utf-8")))
    assert {path for path in named if not (REPO / path).exists()} == set()


def test_the_walk_to_the_first_gradient_has_at_most_eight_files_and_each_leads_to_the_next() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = re.findall(r"^\d\. `(medopt/[\w/]+)\.py`", text, re.MULTILINE)
    assert 2 <= len(walk) <= 8 and walk[0] == "medopt/cli/run"
    before = (REPO / f"{walk[0]}.py").read_text(encoding="utf-8")
    for path in walk[1:]:  # imported by one of the files before it
        package, _, module = path.replace("/", ".").rpartition(".")
        assert f"{package}.{module}" in before or f"from {package} import" in before, path
        before += (REPO / f"{path}.py").read_text(encoding="utf-8")
    assert ".backward(" in (REPO / f"{walk[-1]}.py").read_text(encoding="utf-8")


def test_the_citation_has_what_its_format_demands_and_no_second_version() -> None:
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert citation["message"] and citation["title"] and citation["authors"][0]["name"]
    assert "version" not in citation


def test_the_licence_is_the_whole_text() -> None:
    text = (REPO / "LICENSE").read_text(encoding="utf-8")
    assert len(text) == 11358
    for heading in (
        "1. Definitions.",
        "3. Grant of Patent License.",
        "9. Accepting Warranty",
        "APPENDIX: How to apply",
    ):
        assert heading in text
