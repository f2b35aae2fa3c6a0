"""The other systems, for real: senders, and a PACS that keeps what it receives; and DICOM files to send."""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ports import free_port
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from medopt.phantom import Radiograph, write_radiograph


def radiograph(path: Path, study: int = 1, number: int = 1, seed: int | None = None, **header: str) -> Path:
    """A small radiograph of the clinic's kind, with names and numbers that a test can search for."""
    from clinic import draw_scan

    study_uid = f"1.2.826.0.1.4711.{study}.5"
    values = {
        "patient_id": f"MRN{8000 + study}P",
        "patient_name": f"QUITTENBAUM{study}^ZOE",
        "study_uid": study_uid,
        "series_uid": f"{study_uid}.1",
        "instance_uid": f"{study_uid}.1.{number}",
        "accession": f"ACQ{3000 + study}V",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_radiograph(
        path, draw_scan(number % 2, study * 100 + number if seed is None else seed), Radiograph(**values | header)
    )
    return path


def association(port: int, calling: str = "SENDER", called: str = "MEDOPT", **options: Any) -> Association:
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    compressed = build_context(DigitalXRayImageStorageForPresentation, RLELossless)
    reports = [build_context(uid, ExplicitVRLittleEndian) for uid in (Comprehensive3DSRStorage, BasicTextSRStorage)]
    ae.requested_contexts = [*AllStoragePresentationContexts[:124], compressed, *reports]
    ae.add_requested_context(Verification)
    return ae.associate("127.0.0.1", port, ae_title=called, **options)


def store(link: Association, scan: Path | Dataset) -> Dataset:
    """C-STORE of a file or a data set; the response. RuntimeError where the association ends without one."""
    dataset = dcmread(scan) if isinstance(scan, Path) else scan
    response = link.send_c_store(dataset)
    if "Status" not in response:
        raise RuntimeError("the association ended before an answer to C-STORE came")
    return response


def patient_association(port: int, **options: Any) -> Association:
    """One that is asked for again where a busy machine took too long to agree."""
    link = association(port, **options)
    for _ in range(2):
        if not (link.is_established or link.is_rejected):
            link = association(port, **options)
    assert link.is_established
    return link


def send(port: int, scans: Iterable[Path | Dataset], **options: Any) -> list[int]:
    """All of them in one association; the status of each."""
    link = patient_association(port, **options)
    statuses = [int(store(link, scan).Status) for scan in scans]
    link.release()
    return statuses


class Archive:
    """A PACS with one port that keeps the bytes of every instance, each time it is sent."""

    def __init__(self, port: int | None = None, aet: str = "PACS") -> None:
        self.port, self.aet = port or free_port(), aet
        self.kept: dict[str, list[bytes]] = defaultdict(list)
        self.status = 0x0000
        self._lock = threading.Lock()
        self._server: Any = None

    def start(self) -> None:
        ae = AE(self.aet)
        ae.supported_contexts = [*AllStoragePresentationContexts]
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _store(self, event: Any) -> int:
        if self.status == 0x0000:
            with self._lock:
                self.kept[str(event.request.AffectedSOPInstanceUID)].append(event.request.DataSet.getvalue())
        return self.status

    def objects(self) -> list[Dataset]:
        return [
            dcmread(io.BytesIO(copies[0]), force=True) if copies[0][128:132] == b"DICM" else _plain(copies[0])
            for copies in self.kept.values()
        ]


def _plain(content: bytes) -> Dataset:
    from pydicom.filereader import read_dataset

    dataset = read_dataset(io.BytesIO(content), is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset
