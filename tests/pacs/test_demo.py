"""The demo beside a real Orthanc, with the files that a site copies."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import call

from medopt.core.errors import ConfigError
from medopt.pacs.example_site import running_process, wait_for_start
from medopt.pacs.settings import load_node_settings

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


@pytest.mark.long
@pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed")
def test_results_come_back_to_orthanc(release: Path) -> None:
    ended = call("pacs", "demo", release, "--studies", 2, "--json")
    assert ended.code == 0, ended.stderr
    assert [study["study"] for study in ended.summary["studies"]] == [1, 2]
    assert all(study["answer"] in ("Present", "Absent", "Undetermined") for study in ended.summary["studies"])
    assert all(study["seconds"] < 60 for study in ended.summary["studies"])


def test_without_a_release_it_says_how_to_make_one(tmp_path: Path) -> None:
    ended = call("pacs", "demo", "--runs", tmp_path)
    assert (ended.code, "make demo" in ended.stderr) == (3, True)


def test_the_example_is_a_node_file_and_never_overwrites(tmp_path: Path) -> None:
    assert call("pacs", "example", tmp_path / "site").code == 0
    node = load_node_settings(tmp_path / "site" / "node.yaml")
    unit = (tmp_path / "site" / "medopt-pacs.service").read_text()
    assert f"ReadWritePaths={node.spool}" in unit
    routed = yaml.safe_load((tmp_path / "site" / "orthanc.json").read_text())["DicomModalities"]["medopt"]
    assert routed == [node.aet, "127.0.0.1", node.port]
    repeated = call("pacs", "example", tmp_path / "site")
    assert (repeated.code, "already" in repeated.stderr) == (2, True)


def test_a_process_that_does_not_start_ends_the_demo_with_its_last_line(tmp_path: Path) -> None:
    log, command = tmp_path / "log", [sys.executable, "-c", "raise SystemExit('the release was changed')"]
    with (
        running_process(command, log) as process,
        pytest.raises(ConfigError, match="ended as it started: the release was changed"),
    ):
        wait_for_start(lambda: False, "The node", process, log)
