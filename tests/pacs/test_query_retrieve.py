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
from http_node import HttpNode
from orthanc import Orthanc, needs_orthanc
from peers import radiograph, send
from ports import free_port
from pydicom import dcmread

from medopt.core.errors import MedoptError
from medopt.pacs.query_retrieve.periodic import PeriodicPull, open_source
from medopt.pacs.query_retrieve.reconcile import Reconciler, Reconciliation
from medopt.pacs.query_retrieve.web_source import deliver_to_intake
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER

pytestmark = needs_orthanc
TODAY = date.today()
WAYS = ("dimse", "web")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc") / "o", free_port())
    orthanc.start()
    folder = tmp_path_factory.mktemp("scans")
    for study, many, day in ((1, 3, TODAY), (2, 1, TODAY), (3, 1, TODAY - timedelta(days=30))):
        for number in range(1, many + 1):
            orthanc.upload(radiograph(folder / f"{study}_{number}.dcm", study, number, date=f"{day:%Y%m%d}"))
    orthanc.scans = sorted(folder.iterdir())
    yield orthanc
    orthanc.stop()


@pytest.fixture
def start_node(start_http_node: Callable[..., HttpNode], orthanc: Orthanc) -> Callable[..., HttpNode]:
    def start(way: str, **changes: Any) -> HttpNode:
        source = (
            {"aet": "ORTHANC", "host": "127.0.0.1", "port": orthanc.port} if way == "dimse" else {"url": orthanc.web}
        )
        values: dict[str, Any] = {
            "port": orthanc.node_port,
            "pull": {"source": source, "modalities": ["DX"], "every_minutes": 0.005},
            "accept": [{"aet": title, "addresses": ["127.0.0.1"]} for title in ("SENDER", "ORTHANC", "MEDOPT")],
            "sending": {"timeout_seconds": 10},
        }
        return start_http_node(**values | changes)

    return start


def reconcile(node: HttpNode, reconciler: Reconciler, **more: Any) -> Reconciliation:
    deliver = deliver_to_intake(node.intake, node.spool, node.settings)
    with open_source(node.settings, deliver, lambda: False) as source:
        return reconciler.reconcile(source, TODAY - timedelta(days=2), lambda: False, **more)


def reconciler_of(node: NodeSettings) -> Reconciler:
    assert node.pull is not None
    return Reconciler(node.spool / LEDGER, node.pull.modalities)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_missing_is_fetched_once(start_node: Callable[..., HttpNode], orthanc: Orthanc, way: str) -> None:
    node = start_node(way)
    reconciler = reconciler_of(node.settings)
    assert reconcile(node, reconciler, fetch=False) == Reconciliation(
        studies=2, present=0, missing=4, put_off=0, fetched=0
    )
    assert send(node.settings.port, [orthanc.scans[0]]) == [0]  # one of the first study's three was routed
    outcomes = [reconcile(node, reconciler)]
    assert (outcomes[0].studies, outcomes[0].present, outcomes[0].missing, outcomes[0].put_off) == (2, 1, 3, 0)
    while outcomes[-1].reason and len(outcomes) < 3:  # on a busy machine Orthanc may give up a C-MOVE half way
        outcomes.append(reconcile(node, reconciler))
    assert sum(outcome.fetched for outcome in outcomes) == 3
    assert reconcile(node, reconciler) == Reconciliation(studies=2, present=4, missing=0, put_off=0, fetched=0)
    assert node.audit.counts()["received", ""] == 4
    sent = {dcmread(scan).SOPInstanceUID: dcmread(scan) for scan in orthanc.scans[:4]}
    for study in {image.StudyInstanceUID for image in sent.values()}:
        for image in node.ledger.images(study):
            kept = dcmread(node.spool.root / image.file)
            assert kept.pixel_array.tobytes() == sent[image.sop_uid].pixel_array.tobytes()
    assert len(node.files()) == 4


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_arrive_is_not_asked_for_without_end(start_node: Callable[..., HttpNode], way: str) -> None:
    node = start_node(way, limits={"free_mb": 10**9})
    reconciler = reconciler_of(node.settings)
    outcomes = [reconcile(node, reconciler) for _ in range(4)]
    assert [(outcome.missing, outcome.put_off, outcome.fetched) for outcome in outcomes] == [
        (4, 0, 0) if run in (1, 2, 4) else (0, 4, 0) for run in range(1, 5)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_running_node_asks_by_itself(start_node: Callable[..., HttpNode], way: str) -> None:
    node, stop = start_node(way), threading.Event()
    pull = PeriodicPull(node.settings, node.spool, node.intake, node.audit, stop)
    pull.start()
    until = time.monotonic() + 120
    while len(node.files()) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)  # it asks once more
    stop.set()
    pull.join()
    assert node.audit.counts()["reconciled", ""] == 1
    assert node.audit.counts()["received", ""] == 4


def test_a_source_that_is_down_or_says_no(
    start_node: Callable[..., HttpNode], orthanc: Orthanc, tmp_path: Path
) -> None:
    nowhere = free_port()
    for peer, reason in (
        ({"aet": "ORTHANC", "host": "127.0.0.1", "port": nowhere}, "not reached"),
        ({"url": f"http://127.0.0.1:{nowhere}/dicom-web"}, "not reached"),
        ({"url": f"{orthanc.url}/elsewhere"}, "HTTP 404"),
    ):
        node = start_node("web", pull={"source": peer, "modalities": ["DX"]}, port=free_port())
        with pytest.raises(MedoptError, match=reason):
            reconcile(node, reconciler_of(node.settings))
    node = start_node("dimse", aet="STRANGER")
    assert "does not know this node" in reconcile(node, reconciler_of(node.settings)).reason


@pytest.mark.parametrize("way", WAYS)
def test_the_command(start_node: Callable[..., HttpNode], tmp_path: Path, way: str) -> None:
    node = start_node(way)
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(node.settings.model_dump(mode="json", exclude_none=True)))
    assert call("pacs", "reconcile", file).code == 2  # nobody holds the spool's lock: no node runs
    preview = call("pacs", "reconcile", file, "--look", "--json")
    assert (preview.code, preview.summary["missing"], len(node.files())) == (0, 4, 0)
    with node.spool.locked():
        fetched = call("pacs", "reconcile", file, "--since", "2d", "--json")
        assert (fetched.code, fetched.summary) == (0, {"studies": 2, "known": 0, "missing": 4, "fetched": 4}), (
            fetched.stderr
        )
        assert call("pacs", "reconcile", file, "--since", "40d", "--json").summary["missing"] == 1
    assert call("pacs", "reconcile", file, "--since", "soon").code == 2
