"""A ledger full of answers, for the tests of what is watched."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from medopt.core.files import file_digest
from medopt.core.privacy import pseudonym
from medopt.pacs.ledger import Ledger
from medopt.pacs.spool import LEDGER, Spool
from medopt.pacs.worker_protocol import ScanRecord, StudyRecord
from medopt.release.layout import SUMS, read_info

NOW = 1_700_000_000.0
DAY = 86400.0
PLANTED = "1.2.826.0.1.3680043.666"
"""The first study's UID begins so; its patient and accession number are PLANTED-MRN and PLANTED-ACC."""


def uid(number: int) -> str:
    return f"{PLANTED}.{number}"


def fill(
    folder: Path, release: Path, studies: int, days: float, *, declined: float = 0.1, scanner: str = "ACME",
    first: int = 0, until: float = NOW,
) -> None:  # fmt: skip
    """Add studies of one scan each, spread evenly over the days before `until`; each waited 30 s, one in ten 90 s."""
    info, random = read_info(release), np.random.default_rng(first)
    finding, threshold = info.reported_labels[0], info.models["int8"].threshold
    assert isinstance(threshold, float) and len(info.labels) == 2
    digest, chance = file_digest(release / SUMS), random.random(studies)
    refused = np.arange(studies) % max(studies, 1) < round(declined * studies)
    random.shuffle(refused)
    Spool(folder / "spool")
    Ledger(folder / "spool" / LEDGER).close()
    with closing(sqlite3.connect(folder / "spool" / LEDGER, isolation_level=None)) as db:
        db.execute("BEGIN")
        for number in range(studies):
            at = until - days * DAY * (number + 0.5) / studies
            name, value = uid(first + number), float(chance[number])
            decision = "" if refused[number] else finding if value >= threshold else info.labels[0]
            scan = ScanRecord(
                scan=pseudonym(f"{name}.1"), decision=decision, logits=(0.0,),
                probabilities={info.labels[0]: 1 - value, finding: value},
                declined="its noise is unlike" if refused[number] else "", distances=(0.5, 0.5),
                facts=("DX", "female", "40 to 64", scanner, "PA", "below 128"),
            )  # fmt: skip
            record = StudyRecord(
                patient=pseudonym(f"PLANTED-MRN{number}"), accession=pseudonym("PLANTED-ACC"), site="", device="",
                scans=(scan,), seconds=1.0, cpu_seconds=1.0, memory_mb=300,
            )  # fmt: skip
            db.execute("INSERT INTO studies (uid, state, changed) VALUES (?, 'done', ?)", (name, at))
            received = at - (90.0 if number % 10 == 0 else 30.0)
            db.execute(
                "INSERT INTO instances VALUES (?, ?, 'c', 't', 'd', 1, ?, 1, ?)",
                (f"{name}.1", name, f"f{first + number}", received),
            )
            db.execute(
                "INSERT INTO answers (study_uid, release, patient, accession, images, record, at) "
                "VALUES (?, ?, ?, ?, 1, ?, ?)",
                (name, digest, record.patient, record.accession, record.model_dump_json(), at),
            )
        db.execute("COMMIT")
