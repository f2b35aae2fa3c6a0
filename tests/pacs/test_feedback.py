"""Labels that arrive: by pseudonym, accession number or UID into the ledger, and from there into the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clinic_fixtures import call
from node_process import NodeProcess
from peers import Archive
from test_shadow import candidate_of

from medopt.core.files import file_digest
from medopt.core.privacy import pseudonym
from medopt.pacs.answers import AnswerLog
from medopt.pacs.labels import known_labels
from medopt.pacs.ledger import Instance, Ledger
from medopt.pacs.spool import Spool
from medopt.pacs.worker_protocol import ScanRecord, StudyRecord
from medopt.release.layout import SUMS, read_info

STUDIES = 40
"""Two of each patient; study 0 was declined, and the accession number of 2 and 3 is the same."""


def uid(number: int) -> str:
    return f"1.2.826.0.1.4711.{number}.5"


def probability(number: int) -> float:
    return float(np.random.default_rng(number).uniform(0.05, 0.95))


def record(number: int, threshold: float, shift: float = 0.0) -> StudyRecord:
    value = min(max(probability(number) + shift, 0.01), 0.99)
    scan = ScanRecord(
        scan=pseudonym(f"{uid(number)}.1"),
        decision="" if number == 0 else "blob" if value >= threshold else "clear",
        probabilities={"clear": 1 - value, "blob": value},
        logits=(float(np.log(value / (1 - value))),),
        declined="its noise is unlike" if number == 0 else "",
        distances=(0.5, 0.5),
        facts=("DX", "female", "40 to 64", "ACME", "PA", "below 128"),
    )
    accession = f"ACC{2 if number == 3 else number}"
    return StudyRecord(
        patient=pseudonym(f"MRN{number // 2}"), accession=pseudonym(accession), site=pseudonym(f"site {number % 2}"),
        device="", scans=(scan,), seconds=1.0, cpu_seconds=1.0, memory_mb=300,
    )  # fmt: skip


@pytest.fixture
def node(tmp_path: Path, release: Path, archive: Archive) -> Iterator[NodeProcess]:
    """A node whose ledger has answers of the release and of a candidate, which is the release itself."""
    node = NodeProcess(tmp_path, release, archive, shadow={"release": str(release)})
    ledger, digest = Ledger(Spool(tmp_path / "spool").root / "ledger.db"), file_digest(release / SUMS)
    log, threshold = AnswerLog(1000, lambda: digest), read_info(release).models["int8"].threshold
    assert isinstance(threshold, float)
    for number in range(STUDIES):
        ledger.record(Instance(f"{uid(number)}.1", uid(number), "c", "t", "d", 1, f"f{number}", True), 1, late=True)
        ledger.complete(uid(number), 2)
        due = ledger.take(3)
        assert due is not None
        given = record(number, threshold)
        ledger.finish(due, "done", "", [], [], 4, partial(log.record, study=due, release=digest, record=given, now=4))
        other = record(number, threshold, 0.1 * (-1) ** number)
        with ledger.transaction() as db:
            db.execute(
                "UPDATE trials SET state = 'compared', record = ? WHERE state = 'waiting'", (other.model_dump_json(),)
            )
    ledger.close()
    yield node
    node.close()


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def feedback(node: NodeProcess, labels: Path, *more: str) -> dict[str, Any]:
    done = call("feedback", labels, "--node", node.file, "--json", *more)
    assert done.code == 0, done.stderr
    return done.summary


def kept(node: NodeProcess) -> dict[tuple[str, str], dict[str, int]]:
    ledger = Ledger(node.folder / "spool" / "ledger.db")
    found = known_labels(ledger)
    ledger.close()
    return found


def test_a_study_is_named_by_pseudonym_accession_or_uid(node: NodeProcess, tmp_path: Path) -> None:
    mixed = table(
        tmp_path / "l.csv", "study,accession,study_uid,label",
        f"{pseudonym(uid(1))},,,blob", ",ACC4,,Clear", f",,{uid(5)},blob", ",ACC99999,,blob", f",,{uid(6)},",
    )  # fmt: skip
    assert feedback(node, mixed) == {"new": 3, "known": 0, "replaced": 0, "elsewhere": 1}
    assert kept(node) == {(uid(1), ""): {"blob": 1}, (uid(4), ""): {"blob": 0}, (uid(5), ""): {"blob": 1}}
    assert feedback(node, mixed) == {"new": 0, "known": 3, "replaced": 0, "elsewhere": 1}
    one_scan = table(tmp_path / "s.csv", "study_uid,image,label", f"{uid(1)},{uid(1)}.1,clear")
    assert feedback(node, one_scan)["new"] == 1
    assert kept(node)[uid(1), pseudonym(f"{uid(1)}.1")] == {"blob": 0}


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("study_uid", [uid(1)], ("needs a column label",)),
        ("path,label", ["a,blob"], ("one that names the study", "accession")),
        ("study_uid,label", [f"{uid(1)},blob", f"{uid(2)},tumour"], ("row 3 has a label", "clear, blob")),
        ("study_uid,label", [f"{uid(1)},blob", f"{uid(1)},clear"], ("row 3 contradicts an earlier row",)),
        ("accession,label", ["ACC2,blob"], ("row 2 belongs to several studies",)),
        ("accession,label", ["MRN77,blob"], ("no row is of a study",)),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_as_a_whole(
    node: NodeProcess, tmp_path: Path, header: str, rows: list[str], words: tuple[str, ...]
) -> None:
    refused = call("feedback", table(tmp_path / "l.csv", header, *rows), "--node", node.file).refused(3, *words)
    assert kept(node) == {} and "ACC2" not in refused and "MRN77" not in refused


def test_a_label_is_replaced_only_when_asked_and_the_earlier_one_stays(node: NodeProcess, tmp_path: Path) -> None:
    feedback(node, table(tmp_path / "1.csv", "study_uid,label", f"{uid(1)},blob"))
    other = table(tmp_path / "2.csv", "study_uid,label", f"{uid(1)},clear", f"{uid(2)},blob")
    call("feedback", other, "--node", node.file).refused(3, "1 labels contradict", "--replace")
    assert (uid(2), "") not in kept(node)
    assert feedback(node, other, "--replace") == {"new": 1, "known": 0, "replaced": 1, "elsewhere": 0}
    assert kept(node)[uid(1), ""] == {"blob": 0}
    ledger = Ledger(node.folder / "spool" / "ledger.db")
    rows = ledger.rows("SELECT truth, source FROM labels WHERE study_uid = ? ORDER BY id", uid(1))
    ledger.close()
    assert [json.loads(row["truth"]) for row in rows] == [{"blob": 1}, {"blob": 0}]
    assert rows[1]["source"] == file_digest(other)


def test_performance_of_a_node_knows_patients_and_takes_labels_as_they_arrive(
    node: NodeProcess, release: Path, tmp_path: Path
) -> None:
    expected = call("performance", release, node.file, "--json")
    assert expected.code == 0, expected.stderr
    assert (expected.summary["scans"], expected.summary["patients"], expected.summary["answered"]) == (40, 20, 39)
    assert "true" not in expected.summary["findings"]["blob"]

    truth = {number: number % 3 == 0 for number in range(1, STUDIES)}
    rows = [f"{uid(number)},{'blob' if ill else 'clear'}" for number, ill in truth.items()]
    feedback(node, table(tmp_path / "some.csv", "study_uid,label", *rows[:20]))
    some = call("performance", release, node.file, "--json").summary["findings"]["blob"]
    assert some["labelled"] == 20 and some["in_service"]["prevalence"]["n"] == 39
    prevalence = (sum(list(truth.values())[:20]) + sum(probability(number) for number in range(21, 40))) / 39
    assert some["in_service"]["prevalence"]["value"] == pytest.approx(prevalence, abs=1e-6)

    feedback(node, table(tmp_path / "all.csv", "study_uid,label", *rows))
    done = call("performance", release, node.file, "--json")
    every = done.summary["findings"]["blob"]
    for figure in ("auc", "sensitivity", "specificity", "ppv", "prevalence"):
        assert every["in_service"][figure]["value"] == pytest.approx(every["true"][figure]["value"]), figure
    assert "with 39 labels" in done.stdout
    call("performance", release, node.file, "--labels", tmp_path / "all.csv").refused(2, "medopt feedback")
    (tmp_path / "spool" / "ledger.db").unlink()
    Ledger(tmp_path / "spool" / "ledger.db").close()
    call("performance", release, node.file).refused(3, "no answer of this release")


def test_a_shadow_report_has_paired_true_figures(node: NodeProcess, tmp_path: Path) -> None:
    assert "truth" not in call("shadow", "report", node.file, "--json").summary
    rows = [f"{uid(number)},{'clear' if number % 2 else 'blob'}" for number in range(1, STUDIES)]
    feedback(node, table(tmp_path / "l.csv", "study_uid,label", *rows))
    done = call("shadow", "report", node.file, "--json", "--out", tmp_path / "shadow.html")
    assert done.code == 0, done.stderr
    truth = done.summary["truth"]
    assert (truth["cases"], truth["patients"]) == (39, 20)
    (run,) = truth["runs"]
    assert set(run["sites"]) == {pseudonym("site 0"), pseudonym("site 1")}
    assert run["figures"]["auc"]["difference"]["value"] > 0.05  # it moves those that are ill up, and the others down
    assert "Truth known: 39 scans of 20 patients" in done.stdout
    assert "Truth known" in (tmp_path / "shadow.html").read_text()


def test_releases_of_other_questions_are_counted_and_not_compared(
    node: NodeProcess, release: Path, tmp_path: Path
) -> None:
    other = candidate_of(release, tmp_path / "other", labels=["clear", "lump"])
    settings = yaml.safe_load(node.file.read_text())
    node.file.write_text(yaml.safe_dump(settings | {"shadow": {"release": str(other)}}))
    ledger = Ledger(node.folder / "spool" / "ledger.db")
    with ledger.transaction() as db:
        db.execute("UPDATE trials SET candidate = ?", (file_digest(other / SUMS),))
    ledger.close()
    done = call("shadow", "report", node.file, "--json")
    assert done.code == 0, done.stderr
    assert done.summary["studies"]["compared"] == STUDIES and done.summary["overall"]["scans"] == 0
    assert "the releases answer other questions (clear, blob and clear, lump)" in done.stdout
