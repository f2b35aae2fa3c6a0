"""Nothing that stands in a header leaves the machine with a reason."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from imaging.scans_made import canonical_affine, letter_f, series, slices
from pydicom import Dataset
from pydicom.sequence import Sequence

from medopt.core.errors import DataError
from medopt.imaging import read_scan
from medopt.imaging.redact import redacted, without

PLANTED = {
    "PatientName": "QUITTENBAUM^ZOE",
    "PatientID": "MRN80017",
    "SeriesDescription": "Thorax QUITTENBAUM ap stehend",
    "ProtocolName": "Prot-Quittenbaum",
    "StudyDescription": "control of Ms Quittenbaum",
    "InstitutionName": "Klinik Nordstern",
    "AccessionNumber": "ACQ3001V",
    "BodyPartExamined": "QUITTENB",
}


@pytest.fixture
def two_series(tmp_path: Path) -> Path:
    item = Dataset()
    item.CodeMeaning = "Nested Quittenbaum meaning"
    for number in (1, 2):
        images = slices(letter_f(), canonical_affine(), ProcedureCodeSequence=Sequence([item]), **PLANTED)
        for image in images:
            image.SeriesInstanceUID = f"1.2.3.{number}"
        series(tmp_path / f"s{number}", images)
        for path in sorted((tmp_path / f"s{number}").iterdir()):
            path.rename(tmp_path / f"{number}_{path.name}")
        (tmp_path / f"s{number}").rmdir()
    return tmp_path


def test_two_series_in_one_folder(two_series: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_scan(two_series)
    local = str(refused.value)
    assert "QUITTENBAUM" in local  # a local user finds the series by its description
    told = redacted(local, two_series)
    assert "holds 2 series" in told
    assert not [word for word in ("QUITTENBAUM", "Quittenbaum", "Thorax", "80017", "Nordstern") if word in told], told


@pytest.mark.parametrize(
    "reason",
    [
        "the value 'QUITTENBAUM^ZOE' is no number",
        "number 3 'Thorax QUITTENB...' (2 files)",
        "description Thorax QUITTENBAUM ap st",
        "quittenbaum^zoe",
        "patient MRN80017, ACQ3001V, at Klinik Nordstern",
        "could not convert 'Nested Quittenbaum meaning'",
    ],
)
def test_values_whole_cut_or_in_words(two_series: Path, reason: str) -> None:
    told = redacted(reason, two_series).lower()
    assert not [word for word in ("quitt", "thorax", "80017", "3001", "nordstern", "nested") if word in told], told


def test_what_is_medopts_own_stays(two_series: Path) -> None:
    reason = "a gap in the series, whose slices are 5.00 mm apart: 10 to 20 of 512 x 512 (ImageType LOCALIZER, CT)"
    assert redacted(reason, two_series) == reason


def test_what_cannot_be_known_is_not_quoted(tmp_path: Path) -> None:
    assert redacted("there is no file", tmp_path / "nowhere") == "there is no file"
    unreadable = tmp_path / "unreadable.dcm"
    unreadable.write_bytes(bytes(128) + b"DICM" + b"\x08\x00\x10\x00XX" + b"QUITTENBAUM" * 3)
    assert "QUITTENBAUM" not in redacted("it holds QUITTENBAUM", unreadable)
    file = tmp_path / "a.nii"
    header = bytearray(352)
    header[148 : 148 + 11], header[344:348] = b"QUITTENBAUM", b"n+1\0"
    file.write_bytes(bytes(header))
    assert redacted("descrip QUITTENBAUM", file) == "descrip (...)"
    assert without("nothing", []) == "nothing"


def test_long_texts_take_no_time() -> None:
    texts = [f"{number}" + "Ab cd^" * 700 for number in range(2000)]
    begun = time.perf_counter()
    assert without("a gap of 5 mm: 17Ab cd^Ab c...", texts) == "a gap of 5 mm: (...)..."
    assert time.perf_counter() - begun < 10
