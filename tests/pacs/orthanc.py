"""A real Orthanc with its DICOMweb plugin, on free ports."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from ports import free_port

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
PLUGINS = Path("/usr/share/orthanc/plugins")
needs_orthanc = pytest.mark.skipif(
    PROGRAM is None or not (PLUGINS / "libOrthancDicomWeb.so").exists(), reason="Orthanc with DICOMweb is not installed"
)


class Orthanc:
    def __init__(self, folder: Path, node_port: int = 11112, **changes: Any) -> None:
        self.folder, self.web_port, self.port, self.node_port = folder, free_port(), free_port(), node_port
        self.url = f"http://127.0.0.1:{self.web_port}"
        self.web = f"{self.url}/dicom-web"
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "HttpPort": self.web_port,
            "DicomPort": self.port,
            "DicomAet": "ORTHANC",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
            "DicomWeb": {"Enable": True},
            "DicomModalities": {"medopt": ["MEDOPT", "127.0.0.1", node_port]},
            "AuthenticationEnabled": False,
            "StableAge": 1,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowMove": True,
        }
        (folder / "orthanc.json").write_text(json.dumps(config | changes))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(PROGRAM), str(self.folder / "orthanc.json")], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"{self.url}/system", timeout=2)
                return
            except requests.ConnectionError:
                assert time.monotonic() < deadline and self.process.poll() is None, (
                    self.folder / "orthanc.log"
                ).read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()  # after SIGTERM it takes four seconds
            self.process.wait()
            self.process = None

    def get(self, path: str) -> Any:
        return requests.get(self.url + path, timeout=60).json()

    def file(self, instance: str) -> bytes:
        return requests.get(f"{self.url}/instances/{instance}/file", timeout=60).content

    def upload(self, path: Path) -> None:
        answer = requests.post(f"{self.url}/instances", data=path.read_bytes(), timeout=60)
        assert answer.status_code == 200, answer.text

    def instances(self) -> list[str]:
        return list(self.get("/instances"))
