"""What routing lost is fetched from a real Orthanc, by C-MOVE and by WADO-RS; what is here is not asked for again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from clinic_fixtures import call
from orthanc import Orthanc, needs_orthanc
from peers import radiograph, send
from ports import free_port
from pydicom import dcmread
from web_side import WebSide

from medopt.core.errors import MedoptError
from medopt.pacs.query_retrieve.periodic import Periodic, opened
from medopt.pacs.query_retrieve.reconcile import Reconciled, Reconciler
from medopt.pacs.query_retrieve.web_source import into
from medopt.pacs.settings import Node
from medopt.pacs.spool import LEDGER

pytestmark = needs_orthanc
TODAY = date.today()
WAYS = ("dimse", "web")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    one = Orthanc(tmp_path_factory.mktemp("orthanc") / "o", free_port())
    one.start()
    folder = tmp_path_factory.mktemp("scans")
    for study, many, day in ((1, 3, TODAY), (2, 1, TODAY), (3, 1, TODAY - timedelta(days=30))):
        for number in range(1, many + 1):
            one.upload(radiograph(folder / f"{study}_{number}.dcm", study, number, date=f"{day:%Y%m%d}"))
    one.scans = sorted(folder.iterdir())
    yield one
    one.stop()


@pytest.fixture
def side(side: Callable[..., WebSide], orthanc: Orthanc) -> Callable[..., WebSide]:
    def begin(way: str, **changes: Any) -> WebSide:
        source = (
            {"aet": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port} if way == "dimse" else {"url": orthanc.web}
        )
        told: dict[str, Any] = {
            "port": orthanc.node_port,
            "pull": {"source": source, "modalities": ["DX"], "every_minutes": 0.005},
            "accept": [{"aet": one, "addresses": ["127.0.0.1"]} for one in ("SENDER", "ORTHANC", "MEDOPT")],
            "sending": {"timeout_seconds": 10},
        }
        return side(**told | changes)

    return begin


def reconciled(side: WebSide, reconciler: Reconciler, **more: Any) -> Reconciled:
    deliver = into(side.intake, side.spool, side.node)
    with opened(side.node, deliver, lambda: False) as source:
        return reconciler.reconcile(source, TODAY - timedelta(days=2), lambda: False, **more)


def reconciler_of(node: Node) -> Reconciler:
    assert node.pull is not None
    return Reconciler(node.spool / LEDGER, node.pull.modalities)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_missing_is_fetched_once(side: Callable[..., WebSide], orthanc: Orthanc, way: str) -> None:
    node = side(way)
    reconciler = reconciler_of(node.node)
    assert reconciled(node, reconciler, fetch=False) == Reconciled(studies=2, known=0, missing=4, put_off=0, fetched=0)
    assert send(node.node.port, [orthanc.scans[0]]) == [0]  # one of the first study's three was routed
    assert reconciled(node, reconciler) == Reconciled(studies=2, known=1, missing=3, put_off=0, fetched=3)
    assert reconciled(node, reconciler) == Reconciled(studies=2, known=4, missing=0, put_off=0, fetched=0)
    assert node.told.counts()["received", ""] == 4
    sent = {dcmread(scan).SOPInstanceUID: dcmread(scan) for scan in orthanc.scans[:4]}
    for study in {one.StudyInstanceUID for one in sent.values()}:
        for image in node.ledger.images(study):
            kept = dcmread(node.spool.root / image.file)
            assert kept.pixel_array.tobytes() == sent[image.sop_uid].pixel_array.tobytes()
    assert len(node.files()) == 4


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_arrive_is_not_asked_for_without_end(side: Callable[..., WebSide], way: str) -> None:
    node = side(way, limits={"free_mb": 10**9})
    reconciler = reconciler_of(node.node)
    asked = [reconciled(node, reconciler) for _ in range(4)]
    assert [(one.missing, one.put_off, one.fetched) for one in asked] == [
        (4, 0, 0) if run in (1, 2, 4) else (0, 4, 0) for run in range(1, 5)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_running_node_asks_by_itself(side: Callable[..., WebSide], way: str) -> None:
    node, stop = side(way), threading.Event()
    periodic = Periodic(node.node, node.spool, node.intake, node.told, stop)
    periodic.start()
    until = time.monotonic() + 20
    while len(node.files()) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)  # once more
    stop.set()
    periodic.join()
    assert node.told.counts()["reconciled", ""] == 1
    assert node.told.counts()["received", ""] == 4


def test_a_source_that_is_down_or_says_no(side: Callable[..., WebSide], orthanc: Orthanc, tmp_path: Path) -> None:
    nowhere = free_port()
    for place, why in (
        ({"aet": "ORTHANC", "host": "127.0.0.1", "port": nowhere}, "not reached"),
        ({"url": f"http://127.0.0.1:{nowhere}/dicom-web"}, "not reached"),
        ({"url": f"{orthanc.url}/elsewhere"}, "HTTP 404"),
    ):
        node = side("web", pull={"source": place, "modalities": ["DX"]}, port=free_port())
        with pytest.raises(MedoptError, match=why):
            reconciled(node, reconciler_of(node.node))
    node = side("dimse", aet="STRANGER")
    assert "does not know this node" in reconciled(node, reconciler_of(node.node)).reason


@pytest.mark.parametrize("way", WAYS)
def test_the_command(side: Callable[..., WebSide], tmp_path: Path, way: str) -> None:
    node = side(way)
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(node.node.model_dump(mode="json", exclude_none=True)))
    assert call("pacs", "reconcile", file).code == 2  # nobody holds the spool's lock: no node runs
    looked = call("pacs", "reconcile", file, "--look", "--json")
    assert (looked.code, looked.summary["missing"], len(node.files())) == (0, 4, 0)
    with node.spool.owned():
        found = call("pacs", "reconcile", file, "--since", "2d", "--json")
        assert (found.code, found.summary) == (0, {"studies": 2, "known": 0, "missing": 4, "fetched": 4}), found.stderr
        assert call("pacs", "reconcile", file, "--since", "40d", "--json").summary["missing"] == 1
    assert call("pacs", "reconcile", file, "--since", "soon").code == 2
