"""The list of a release's packages: valid CycloneDX, and each package that differs here is named."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from clinic_fixtures import Finished, call
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from medopt import __version__
from medopt.core.errors import ReleaseError
from medopt.core.run_paths import SBOM
from medopt.release.layout import write_sums
from medopt.release.sbom import runtime_differences, runtime_packages, write_sbom
from medopt.release.signature import SAME_RUNTIME
from medopt.serving.server.releases import open_release


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The list of a folder, changed by somebody who seals the release again."""
    content = json.loads((folder / SBOM).read_text())
    change(content)
    (folder / SBOM).write_text(json.dumps(content))
    write_sums(folder)
    return folder


def older_numpy(content: dict[str, Any]) -> None:
    (numpy,) = (one for one in content["components"] if one["name"] == "numpy")
    numpy["version"] = "1.0.1"


def test_the_list_is_valid_cyclonedx(finished: Finished) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    text = (finished.release / SBOM).read_text()
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
    bom = pytest.importorskip("cyclonedx.model.bom").Bom.from_json(json.loads(text))
    bom.validate()  # every reference is that of a component
    assert {one.name for one in bom.components} >= {"medopt", "numpy", "torch", "onnxruntime", "CPython"}


def test_it_holds_what_medopt_needs_and_what_that_needs(tmp_path: Path) -> None:
    packages = {package.name: package for package in runtime_packages()}
    assert packages["medopt"].version == __version__ and "numpy" in packages["medopt"].needs
    assert packages["numpy"].version == metadata.version("numpy")
    assert "mpmath" in packages  # torch needs sympy, which needs it
    assert "pytest" not in packages and "mlflow" not in packages  # of extras
    write_sbom(tmp_path, "clinic", "2026-01-01")
    again = tmp_path / "again"
    again.mkdir()
    write_sbom(again, "clinic", "2026-01-01")
    first, second = (json.loads((folder / SBOM).read_text()) for folder in (tmp_path, again))
    assert first["serialNumber"] == second["serialNumber"] and first["components"] == second["components"]
    assert runtime_differences(tmp_path) == []


def test_each_difference_is_named(tmp_path: Path) -> None:
    write_sbom(tmp_path, "clinic", "2026-01-01")

    def change(content: dict[str, Any]) -> None:
        older_numpy(content)
        content["components"].append({"type": "library", "name": "no-such-package", "version": "3"})
        content["components"].append({"type": "file", "name": "weights"})  # others may list more

    found = runtime_differences(changed(tmp_path, change))
    assert found == [f"numpy is {metadata.version('numpy')}, not 1.0.1", "no-such-package 3 is not installed"]

    def other_python(content: dict[str, Any]) -> None:
        (python,) = (one for one in content["components"] if one["type"] == "platform")
        python["version"] = "3.9.1"

    assert f"CPython is {platform.python_version()}, not 3.9.1" in (
        runtime_differences(changed(tmp_path, other_python)) or []
    )
    for text in ("", "[]", '{"bomFormat": "SPDX"}'):
        (tmp_path / SBOM).write_text(text)
        with pytest.raises(ReleaseError, match="not a CycloneDX list"):
            runtime_differences(tmp_path)
    (tmp_path / SBOM).unlink()
    assert runtime_differences(tmp_path) is None


def test_a_difference_is_said_and_refused_where_the_trust_folder_asks_for_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, other = (Path(shutil.copytree(finished.release, tmp_path / name)) for name in ("same", "other"))
    changed(other, older_numpy)
    key = ed25519.Ed25519PrivateKey.generate()
    pem, trust = tmp_path / "key.pem", tmp_path / "trust"
    trust.mkdir()
    private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    (trust / "reader.pem").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, public))
    for folder in (same, other):
        assert call("sign", folder, "--key", pem).code == 0

    monkeypatch.setenv("MEDOPT_TRUST", str(trust))
    said = call("verify", other, "--json")
    assert said.code == 0, said.stderr
    assert said.summary["runtime_differs"] == [f"numpy is {metadata.version('numpy')}, not 1.0.1"]
    assert "not those that it was built and verified with" in said.stdout
    assert "the packages here are those of its sbom.cdx.json" in call("verify", same).stdout
    assert open_release(other, "int8").runtime_differs == said.summary["runtime_differs"]

    (trust / SAME_RUNTIME).touch()
    assert call("verify", same).code == 0
    call("verify", other).refused(6, "built and verified with other packages", "numpy", "1.0.1")
    with pytest.raises(ReleaseError, match="other packages"):
        open_release(other, "int8")
    (same / SBOM).unlink()
    write_sums(same)
    monkeypatch.delenv("MEDOPT_TRUST")
    assert call("sign", same, "--key", pem).code == 0
    assert "has no list of its packages" in call("verify", same).stdout
    monkeypatch.setenv("MEDOPT_TRUST", str(trust))
    call("verify", same).refused(6, "has no sbom.cdx.json")
