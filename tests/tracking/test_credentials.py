"""No password or token goes to an MLflow server of another machine by plain HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medopt.core.errors import ConfigError
from medopt.tracking.fetch import registered_release
from medopt.tracking.migrate import migrate
from medopt.tracking.store import open_store, tracking_uri, use_store
from medopt.tracking.traces import Traces

SERVER, SECRET = "http://mlflow.clinic.example:5000", "hunter2-planted"
CREDENTIALS = [
    {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": SECRET},
    {"MLFLOW_TRACKING_TOKEN": SECRET},
    {"MLFLOW_TRACKING_URI": f"http://anna:{SECRET}@mlflow.clinic.example:5000"},
]


@pytest.mark.parametrize("given", CREDENTIALS, ids=["password", "token", "address"])
def test_every_way_to_a_server_refuses_credentials_in_clear(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    uri = given.get("MLFLOW_TRACKING_URI", SERVER)
    ways: list[Callable[[], object]] = [
        lambda: tracking_uri(tmp_path), lambda: open_store(tmp_path), lambda: use_store(uri), lambda: Traces(uri),
        lambda: registered_release("models:/lesions@champion", tmp_path),
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(ConfigError, match=r"mlflow\.clinic\.example:5000 in clear.*https://") as refused:
            way()
        assert SECRET not in str(refused.value)


def test_migrate_refuses_its_own_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ConfigError, match="in clear"):
        migrate(tmp_path, SERVER, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", CREDENTIALS[:2], ids=["password", "token"])
@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "https://mlflow.clinic.example"])
def test_tls_and_this_machine_take_credentials(
    given: dict[str, str], uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(tmp_path) == uri


def test_a_server_without_sign_in_may_be_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert tracking_uri(tmp_path) == SERVER
