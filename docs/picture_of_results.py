"""Draw docs/pictures/results_in_ohif.png and evidence_map.png: a study's results as a reader sees them.

PYTHONPATH=tests:tests/pacs python docs/picture_of_results.py RELEASE OHIF: the demo's release, and the folder
`package/dist` of the npm package @ohif/app (`npm pack @ohif/app@3.13.2`; MIT). Orthanc with DICOMweb serves a drawn
radiograph and its results, OHIF shows the report in Chromium, and the map is laid over its source image.
"""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from browser import Page, browser
from highdicom.seg import segread
from orthanc import Orthanc
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread

from medopt.core.files import file_digest
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import StudyRequest
from medopt.phantom import Radiograph, draw_case, write_radiograph

PICTURES = Path(__file__).parent / "pictures"
SIZE, SIDE, GREEN = (1100, 700), 300, np.array([0.2, 0.9, 0.3])
SOURCE = "@ohif/extension-default.dataSourcesModule.dicomweb"


def answer_study(release: Path, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A drawn radiograph with a nodule, and all objects that the node would send, by their kinds."""
    header = Radiograph(patient_id="DEMO-08", patient_name="DEMO^08", accession="D008")
    image = write_radiograph(folder / "scan" / "08.dcm", draw_case(4711, "site_b", nodule=True, patient=8), header)
    inference = StudyInference(release, "int8", None, ResultSettings(heat_map_data=True, key_images=True))
    digests = {image.name: file_digest(image)}
    request = StudyRequest(
        folder=image.parent, digests=digests, previous={}, now=datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
    )
    return image, {each.result_type: each.content for each in inference.answer(request).objects}


class Viewer(http.server.SimpleHTTPRequestHandler):
    """OHIF's files, its settings, and Orthanc behind the same address."""

    orthanc = ""

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path.startswith("/dicom-web"):
            self._pass_on()
        elif self.path.startswith("/app-config.js"):
            self._answer("text/javascript", f"window.config = {json.dumps(settings_of())}".encode())
        else:
            if not Path(self.translate_path(self.path)).is_file():  # a page of the application
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self) -> None:
        request = urllib.request.Request(self.orthanc + self.path, headers={"Accept": self.headers["Accept"]})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                self._answer(answer.headers["Content-Type"], answer.read())
        except urllib.error.HTTPError as error:
            self.send_error(error.code)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        """With those that shared memory needs."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def settings_of() -> dict[str, Any]:
    """OHIF's settings: one source of data."""
    source = {
        "friendlyName": "Orthanc", "name": "orthanc", "qidoRoot": "/dicom-web", "wadoRoot": "/dicom-web",
        "wadoUriRoot": "/wado", "qidoSupportsIncludeField": False, "imageRendering": "wadors",
        "thumbnailRendering": "wadors", "enableStudyLazyLoad": True, "supportsFuzzyMatching": False,
        "supportsWildcard": True, "omitQuotationForMultipartRequest": True, "bulkDataURI": {"enabled": True},
    }  # fmt: skip
    return {
        "routerBasename": None, "extensions": [], "modes": [], "customizationService": {}, "showStudyList": True,
        "maxNumberOfWebWorkers": 2, "showWarningMessageForCrossOrigin": False, "showCPUFallbackMessage": False,
        "showLoadingIndicator": True, "defaultDataSourceName": "orthanc",
        "investigationalUseDialog": {"option": "never"},
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 5},
        "dataSources": [{"namespace": SOURCE, "sourceName": "orthanc", "configuration": source}],
    }  # fmt: skip


def picture_of_ohif(url: str, viewer: Path, study: str, folder: Path) -> Image.Image:
    """OHIF with the study open, and its report opened from the list of series."""
    handler = type("Handler", (Viewer,), {"orthanc": url})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(viewer)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with browser(folder, *SIZE, "--use-angle=swiftshader", "--enable-unsafe-swiftshader") as page:
            page.open(f"http://127.0.0.1:{server.server_address[1]}/viewer?StudyInstanceUIDs={study}")
            page.shows("S:9001", "Skip all", seconds=120)
            page.click(with_text("Skip all"))
            place = page.until(place_of(with_text("S:9001")))
            press(page, place, "left", clicks=2)
            page.shows("Certainty of Finding", seconds=120)
            page.click(with_text("No"))
            smaller(page)
            time.sleep(5)  # its drawing is settled
            return Image.open(io.BytesIO(page.picture())).convert("RGB")
    finally:
        server.shutdown()
        server.server_close()


def with_text(text: str) -> str:
    """The innermost element of the page with this text."""
    return f"[...document.querySelectorAll('*')].filter(e => e.textContent.trim() === {json.dumps(text)}).pop()"


def place_of(script: str) -> str:
    """The middle of an element, once it is there."""
    return (
        f"(() => {{ const e = {script}; if (!e) return null; const r = e.getBoundingClientRect(); "
        "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )


def press(page: Page, place: list[float], button: str, clicks: int) -> None:
    """Click so many times."""
    for count in range(1, clicks + 1):
        for kind in ("mousePressed", "mouseReleased"):
            words = {"type": kind, "x": place[0], "y": place[1], "button": button, "clickCount": count}
            page.call("Input.dispatchMouseEvent", **words)


def smaller(page: Page) -> None:
    """Zoom out by dragging with the right button, so that the label beside the image is seen."""
    x, y = page.until(place_of("document.querySelector('.cornerstone-canvas')"))
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="right", buttons=2, clickCount=1)
    for step in range(1, 13):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y - 9 * step, button="right", buttons=2)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y - 108, button="right", clickCount=1)


def picture_of_maps(image: Path, objects: dict[str, bytes]) -> Image.Image:
    """The image, the Secondary Capture as it is sent, and the Segmentation laid over the image."""
    scan = dcmread(image)
    grey = scan.pixel_array / scan.pixel_array.max()
    capture = dcmread(io.BytesIO(objects["heat map"])).pixel_array
    segmentation = segread(io.BytesIO(objects["evidence map"]))
    share = segmentation.get_pixels_by_source_instance([scan.SOPInstanceUID])[0, ..., 0]  # 0 to 1
    tiles = {
        "the image (DX)": np.stack([grey] * 3, -1),
        "heat map (Secondary Capture)": capture / 255,
        "Segmentation, fractional, laid over the image": grey[..., None] * (1 - share[..., None])
        + share[..., None] * GREEN,
    }
    drawn = [Image.fromarray((255 * pixels).clip(0, 255).astype(np.uint8)) for pixels in tiles.values()]
    drawn = [tile.resize((SIDE, SIDE * tile.height // tile.width), Image.Resampling.LANCZOS) for tile in drawn]
    page = Image.new("RGB", (len(tiles) * (SIDE + 8) - 8, max(tile.height for tile in drawn) + 20), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for at, (title, tile) in enumerate(zip(tiles, drawn, strict=True)):
        pen.text((at * (SIDE + 8), 2), title, fill=0, font=font)
        page.paste(tile, (at * (SIDE + 8), 20))
    return page


def save(page: Image.Image, name: str) -> None:
    """In 256 colours, chosen for this picture and dithered."""
    colours = page.quantize(256, Image.Quantize.MAXCOVERAGE)
    page.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(PICTURES / name, optimize=True)


def main() -> None:
    """Draw both."""
    release, viewer = map(Path, sys.argv[1:])
    with TemporaryDirectory() as name:
        folder = Path(name)
        image, objects = answer_study(release, folder)
        save(picture_of_maps(image, objects), "evidence_map.png")
        archive = Orthanc(folder / "orthanc")
        archive.start()
        try:
            for kind, content in (("image", image.read_bytes()), *objects.items()):
                (folder / kind).write_bytes(content)
                archive.upload(folder / kind)
            study = str(dcmread(image, stop_before_pixels=True).StudyInstanceUID)
            page = picture_of_ohif(archive.url, viewer, study, folder / "profile")
        finally:
            archive.stop()
        save(page, "results_in_ohif.png")


if __name__ == "__main__":
    main()
