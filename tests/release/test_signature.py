"""Signed releases: by openssl's own keys, and refused where a byte, a key or a date is not right."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from medopt.core.errors import ConfigError, ReleaseError
from medopt.release.layout import SUMS, check_sums, write_sums
from medopt.release.signature import SIGNATURE, check_signature, check_trusted, sign_release

NOW = datetime.now(UTC)
Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checksums of a release."""
    place = tmp_path / "release"
    place.mkdir()
    (place / "model.onnx").write_bytes(b"weights")
    (place / "release.json").write_text("{}")
    write_sums(place)
    return place


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    place = tmp_path / "trust"
    place.mkdir()
    return place


def saved(path: Path, key: Key, password: bytes | None = None) -> Path:
    """The private key as PEM."""
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, hidden))
    return path


def public(path: Path, key: Key) -> Path:
    """The public key as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path


def certificate(
    name: str, key: Key, issuer: str, by: Key, *, ca: bool = False, days: tuple[int, int] = (-1, 30)
) -> x509.Certificate:
    """A certificate of `key` that `by` issued, in force from one day to the other."""

    def called(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(called(name))
        .issuer_name(called(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    digest = None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(by, digest)  # type: ignore[arg-type]


def written(path: Path, one: x509.Certificate) -> Path:
    path.write_bytes(one.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384"])
def test_a_signed_release_is_trusted_by_its_key(folder: Path, trust: Path, tmp_path: Path, kind: str) -> None:
    made = {"ed25519": ed25519.Ed25519PrivateKey.generate, "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "p384": lambda: ec.generate_private_key(ec.SECP384R1())}  # fmt: skip
    key = made[kind]()
    digest = sign_release(folder, saved(tmp_path / "key.pem", key))
    public(trust / "me.pem", key)
    assert check_signature(folder, trust) == f"the trusted key {digest[:16]}"
    check_sums(folder)  # the signature is no file too many


def test_openssl_makes_the_key_and_checks_the_signature(folder: Path, trust: Path, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, signed = tmp_path / "key.pem", tmp_path / "raw.sig"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", trust / "me.pem"], check=True)
    sign_release(folder, key)
    assert check_signature(folder, trust)
    signed.write_bytes(__import__("base64").b64decode(json.loads((folder / SIGNATURE).read_text())["signature"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", trust / "me.pem", "-rawin", "-in", folder / SUMS]
    assert subprocess.run([*command, "-sigfile", signed], check=False, capture_output=True).returncode == 0


def test_a_changed_byte_is_refused_whether_or_not_the_list_is_written_again(
    folder: Path, trust: Path, tmp_path: Path
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    sign_release(folder, saved(tmp_path / "key.pem", key))
    public(trust / "me.pem", key)
    (folder / "model.onnx").write_bytes(b"Weights")
    with pytest.raises(ReleaseError, match=r"model.onnx was changed"):
        check_sums(folder)
    write_sums(folder)  # as whoever changed it would
    check_sums(folder)
    with pytest.raises(ReleaseError, match="does not fit its files"):
        check_signature(folder, trust)


def test_another_key_no_signature_and_nonsense_are_refused(folder: Path, trust: Path, tmp_path: Path) -> None:
    public(trust / "me.pem", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ReleaseError, match="is not signed"):
        check_signature(folder, trust)
    sign_release(folder, saved(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(ReleaseError, match="which is not trusted"):
        check_signature(folder, trust)
    (folder / SIGNATURE).write_text("{}")
    with pytest.raises(ReleaseError, match="not a signature that this medopt can read"):
        check_signature(folder, trust)


def test_a_name_on_a_foreign_signature_is_refused(folder: Path, trust: Path, tmp_path: Path) -> None:
    """The digest of a trusted key, written over a signature that another key made."""
    mine = ed25519.Ed25519PrivateKey.generate()
    sign_release(folder, saved(tmp_path / "mine.pem", mine))
    public(trust / "me.pem", mine)
    good = json.loads((folder / SIGNATURE).read_text())
    sign_release(folder, saved(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.generate()))
    bad = json.loads((folder / SIGNATURE).read_text())
    (folder / SIGNATURE).write_text(json.dumps(bad | {"key": good["key"]}))
    with pytest.raises(ReleaseError, match="does not fit its files"):
        check_signature(folder, trust)


def issued(tmp_path: Path, **leaf: object) -> tuple[Key, x509.Certificate, Path, list[Path]]:
    """An authority, one below it, and a signer's certificate from that one."""
    root, middle, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    top = certificate("Hospital", root, "Hospital", root, ca=True)
    below = certificate("Radiology", middle, "Hospital", root, ca=True)
    own = certificate("A. Reader", signer, "Radiology", middle, **leaf)  # type: ignore[arg-type]
    chain = [written(tmp_path / "own.pem", own), written(tmp_path / "below.pem", below)]
    return root, top, saved(tmp_path / "signer.pem", signer), chain


