"""`medopt serve --try`: the page over HTTP and in a real browser, with and without a key."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, Page, browser
from clinic_fixtures import Finished
from PIL import Image
from server_process import WHOLE, Server, arrays, served

from medopt.inference.evidence_map import Evidence
from medopt.release.layout import ModelInfo, ReleaseInfo, read_info
from medopt.release.predictor import Answer, Release
from medopt.serving.heat_maps import evidence_pictures
from medopt.serving.server.form_data import Form, is_form, parse_form
from medopt.serving.server.limits import Refused
from medopt.serving.server.try_page import Sessions, label_rows, rule_of

KEY = "correct-horse-battery-staple"
IN_A_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")


@pytest.fixture(scope="module")
def scan(finished: Finished) -> Path:
    """One with a finding."""
    release = Release.open(finished.release)
    scans = sorted((finished.clinic.data / "scans").glob("*.dcm"))
    return next(path for path in scans if release.predict(path).decision == "blob")


@pytest.fixture(scope="module")
def server(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with served(finished.release, "--try", "--max-body-mb", 1, TMPDIR=str(folder)) as found:
        yield found
        assert list(folder.glob("medopt-serve-*")) == []
        assert [one for one in found.events if one["event"] == "failure" or one.get("code") == "500"] == []


@pytest.fixture(scope="module")
def locked(finished: Finished) -> Iterator[Server]:
    with served(finished.release, "--try", MEDOPT_API_KEY=KEY) as found:
        yield found
        assert KEY not in "".join(found.raw)


def photo(folder: Path) -> Path:
    """Unlike what the release was trained on."""
    path = folder / "cat.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    return path


def ask(server: Server, content: bytes, name: str = "x", model: str = "clinic", **options: Any) -> httpx.Response:
    return httpx.post(server.url("/try"), files={"scan": (name, content)}, data={"model": model}, timeout=60, **options)


def test_without_try_there_is_no_page(finished: Finished) -> None:
    with served(finished.release) as server:
        assert httpx.get(server.url("/try")).status_code == httpx.post(server.url("/try")).status_code == 404
        assert "page" not in server.wait_for("listening")


def test_the_page_says_what_the_api_says(server: Server, scan: Path) -> None:
    assert server.wait_for("listening")["page"] == server.url("/try")
    page = ask(server, scan.read_bytes(), "QUITTENBAUM^ZOE.dcm")
    answer = httpx.post(server.url("/v2/models/clinic/infer"), content=scan.read_bytes(), headers=WHOLE)
    outputs = arrays(answer)
    assert page.status_code == 200 and f'class="decision">{outputs["decision"][0]}<' in page.text
    for value in outputs["probabilities"][0]:
        assert f"{100 * value:.1f} %" in page.text
    assert "The decision is blob from a probability of" in page.text and "was chosen on validation" in page.text
    assert answer.json()["parameters"]["release_sha256"] in page.text
    logged = [line for line in server.events if line["event"] == "request"]
    assert {line["request"] for line in logged[-2:]} == {logged[-1]["request"]}  # the same scan
    assert "QUITTENBAUM" not in page.text + "".join(server.raw)


def test_the_heat_map_is_that_of_predict(server: Server, finished: Finished, scan: Path) -> None:
    (png,) = re.findall(r'src="data:image/png;base64,([^"]+)"', ask(server, scan.read_bytes()).text)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    release = Release.open(finished.release, mode="throughput")
    evidence = Evidence.open(finished.release / "model.int8.onnx")
    assert evidence is not None
    ((label, expected),) = evidence_pictures(release, evidence, release.chain.read(scan), release.predict(scan), "scan")
    assert label == "blob"
    np.testing.assert_array_equal(shown, expected)


def test_a_declined_scan_has_its_reason_and_nothing_else(server: Server, tmp_path: Path) -> None:
    page = ask(server, photo(tmp_path).read_bytes())
    assert page.status_code == 200 and "Declined" in page.text and "64 pixels along an axis; accepted" in page.text
    assert "<table" not in page.text and "data:image/png" not in page.text
    assert "<title>Declined" in page.text


def test_limits_and_refusals_are_pages(server: Server, scan: Path) -> None:
    content = scan.read_bytes()
    for page, code, words in (
        (ask(server, b"no scan"), 400, "not a format that is read"),
        (ask(server, content, model="nobody"), 404, "no release of that name"),
        (ask(server, b""), 400, "is empty"),
        (httpx.post(server.url("/try"), files={"model": (None, "clinic")}), 400, "Choose one file"),
        (ask(server, bytes(3 << 20)), 413, "larger than this server takes"),
        (httpx.post(server.url("/try"), data={"model": "clinic"}), 400, "multipart/form-data"),
        (ask(server, content, headers={"Sec-Fetch-Site": "cross-site"}), 400, "not the page&#39;s own"),
    ):
        assert page.status_code == code, page.text
        assert words in page.text and 'role="alert"' in page.text
        assert page.headers["content-type"].startswith("text/html")
    assert ask(server, content).status_code == 200


def test_headers_are_strict(server: Server) -> None:
    page = httpx.get(server.url("/try"))
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert "form-action 'self'" in policy and "frame-ancestors 'none'" in policy
    assert (page.headers["cache-control"], page.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "<script" not in page.text and not re.search(r'(src|href)="(?!data:)[^"]*//', page.text)


def test_the_page_asks_for_the_key_once(locked: Server, scan: Path) -> None:
    content = scan.read_bytes()
    with httpx.Client(base_url=locked.url(""), timeout=60) as client:
        page = client.get("/try")
        assert page.status_code == 401 and 'type="password"' in page.text and "clinic" not in page.text
        refused = client.post("/try", files={"scan": ("x", content)}, data={"model": "clinic"})
        assert refused.status_code == 401 and 'type="password"' in refused.text
        wrong = client.post("/try/key", data={"key": KEY[:-1]}, follow_redirects=True)
        assert wrong.status_code == 401 and "not the server&#39;s API key" in wrong.text and not client.cookies
        right = client.post("/try/key", data={"key": KEY})
        cookie = right.headers["set-cookie"]
        assert right.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and KEY not in cookie
        assert client.get("/try").status_code == 200
        answer = client.post("/try", files={"scan": ("x", content)}, data={"model": "clinic"})
        assert answer.status_code == 200 and "blob" in answer.text
        assert client.get("/v2/models").status_code == 401  # the cookie is for the page alone
        assert client.post("/try/key", content=b"key=" + b"x" * 5000).status_code == 413
    assert httpx.get(locked.url("/try"), headers={"X-API-Key": KEY}).status_code == 200
    assert httpx.get(locked.url("/try"), cookies={"medopt-try": "9999999999.abc"}).status_code == 401
    assert [line["code"] for line in locked.events if line.get("door") == "page"].count("401") == 2


def test_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    value = sessions.begin()
    assert sessions.is_open(value) and not Sessions().is_open(value)
    for forged in ("", ".", "9" * 12, value + "0", "9" + value, "x." + value.partition(".")[2], "é.é"):
        assert not sessions.is_open(forged)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 3600 + 1)
    assert not sessions.is_open(value)


def info(finished: Finished, **changes: Any) -> tuple[ReleaseInfo, ModelInfo]:
    found = read_info(finished.release)
    model = {"threshold": changes.pop("threshold", 0.5), "band": changes.pop("band", None)}
    return found.model_copy(update=changes), found.models["int8"].model_copy(update=model)


def test_operating_points_are_told(finished: Finished) -> None:
    answer = Answer({"a": 0.2, "b": 0.3, "c": 0.5}, "c", (0.0,))
    classes = info(finished, task="multiclass", labels=["a", "b", "c"], threshold=None, band=(0.0, 0.4))
    assert "most probable label" in rule_of(*classes) and "below 40.0 %, the case is left" in rule_of(*classes)
    assert [row.threshold for row in label_rows(*classes, answer)] == [None] * 3
    many = info(finished, task="multilabel", labels=["a", "b", "c"], threshold=(0.1, 0.2, 0.3))
    assert [row.threshold for row in label_rows(*many, answer)] == [0.1, 0.2, 0.3]
    between = info(finished, labels=["a", "b"], threshold=0.3, band=(0.2, 0.42))
    assert "is b from a probability of 42.0 % on and a below 20.0 %; between them" in rule_of(*between)
    binary = info(finished, labels=["a", "b"], threshold=0.25)
    assert [row.threshold for row in label_rows(*binary, answer)] == [None, 0.25] and "b from" in rule_of(*binary)


def choose(page: Page, path: Path) -> None:
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    field = page.call("DOM.querySelector", nodeId=document, selector="#scan")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])


@IN_A_BROWSER
def test_in_a_real_browser(server: Server, scan: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        page.watch()
        page.size(400, 800)
        page.open(server.url("/try"))
        page.shows("at most 1 MiB")
        assert {("button", "Answer"), ("combobox", "Release")} <= set(page.tree())
        choose(page, scan)
        page.click("document.querySelector('button')")
        page.shows("blob", "Threshold", "What answered")
        assert page.run("document.querySelector('img').naturalWidth") >= 512  # the policy lets the picture in
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.barriers() == []
        assert page.run("document.title").startswith("blob")
        roles = page.tree()
        assert {"heading", "table", "columnheader", "rowheader", "figure", "main"} <= {role for role, _ in roles}
        assert next(name for role, name in roles if role == "image").startswith("The scan in grey")
        dark = {}
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            dark[scheme] = page.run("getComputedStyle(document.body).backgroundColor")
        assert dark["light"] != dark["dark"]
        assert page.said == []
        (tmp_path / "large").write_bytes(bytes(30 << 20))  # the browser sends all of it before it shows an answer
        choose(page, tmp_path / "large")
        page.click("document.querySelector('button')")
        page.shows("larger than this server takes")
        assert {url for url in page.requests if not url.startswith("data:")} == {server.url("/try")}


@IN_A_BROWSER
def test_with_the_keyboard_and_a_key(locked: Server, scan: Path, tmp_path: Path) -> None:
    def press(page: Page, key: str, **more: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    with browser(tmp_path / "profile") as page:
        page.open(locked.url("/try"))
        page.shows("asks for its API key")
        assert ("textbox", "API key") in page.tree()
        for text, words in (("wrong", "not the server's API key"), (KEY, "at most 64 MiB")):
            page.until("document.activeElement.id == 'key'")
            page.call("Input.insertText", text=text)
            press(page, "Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
            page.shows(words)
        choose(page, scan)
        for _ in range(2):
            press(page, "Tab", code="Tab", windowsVirtualKeyCode=9)
        page.run("document.querySelector('button').focus()")
        press(page, "Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
        page.shows("What answered", "blob")


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


FILE = b'Content-Disposition: form-data; name="scan"; filename="a"\r\n\r\n'
TYPE = "multipart/form-data; boundary=b"


def test_forms_as_browsers_and_curl_send_them() -> None:
    empty = b'Content-Disposition: form-data; name="scan"; filename=""\r\n\r\n'
    model = b"content-disposition: form-data; name=model\r\n\r\n\xc3\xa4"
    named = b"Content-Disposition: form-data; name=scan; filename*=UTF-8''na%CC%88me\r\nA: b\r\n\r\n\x00\r\n"
    parsed = parse_form(form(FILE + b"one", empty, model, named), TYPE, 4)
    assert parsed == Form((("scan", b"one"), ("scan", b"\x00\r\n")), {"model": "ä"})
    assert is_form("Multipart/Form-Data; boundary=x") and not is_form("application/json") and not is_form(None)


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (form(FILE + b"x"), "multipart/form-data", "boundary is missing"),
        (form(FILE + b"x"), 'multipart/form-data; boundary="c"', "no boundary"),
        (form(FILE + b"x")[:-4], TYPE, "breaks off"),
        (b"", TYPE, "no boundary"),
        (form(FILE + b"x", FILE + b"x", FILE + b"x"), TYPE, "too many parts"),
        (form(b"\r\nx"), TYPE, "Content-Disposition"),
        (form(b"Content-Disposition: attachment; name=x\r\n\r\nx"), TYPE, "Content-Disposition"),
        (form(b"Content-Disposition: form-data; filename=x\r\n\r\nx"), TYPE, "Content-Disposition"),
        (form(FILE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + b"eA=="), TYPE, "encoded"),
        (form(b"Content-Disposition: form-data; name=scan\r\n\r\n" + bytes(5000)), TYPE, "needs a file name"),
        (form(FILE), TYPE, "is empty"),
        (form(b"Content-Disposition: " + b";" * 3000 + b"\r\n\r\nx"), TYPE, "too long"),
    ],
)
def test_a_form_that_is_none_is_refused(body: bytes, content_type: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        parse_form(body, content_type, 2)
    assert refused.value.kind == "malformed"


def test_infer_takes_a_form(server: Server, finished: Finished) -> None:
    url, scans = server.url("/v2/models/clinic/infer"), sorted((finished.clinic.data / "scans").glob("*.dcm"))[-3:]
    files = [("scan", ("QUITTENBAUM.dcm", path.read_bytes())) for path in scans]
    answer = httpx.post(url, files=files, data={"id": "7"}, timeout=60)
    assert answer.json()["id"] == "7"
    alone = [arrays(httpx.post(url, content=path.read_bytes(), headers=WHOLE)) for path in scans]
    for row, single in enumerate(alone):
        np.testing.assert_allclose(
            arrays(answer)["logits"][row].astype(float), single["logits"][0].astype(float), atol=1e-4
        )
    for options, words in (
        ({"files": files, "data": {"model": "clinic"}}, "each a scan"),
        ({"files": files, "headers": WHOLE}, "Inference-Header-Content-Length"),
        ({"files": {"id": (None, "7")}}, "each a scan"),
        ({"files": [("scan", ("a", b"x"))] * 80}, "too many parts"),
    ):
        refused = httpx.post(url, timeout=60, **options)
        assert refused.status_code == 400 and words in refused.json()["error"], refused.text
    assert "QUITTENBAUM" not in answer.text + "".join(server.raw)


def test_many_at_once_are_answered_or_told_that_it_is_full(finished: Finished, scan: Path) -> None:
    content, codes = scan.read_bytes(), list[int]()
    with served(finished.release, "--try", "--max-queue", 2) as server:
        threads = [threading.Thread(target=lambda: codes.append(ask(server, content).status_code)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {200, 429}, [one for one in server.events if one.get("code") == "500"]
        assert ask(server, content).status_code == 200
