"""A real browser for the tests: Debian's Chromium, told what to do by its own protocol (DevTools)."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.said: list[str] = []
        """What the page complains of: blocked styles, errors."""
        self.requests: list[str] = []

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": words}))
        while True:
            answer = json.loads(self._socket.recv(timeout=240))
            if answer.get("method") == "Log.entryAdded":
                self.said.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def watch(self) -> None:
        """Note complaints and requests from now on."""
        for name in ("Log", "Network"):
            self.call(f"{name}.enable")

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def tree(self) -> list[tuple[str, str]]:
        """Role and name of what assistive technology sees."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one.get("ignored")]

    def run(self, script: str, **where: Any) -> Any:
        """The value of a JavaScript expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        return done["result"].get("value")

    def barriers(self) -> list[str]:
        """What axe-core finds wrong for people who use a keyboard or a screen reader, or see little contrast.

        In the light and in the dark; the shapes inside drawings, which have one name as a whole, are left out.
        """
        rules, found = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"), []
        for scheme in ("light", "dark"):
            self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            self.run(rules)
            told = self.run(
                "axe.run({exclude: [['figure svg']]}).then(all => JSON.stringify(all.violations.map("
                "one => `${one.id}: ${one.nodes.map(node => node.html.slice(0, 120)).join(' | ')}`)))"
            )
            found += [f"{scheme}: {text}" for text in json.loads(told)]
        return found

    def framed(self, script: str) -> Any:
        """The value of an expression in the page's first frame, of whatever origin."""
        frames = self.call("Page.getFrameTree")["frameTree"].get("childFrames", [])
        if not frames:
            return None
        world = self.call("Page.createIsolatedWorld", frameId=frames[0]["frame"]["id"])
        return self.run(script, contextId=world["executionContextId"])

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait for an expression to hold; its value."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if found := self.run(script):
                return found
            time.sleep(0.1)
        text = self.run("document.body.innerText") or ""
        raise AssertionError(f"{script} did not hold within {seconds} s; the page says: {text[:1500]}")

    def shows(self, *texts: str, seconds: float = 30) -> None:
        """Wait until the page shows all these texts."""
        for text in texts:
            self.until(f"document.body.innerText.replace(/\\s+/g, ' ').includes({json.dumps(text)})", seconds)

    def click(self, script: str) -> None:
        """A press of the mouse on the element that the expression gives."""
        place = self.until(
            f"(() => {{ const e = {script}; if (!e) return null; e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            words = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", **words)

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pixels(self, script: str) -> np.ndarray:
        """What is seen of the element that the expression gives, (H, W, 3) uint8."""
        x, y, width, height = self.until(
            f"(() => {{ const e = {script}; if (!e) return null; const r = e.getBoundingClientRect(); "
            "return [r.x, r.y, r.width, r.height]; })()"
        )
        image = Image.open(io.BytesIO(self.picture())).convert("RGB")
        return np.asarray(image.crop((int(x), int(y), int(x + width), int(y + height))))


@contextmanager
def browser(folder: Path, width: int = 1440, height: int = 1000, *more: str) -> Iterator[Page]:
    """Chromium without a window, its profile in `folder`."""
    assert CHROMIUM is not None
    words = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--remote-debugging-port=0"),
        "--disable-features=IsolateSandboxedIframes",  # so that a frame's text can be read
        *(f"--user-data-dir={folder}", f"--window-size={width},{height}", *more, "about:blank"),
    ]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told, limit = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < limit, "Chromium did not start"
            time.sleep(0.1)
        port = told.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [one for one in json.load(answer) if one["type"] == "page"]
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None, compression=None) as socket:
            page = Page(socket)
            page.call("Page.enable")
            page.size(width, height)
            yield page
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
