"""A team's MLflow as `make mlflow-server` starts it: PostgreSQL, sign-in, artifacts through the server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ports import free_port

HERE = Path(__file__).resolve().parents[1] / "mlflow"


def why_not() -> str:
    """Why it cannot be started here, '' where it can."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if missing := [name for name in ("psycopg", "flask_wtf") if find_spec(name) is None]:
        return f"the server's packages are not installed ({', '.join(missing)}): pip install 'medopt[mlflow-server]'"
    return ""


@dataclass(slots=True)
class Team:
    """The server, on a free port, with what it keeps in `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> Path:
        return self.folder / "server.env"

    @property
    def password(self) -> str:
        return (self.folder / "secrets" / "admin_password").read_text().strip()

    def start(self, **more: str) -> str:
        """Returns what it printed until it was ready."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        command = ["bash", str(HERE / "loopback.sh"), str(self.folder), str(self.port)]
        self.process = subprocess.Popen(
            command,
            env=kept | {"PYTHON": sys.executable} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        told = ""
        assert self.process.stdout is not None
        while "Ctrl-C stops" not in told:
            line = self.process.stdout.readline()
            assert line, told
            told += line
        return told

    def stop(self) -> int:
        """As Ctrl-C does; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        finally:
            self.process = None

    def script(self, name: str, *words: object) -> subprocess.CompletedProcess[str]:
        """backup.sh or restore.sh with this server's settings."""
        command = ["bash", str(HERE / name), str(self.settings), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def team_server() -> Iterator[Team]:
    """In a folder that PostgreSQL's own user can enter, which pytest's is not."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-"))
    team = Team(folder, free_port())
    try:
        team.start()
        yield team
    finally:
        if team.process is not None:
            team.stop()
        shutil.rmtree(folder, ignore_errors=True)
