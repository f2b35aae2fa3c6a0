"""Authorities and certificates of theirs, made with openssl; the tests skip where that is absent."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

LOCAL = "IP:127.0.0.1,DNS:localhost"


def make_certificates(folder: Path, authorities: Mapping[str, Mapping[str, str]]) -> Path:
    """{authority: {name: whose}} as AUTHORITY.pem, NAME.pem and NAME.key in the folder, which is returned."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with openssl, which is not here")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for authority, names in authorities.items():
        by = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2")
        openssl("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", "/CN=by")
        for name, whose in names.items():
            (folder / f"{name}.ext").write_text(f"subjectAltName={whose}")
            openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *by, "-extfile", f"{name}.ext")
    return folder
