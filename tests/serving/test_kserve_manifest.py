"""`medopt export --format kserve`: a manifest that KServe's own model of it reads, and a release that verifies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import Finished, call, environment

from medopt.core.files import file_digest
from medopt.exports.kubernetes import service_name
from medopt.release.layout import SUMS

READ = """
import re, sys
import kserve, kubernetes.client, yaml

def check(kind, value):
    # Every field is one of its class's, KServe's or Kubernetes'.
    part = re.fullmatch(r"[Ll]ist\\[(.*)\\]", kind)
    if part:
        for one in value:
            check(part[1], one)
        return
    model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
    if model is None:
        return
    names = {key: name for name, key in model.attribute_map.items()}
    for key, one in value.items():
        check(model.openapi_types[names[key]], one)

check("V1beta1InferenceService", yaml.safe_load(open(sys.argv[1])))
"""


def test_the_manifest_is_kserves_and_the_release_verifies(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "cluster"
    done = call("export", finished.release, "--format", "kserve", "--out", out)
    assert done.code == 0, done.stderr
    assert "inferenceservice.yaml begins with the steps to take" in done.stdout
    version = file_digest(finished.release / SUMS)[:12]
    told = yaml.safe_load((out / "inferenceservice.yaml").read_text())
    (container,) = told["spec"]["predictor"]["containers"]
    assert container["image"] == f"registry.example/clinic:{version}"
    assert file_digest(out / "release" / SUMS)[:12] == version
    words = [sys.executable, "-c", READ, str(out / "inferenceservice.yaml")]
    read = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    call("export", finished.release, "--format", "kserve", "--out", out).refused(2, "exists")


@pytest.mark.parametrize(
    ("study", "name"),
    [("BUSI_official v2", "busi-official-v2"), ("3d--Hippo.", "release-3d-hippo"), ("x" * 90, "x" * 40)],
)
def test_names_are_what_kubernetes_takes(study: str, name: str) -> None:
    assert service_name(study) == name
