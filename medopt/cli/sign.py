"""`medopt sign`: whoever answers for a release puts a name to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, ReleaseArgument
from medopt.cli.places import release_folder


def sign(
    release: ReleaseArgument,
    key: Annotated[Path, typer.Option("--key", help="Private key (PEM): Ed25519, or ECDSA on P-256 or P-384.")],
    certificate: Annotated[
        list[Path] | None,
        typer.Option("--certificate", help="Certificate of the key (PEM), then those up to a trusted authority."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a release: a detached signature over the checksums of all its files, checked offline.

    Where MEDOPT_TRUST names a folder of trusted public keys and certificates, verify, predict, serve, the PACS node and
    promote refuse a release without a trusted signature. A password of the key comes from MEDOPT_SIGNING_PASSWORD; with
    MEDOPT_SIGNING_KEY every new release is signed when it is built. openssl genpkey -algorithm ed25519 -out key.pem
    makes a key.

    Example: medopt sign runs/phantom --key key.pem
    """
    folder = release_folder(release)
    from medopt.release.signature import SIGNATURE, sign_release

    digest = sign_release(folder, key, certificate or [])
    typer.echo(f"signed {folder} with the key {digest[:16]}; the signature is {folder / SIGNATURE}")
    print_json(as_json, {"release": str(folder), "key": digest})