def test_a_certificate_of_a_trusted_authority_is_trusted_and_named(folder: Path, trust: Path, tmp_path: Path) -> None:
    _, top, signer, chain = issued(tmp_path)
    written(trust / "hospital.pem", top)
    sign_release(folder, signer, chain)
    assert check_signature(folder, trust) == "CN=A. Reader, by a trusted certificate"
    with pytest.raises(ReleaseError, match="not today"):
        check_signature(folder, trust, NOW + timedelta(days=31))


def test_an_expired_certificate_and_a_foreign_authority_are_refused(folder: Path, trust: Path, tmp_path: Path) -> None:
    _, top, signer, chain = issued(tmp_path, days=(-20, -2))
    written(trust / "hospital.pem", top)
    sign_release(folder, signer, chain)
    with pytest.raises(ReleaseError, match="not today"):
        check_signature(folder, trust)
    foreign = ec.generate_private_key(ec.SECP256R1())
    written(trust / "hospital.pem", certificate("Hospital", foreign, "Hospital", foreign, ca=True))
    _, _, signer, chain = issued(tmp_path)
    sign_release(folder, signer, chain)
    with pytest.raises(ReleaseError, match="no trusted authority issued"):
        check_signature(folder, trust)


def test_a_certificate_that_may_not_issue_others_issues_none(folder: Path, trust: Path, tmp_path: Path) -> None:
    root, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    written(trust / "clerk.pem", certificate("Clerk", root, "Clerk", root, ca=False))
    own = written(tmp_path / "own.pem", certificate("A. Reader", signer, "Clerk", root))
    sign_release(folder, saved(tmp_path / "signer.pem", signer), [own])
    with pytest.raises(ReleaseError, match="no trusted authority issued"):
        check_signature(folder, trust)


def test_keys_that_cannot_be_used_are_refused_without_a_word_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = saved(tmp_path / "locked.pem", ed25519.Ed25519PrivateKey.generate(), b"open sesame")
    with pytest.raises(ConfigError, match="give its password in MEDOPT_SIGNING_PASSWORD"):
        sign_release(folder, locked)
    monkeypatch.setenv("MEDOPT_SIGNING_PASSWORD", "wrong horse")
    with pytest.raises(ConfigError) as refused:
        sign_release(folder, locked)
    assert "wrong horse" not in str(refused.value) and "PRIVATE" not in str(refused.value)
    monkeypatch.setenv("MEDOPT_SIGNING_PASSWORD", "open sesame")
    assert sign_release(folder, locked)
    monkeypatch.delenv("MEDOPT_SIGNING_PASSWORD")
    with pytest.raises(ConfigError, match="Ed25519 or ECDSA"):
        sign_release(folder, saved(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048)))
    other = certificate("B", ec.generate_private_key(ec.SECP256R1()), "B", ec.generate_private_key(ec.SECP256R1()))
    key = saved(tmp_path / "key.pem", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ConfigError, match="is not that of the key"):
        sign_release(folder, key, [written(tmp_path / "other.pem", other)])


def test_an_empty_trust_folder_is_an_error_and_not_a_free_pass(folder: Path, trust: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.pem file"):
        check_signature(folder, trust)


def test_a_damaged_release_is_not_signed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(ReleaseError, match="was changed"):
        sign_release(folder, saved(tmp_path / "key.pem", ed25519.Ed25519PrivateKey.generate()))
    assert not (folder / SIGNATURE).exists()


def test_without_a_trust_folder_nothing_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDOPT_TRUST", raising=False)
    assert check_trusted(folder) is None
