"""A release signed by whoever answers for it: a detached signature over its list of checksums, checked offline.

`SHA256SUMS` names every file of a release with its SHA-256, so that a signature over its bytes is one over all of them.
A release is trusted where the key is one of the trusted public keys, or where a trusted authority issued its
certificate and the dates hold. Keys are Ed25519 (RFC 8032) or ECDSA on P-256 or P-384 with SHA-256 (FIPS 186-5), as
`openssl` makes them; certificates are X.509 (RFC 5280).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel, ConfigDict, ValidationError

from medopt.core.errors import ConfigError, ReleaseError
from medopt.core.files import write_text
from medopt.release.layout import SIGNATURE, SUMS, check_sums
from medopt.release.sbom import refuse_other_runtime

TRUST, KEY, PASSWORD = "MEDOPT_TRUST", "MEDOPT_SIGNING_KEY", "MEDOPT_SIGNING_PASSWORD"
"""Environment: a folder of trusted keys and certificates; the key that new releases are signed with; its password."""
SAME_RUNTIME = "same-runtime"
"""A file in the folder of trust: the packages have to be those of the release's list, too."""
MAX_CHAIN = 4
Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
T = TypeVar("T")


class Signature(BaseModel):
    """`SHA256SUMS.sig`: who signed (the SHA-256 of the public key), the signature in base64, and certificates (PEM)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    key: str
    signature: str
    certificates: tuple[str, ...] = ()


def sign_release(folder: Path, key: Path, certificates: Sequence[Path] = ()) -> str:
    """Sign a release with a private key (PEM), and return the SHA-256 of its public key.

    `certificates` are that of the key, then those between it and a trusted authority. The password of an encrypted key
    comes from MEDOPT_SIGNING_PASSWORD. Raises ReleaseError where the release is damaged, ConfigError for a key or a
    certificate that cannot be used.
    """
    check_sums(folder)
    private = _private_key(key)
    public = private.public_key()
    chain = [_read(path, "certificate", x509.load_pem_x509_certificate) for path in certificates]
    if chain and _digest(chain[0].public_key()) != _digest(public):
        raise ConfigError(f"The certificate {certificates[0]} is not that of the key {key}.")
    content = (folder / SUMS).read_bytes()
    if isinstance(private, ed25519.Ed25519PrivateKey):
        signed = private.sign(content)
    else:
        signed = private.sign(content, ec.ECDSA(hashes.SHA256()))
    texts = tuple(one.public_bytes(serialization.Encoding.PEM).decode() for one in chain)
    found = Signature(key=_digest(public), signature=base64.b64encode(signed).decode(), certificates=texts)
    write_text(folder / SIGNATURE, found.model_dump_json(indent=2) + "\n")
    return found.key


def sign_if_configured(folder: Path) -> None:
    """Sign a new release where MEDOPT_SIGNING_KEY names a key."""
    if key := os.environ.get(KEY, ""):
        sign_release(folder, Path(key))


def check_trusted(folder: Path) -> str | None:
    """Who signed the release, where MEDOPT_TRUST names a folder of trusted keys and certificates; else None.

    Raises ReleaseError where the release is not signed, or by nobody who is trusted; with a file `same-runtime` in the
    folder also where the packages here are not those that the release lists.
    """
    if not (trust := os.environ.get(TRUST, "")):
        return None
    signer = check_signature(folder, Path(trust))
    if (Path(trust) / SAME_RUNTIME).exists():
        refuse_other_runtime(folder)
    return signer


def check_signature(folder: Path, trust: Path, now: datetime | None = None) -> str:
    """Who signed the release, in words. Call it after `check_sums`: the signature is over the list alone.

    `trust` is a folder of .pem files: public keys, and certificates of authorities. Raises ReleaseError saying what is
    wrong with the signature, ConfigError where nothing can be trusted.
    """
    keys, authorities = _trusted(trust)
    try:
        found = Signature.model_validate_json((folder / SIGNATURE).read_bytes())
    except OSError:
        raise ReleaseError(
            f"The release {folder} is not signed, and {TRUST} asks for it. Whoever answers for it signs it: "
            "medopt sign RELEASE --key KEY.pem."
        ) from None
    except ValidationError:
        raise ReleaseError(f"{folder / SIGNATURE} is not a signature that this medopt can read.") from None
    public, who = _signer(found, keys, authorities, now or datetime.now(UTC), folder)
    try:
        content, signed = (folder / SUMS).read_bytes(), base64.b64decode(found.signature, validate=True)
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signed, content)
        else:
            public.verify(signed, content, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        raise ReleaseError(
            f"The signature of the release {folder} does not fit its files: they were changed after it was signed."
        ) from None
    return who


def _signer(
    signature: Signature, keys: dict[str, Public], authorities: Sequence[x509.Certificate], now: datetime, folder: Path
) -> tuple[Public, str]:
    """The key that signed, and by what it is trusted."""
    if signature.key in keys:
        return keys[signature.key], f"the trusted key {signature.key[:16]}"
    try:
        chain = [x509.load_pem_x509_certificate(text.encode()) for text in signature.certificates]
    except ValueError:
        raise ReleaseError(f"{folder / SIGNATURE} holds a certificate that cannot be read.") from None
    if not chain or _digest(chain[0].public_key()) != signature.key:
        raise ReleaseError(
            f"The release {folder} is signed by the key {signature.key[:16]}, which is not trusted: it is not in "
            f"{TRUST}."
        )
    for place, one in enumerate(chain[:MAX_CHAIN]):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            ends = f"{one.not_valid_before_utc:%Y-%m-%d} to {one.not_valid_after_utc:%Y-%m-%d}"
            raise ReleaseError(f"The release {folder} is signed with a certificate that holds from {ends}, not today.")
        if any(_issued(one, root, now) for root in authorities):
            name = chain[0].subject.rfc4514_string()
            return _public(chain[0].public_key()), f"{name}, by a trusted certificate"
        if place + 1 < len(chain) and not _issued(one, chain[place + 1], now):
            break
    raise ReleaseError(f"The release {folder} is signed with a certificate that no trusted authority issued.")


def _issued(certificate: x509.Certificate, authority: x509.Certificate, now: datetime) -> bool:
    """Whether an authority, which may issue certificates and is in force, issued this one."""
    try:
        may = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError):
        return False
    return may and authority.not_valid_before_utc <= now <= authority.not_valid_after_utc


def _trusted(trust: Path) -> tuple[dict[str, Public], list[x509.Certificate]]:
    """The public keys by their digest, and the certificates of authorities. Raises ConfigError where there is none."""
    keys: dict[str, Public] = {}
    authorities = []
    for path in sorted(trust.glob("*.pem")) if trust.is_dir() else ():
        if b"BEGIN CERTIFICATE" in path.read_bytes():
            authorities.append(_read(path, "certificate", x509.load_pem_x509_certificate))
        else:
            key = _public(_read(path, "public key", serialization.load_pem_public_key))
            keys[_digest(key)] = key
    if not keys and not authorities:
        raise ConfigError(f"{TRUST} is {trust}, where there is no .pem file of a public key or a certificate.")
    return keys, authorities


def _read(path: Path, what: str, load: Callable[[bytes], T]) -> T:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigError(f"{path} is no {what} in PEM form.") from None


def _private_key(path: Path) -> Private:
    """Raises ConfigError; its text holds neither the key nor its password."""
    given = os.environ.get(PASSWORD, "")
    password = given.encode() if given else None
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password)
    except OSError as error:
        raise ConfigError(f"The key {path} cannot be read: {error.strerror}.") from None
    except TypeError:
        wanted = f"it is encrypted: give its password in {PASSWORD}" if password is None else "it is not encrypted"
        raise ConfigError(f"The key {path} cannot be opened: {wanted}.") from None
    except ValueError:
        raise ConfigError(f"{path} is not a private key in PEM form, or the password in {PASSWORD} is wrong.") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigError(f"The key {path} is {type(key).__name__}; take Ed25519 or ECDSA (P-256, P-384).")
    return key


def _public(key: object) -> Public:
    if isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
        return key
    raise ConfigError(f"A trusted key is {type(key).__name__}; take Ed25519 or ECDSA (P-256, P-384).")


def _digest(key: object) -> str:
    """SHA-256 of a public key's DER form, in hexadecimal digits."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_public(key).public_bytes(serialization.Encoding.DER, form))
    return digest.finalize().hex()
