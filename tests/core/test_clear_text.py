"""Which addresses would carry a credential in clear: plain HTTP to anything but this machine."""

from __future__ import annotations

import pytest

from medopt.core.clear_text import is_in_clear


@pytest.mark.parametrize(
    "url",
    [
        "http://pacs/dicom-web", "HTTP://PACS:8042", "http://10.0.0.7", "http://127.0.0.1.example", "http://[fd00::1]:80",
        "http://localhost.example", "http://127.0.0.1@pacs/x", "http://0.0.0.0:5000", "http://notlocalhost", "http://",
    ],
)  # fmt: skip
def test_another_machine_by_plain_http_is_in_clear(url: str) -> None:
    assert is_in_clear(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://pacs/dicom-web", "http://127.0.0.1:5000", "http://127.8.9.1/x", "http://localhost:5000",
        "http://LOCALHOST.", "http://u:p@localhost/x", "http://a.localhost", "http://[::1]:5000",
        "http://[::ffff:127.0.0.1]/", "sqlite:////tmp/mlflow.db", "runs", "databricks",
    ],
)  # fmt: skip
def test_this_machine_tls_and_files_are_not(url: str) -> None:
    assert not is_in_clear(url)
