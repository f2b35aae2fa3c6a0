"""A real browser without a window, driven over its own protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    def __init__(self, dark: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="medopt-browser-", ignore_cleanup_errors=True)
        words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        words += ["--remote-allow-origins=*", f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"HOME": self._folder.name}
        )
        from websocket import create_connection

        place = Path(self._folder.name) / "DevToolsActivePort"
        until = time.monotonic() + 30
        while not (place.is_file() and "\n" in place.read_text()):
            assert time.monotonic() < until and self._process.poll() is None, "the browser does not start"
            time.sleep(0.05)
        port = place.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10))
        address = next(one["webSocketDebuggerUrl"] for one in pages if one["type"] == "page")
        self._wire = create_connection(address, timeout=30)
        self._number = 0
        self.said: list[str] = []
        for name in ("Page", "Log", "Runtime", "Network"):
            self._ask(f"{name}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def close(self) -> None:
        self._wire.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._wire.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            found = json.loads(self._wire.recv())
            self._note(found)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])

    def _note(self, message: dict[str, Any]) -> None:
        """What the page complains of: blocked styles, errors, requests to elsewhere."""
        if message.get("method") == "Log.entryAdded":
            self.said.append(message["params"]["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])

    requests: list[str] = []  # noqa: RUF012

    def open(self, url: str) -> None:
        self.requests = []
        self._ask("Page.navigate", url=url)
        self.settled()

    def settled(self) -> None:
        until = time.monotonic() + 20
        time.sleep(0.2)
        while self.run("document.readyState") != "complete":
            assert time.monotonic() < until
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def size(self, width: int, height: int) -> None:
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def tree(self) -> list[tuple[str, str]]:
        """Role and name of what assistive technology sees."""
        nodes = self._ask("Accessibility.getFullAXTree")["nodes"]
        return [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one.get("ignored")]
