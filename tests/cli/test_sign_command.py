"""`medopt sign`, and the doors that a release without a trusted signature does not pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clinic_fixtures import Finished, call
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from medopt.core.errors import ReleaseError
from medopt.release.build import build_release
from medopt.release.layout import MODELS, read_info
from medopt.release.predictor import Release
from medopt.release.signature import SIGNATURE


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key, and MEDOPT_TRUST that trusts it."""
    private = ed25519.Ed25519PrivateKey.generate()
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path, trust = tmp_path / "key.pem", tmp_path / "trust"
    path.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    trust.mkdir()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (trust / "me.pem").write_bytes(private.public_key().public_bytes(pem, form))
    monkeypatch.setenv("MEDOPT_TRUST", str(trust))
    return path


def test_every_door_asks_for_the_signature(finished: Finished, tmp_path: Path, key: Path) -> None:
    release, scan = tmp_path / "release", finished.clinic.data / "scans" / "000.dcm"
    shutil.copytree(finished.release, release)
    for words in (("verify", release), ("predict", release, scan, "--out", tmp_path / "a.csv")):
        call(*words).refused(6, "is not signed", "medopt sign")
    assert not (tmp_path / "a.csv").exists()
    done = call("sign", release, "--key", key)
    assert done.code == 0, done.stderr
    verified = call("verify", release, "--json")
    assert verified.code == 0 and verified.summary["signed_by"].startswith("the trusted key")
    assert call("predict", release, scan, "--out", tmp_path / "a.csv").code == 0


def test_a_new_release_is_signed_when_it_is_built(
    finished: Finished, tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = read_info(finished.release).model_copy(update={"domain": None})
    models = {kind: finished.release / name for kind, name in MODELS.items()}
    with pytest.raises(ReleaseError, match="is not signed"):
        build_release(tmp_path / "release", info, models)
    assert not (tmp_path / "release").exists()
    monkeypatch.setenv("MEDOPT_SIGNING_KEY", str(key))
    build_release(tmp_path / "release", info, models)
    assert (tmp_path / "release" / SIGNATURE).is_file()
    assert Release.open(tmp_path / "release", threads=1).info.study == "clinic"
