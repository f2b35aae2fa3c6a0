"""The demo beside a real Orthanc, with the files that a site copies."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import call

from medopt.core.errors import ConfigError
from medopt.pacs.demo import running, wait
from medopt.pacs.settings import load_node

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


@pytest.mark.long
@pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed")
def test_results_come_back_to_orthanc(release: Path) -> None:
    found = call("pacs", "demo", release, "--studies", 2, "--json")
    assert found.code == 0, found.stderr
    assert [one["study"] for one in found.summary["studies"]] == [1, 2]
    assert all(one["answer"] in ("Present", "Absent", "Undetermined") for one in found.summary["studies"])
    assert all(one["seconds"] < 60 for one in found.summary["studies"])


def test_without_a_release_it_says_how_to_make_one(tmp_path: Path) -> None:
    found = call("pacs", "demo", "--runs", tmp_path)
    assert (found.code, "make demo" in found.stderr) == (3, True)


def test_the_example_is_a_node_file_and_never_overwrites(tmp_path: Path) -> None:
    assert call("pacs", "example", tmp_path / "site").code == 0
    node = load_node(tmp_path / "site" / "node.yaml")
    unit = (tmp_path / "site" / "medopt-pacs.service").read_text()
    assert f"ReadWritePaths={node.spool}" in unit
    routed = yaml.safe_load((tmp_path / "site" / "orthanc.json").read_text())["DicomModalities"]["medopt"]
    assert routed == [node.aet, "127.0.0.1", node.port]
    again = call("pacs", "example", tmp_path / "site")
    assert (again.code, "already" in again.stderr) == (2, True)


def test_a_process_that_does_not_start_ends_the_demo_with_its_words(tmp_path: Path) -> None:
    log, words = tmp_path / "log", [sys.executable, "-c", "raise SystemExit('the release was changed')"]
    with (
        running(words, log) as process,
        pytest.raises(ConfigError, match="ended as it started: the release was changed"),
    ):
        wait(lambda: False, "The node", process, log)
