"""`medopt predict`: files, folders, archive members; a scan that cannot be read is a row with its reason."""

from __future__ import annotations

import csv
import multiprocessing as mp
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from clinic import Clinic, draw_scan
from clinic_fixtures import Finished, call
from numpy.typing import NDArray
from PIL import Image

from medopt.config import Prepare
from medopt.core.errors import DataError, StorageError
from medopt.core.records import FloatArray
from medopt.imaging import parallel
from medopt.inference.runtime import Setting
from medopt.metrics.calibration import UNCALIBRATED
from medopt.phantom import Radiograph, write_radiograph
from medopt.release.predictor import Release
from medopt.serving.batch import find_scans, predict_scans
from medopt.serving.prediction_table import DETAILS, Row, write_answers
from medopt.transforms.prepare import PrepareChain


@pytest.fixture(scope="module")
def predictor(finished: Finished) -> Release:
    return Release.open(finished.release, threads=1)


@pytest.fixture
def mixed(clinic: Clinic, tmp_path: Path) -> Path:
    """Two scans, one in a folder below, and between them files that are none."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    shutil.copy(clinic.data / "scans" / "060.dcm", folder / "a.dcm")
    (folder / "b.dcm").write_bytes(b"this is no scan" * 20)
    shutil.copy(clinic.data / "scans" / "061.dcm", folder / "below" / "IM0001")
    for name in ("notes.txt", ".hidden", "DICOMDIR", "list.CSV"):
        (folder / name).write_text("no scan, and nobody would ask for it")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_folder_is_searched_and_files_are_taken_as_given(mixed: Path) -> None:
    below = [mixed / "a.dcm", mixed / "b.dcm", mixed / "below" / "IM0001"]
    assert find_scans([mixed], 2) == below
    assert find_scans([mixed / "notes.txt", mixed / "below"], 2) == [mixed / "notes.txt", below[2]]
    archive = Path(f"{mixed}/many.npz#images/3")
    assert find_scans([archive], 2) == [archive]


def test_nothing_to_predict_is_refused(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no scan"):
        find_scans([tmp_path / "empty"], 2)
    with pytest.raises(DataError, match="There is no file or folder"):
        find_scans([tmp_path / "absent.dcm"], 2)
    out = tmp_path / "out.csv"
    call("predict", finished.release, tmp_path / "empty", "--out", out).refused(3, "DataError", "no scan")
    assert not out.exists()


def test_garbage_gets_its_reason_and_the_others_are_predicted(predictor: Release, mixed: Path) -> None:
    first, garbage, last = predict_scans(predictor, find_scans([mixed], 2))
    for row, path in ((first, mixed / "a.dcm"), (last, mixed / "below" / "IM0001")):
        assert (row.path, row.refused) == (str(path), "")
        assert row.answer == predictor.predict(path)
    assert garbage.answer is None
    assert "b.dcm is not a format that is read" in garbage.refused


def test_many_scans_keep_their_order(predictor: Release, clinic: Clinic) -> None:
    scans = find_scans([clinic.data / "scans"], 2)[::-3]
    rows = list(predict_scans(predictor, scans, workers=3))
    assert [row.path for row in rows] == [str(path) for path in scans]
    assert [row.answer for row in rows] == [predictor.predict(path) for path in scans]


def test_command_writes_a_csv_and_says_that_one_was_refused(finished: Finished, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = call("predict", finished.release, mixed, "--out", out)
    done.refused(3, "1 of 3 scans were refused", "b.dcm")
    rows = rows_of(out)
    declined = sum(bool(row["declined"]) for row in rows)
    assert f"3 scans{f', {declined} of them declined' if declined else ''}, written to {out}" in done.stdout
    assert list(rows[0]) == ["path", "decision", "probability_clear", "probability_blob", *DETAILS]
    assert [Path(row["path"]).name for row in rows] == ["a.dcm", "b.dcm", "IM0001"]
    assert [rows[1][name] for name in ("decision", "probability_clear", "probability_blob")] == ["", "", ""]
    assert "not a format that is read" in rows[1]["refused"]
    assert rows[1]["why"] == rows[1]["refused"]
    opened = Release.open(finished.release)
    for row in (rows[0], rows[2]):
        answer = opened.predict(row["path"])
        assert (row["decision"], row["declined"], row["refused"]) == (answer.decision, answer.declined or "", "")
        assert row["why"] == row["declined"]
        if answer.declined:
            assert row["decision"] == row["probability_blob"] == row["probability_clear"] == ""
            continue
        assert float(row["probability_blob"]) == pytest.approx(answer.probabilities["blob"], abs=1e-6)
        assert float(row["probability_clear"]) + float(row["probability_blob"]) == pytest.approx(1, abs=2e-6)


def test_command_declines_a_scan_unlike_those_of_training_and_says_why(finished: Finished, tmp_path: Path) -> None:
    """An exit code of 0: the scan was read, and the answer is that there is none."""
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (40, 20))
    scan, out = write_radiograph(tmp_path / "stripes.dcm", stripes), tmp_path / "out.csv"
    done = call("predict", finished.release, scan, "--out", out)
    assert done.code == 0
    (row,) = rows_of(out)
    assert row["decision"] == row["probability_blob"] == row["refused"] == ""
    assert "unlike the training images" in row["declined"]
    assert "declined 1 of 1, because" in done.stdout and "1 scan, 1 of them declined" in done.stdout


@pytest.mark.parametrize("options", [("--model", "float"), ("--model", "float", "--engine", "openvino")])
def test_command_takes_files_a_model_and_an_engine(
    finished: Finished, tmp_path: Path, options: tuple[str, ...]
) -> None:
    scans, out = [finished.clinic.data / "scans" / f"{index:03d}.dcm" for index in (5, 4)], tmp_path / "out.csv"
    assert call("predict", finished.release, *scans, "--out", out, *options).code == 0
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [str(path) for path in scans]
    opened = Release.open(finished.release, "float", options[3] if len(options) > 2 else None)
    found = [float(row["probability_blob"]) for row in rows]
    assert found == pytest.approx([opened.predict(p).probabilities["blob"] for p in scans], abs=1e-6)


def test_unknown_model_and_engine_are_refused(finished: Finished) -> None:
    scan = finished.clinic.data / "scans" / "000.dcm"
    call("predict", finished.release, scan, "--model", "int4").refused(2, "Invalid value for '--model'", "int4")
    call("predict", finished.release, scan, "--engine", "tensorrt").refused(6, "tensorrt did not pass the gate")


def test_member_of_an_archive_is_predicted_as_the_scan_itself(predictor: Release, tmp_path: Path) -> None:
    image = np.rint(4095 * draw_scan(1, 3))
    np.savez(tmp_path / "many.npz", images=np.stack([np.zeros_like(image), image]))
    scan = write_radiograph(tmp_path / "one.dcm", draw_scan(1, 3))
    places = [Path(f"{tmp_path}/many.npz#images/{index}") for index in (1, 2)]
    member, absent, whole = predict_scans(predictor, [*places, tmp_path / "many.npz"])
    assert member.answer is not None
    assert member.answer.probabilities == pytest.approx(predictor.predict(scan).probabilities, abs=1e-6)
    assert "the index must be a number from 0 to 1" in absent.refused
    assert "name one image of it" in whole.refused


class NotANumber:
    """An engine whose second answer is not a number."""

    name = "damaged"

    def __init__(self) -> None:
        self.asked = 0

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        self.asked += 1
        return np.full((len(batch), 1), np.nan if self.asked == 2 else 1.0)


def test_answer_that_is_not_a_number_refuses_its_scan_alone(predictor: Release, clinic: Clinic) -> None:
    damaged = Release(predictor.info, "int8", predictor.chain, NotANumber())
    rows = list(predict_scans(damaged, find_scans([clinic.data / "scans"], 2)[:3]))
    assert [row.answer is None for row in rows] == [False, True, False]
    assert "001.dcm: 1 of 1 cases have a logit that is not a finite number" in rows[1].refused


def test_csv_that_cannot_be_written_asks_for_no_prediction(tmp_path: Path) -> None:
    def never() -> Iterator[Row]:
        raise AssertionError("predicted in vain")
        yield

    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_answers(tmp_path / "file" / "out.csv", never(), ["no", "yes"])


def test_csv_is_whole_or_not_at_all(tmp_path: Path) -> None:
    def breaks() -> Iterator[Row]:
        yield Row("a", None, "first, with a comma")
        raise KeyboardInterrupt

    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        write_answers(out, breaks(), ["no", "yes"])
    assert list(tmp_path.iterdir()) == []
    assert write_answers(out, [Row("a", None, "first, with a comma")], ["no", "yes"])
    header, row = out.read_text().splitlines()
    assert header == ",".join(["path,decision,probability_no,probability_yes", *DETAILS])
    assert row == 'a,,,,,"first, with a comma","first, with a comma"' + "," * (len(DETAILS) - 3)


class Brightest:
    """An engine that answers where along the slices the brightest one lies."""

    name = "brightest"

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        return batch.mean(axis=(1, 3, 4)).argmax(axis=1)[:, None].astype(np.float64)


def write_series(folder: Path, bright: int, count: int = 8) -> None:
    """Axial slices from feet to head, one of them bright, under file names that say nothing of their order."""
    folder.mkdir(parents=True)
    for index in range(count):
        header = Radiograph(series_uid=f"1.2.3.{bright}", study_uid="1.2.3", instance_uid=f"1.2.3.{bright}.{index + 1}")
        path = write_radiograph(
            folder / f"{(5 * index) % count}.dcm",
            np.full((16, 16), 0.9 if index == bright else 0.1, np.float32),
            header,
        )
        data = pydicom.dcmread(path)
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * index], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [1.0, 1.0]
        data.save_as(path)


def test_folder_of_slices_is_one_scan_for_a_release_of_volumes(predictor: Release, tmp_path: Path) -> None:
    for bright in (2, 6):
        write_series(tmp_path / "patients" / f"series-{bright}", bright)
    (tmp_path / "patients" / "volume.nii.gz").write_bytes(b"no volume")
    (tmp_path / "patients" / "series-6" / "notes.txt").write_text("of the technician")
    settings = Prepare.model_validate({"size": [8, 16, 16], "intensity": {"method": "range", "low": 0, "high": 4095}})
    model = predictor.info.models["int8"].model_copy(update={"calibration": UNCALIBRATED, "threshold": 0.99})
    info = predictor.info.model_copy(update={"prepare": settings, "models": {"int8": model, "float": model}})
    volumes = Release(info, "int8", PrepareChain(settings), Brightest())
    scans = find_scans([tmp_path / "patients"], 3)
    assert [path.name for path in scans] == ["volume.nii.gz", "series-2", "series-6"]
    damaged, second, sixth = predict_scans(volumes, scans)
    assert "volume.nii.gz" in damaged.refused
    assert second.answer is not None and sixth.answer is not None
    assert (second.answer.logits, sixth.answer.logits) == ((2.0,), (6.0,))
    assert (second.answer.decision, sixth.answer.decision) == ("clear", "blob")


@pytest.mark.parametrize(("size", "workers"), [(4, 2), (16, 1), (7, 3)])
def test_batches_answer_as_one_by_one_and_refuse_only_what_cannot_be_read(
    predictor: Release, clinic: Clinic, tmp_path: Path, size: int, workers: int
) -> None:
    scans = find_scans([clinic.data / "scans"], 2)[:9]
    (tmp_path / "none.dcm").write_bytes(b"this is no scan" * 20)
    scans.insert(5, tmp_path / "none.dcm")
    setting = predictor.setting.model_copy(update={"batch": size, "mode": "throughput"})
    rows = list(predict_scans(replace(predictor, setting=setting), scans, workers=workers))
    assert [row.path for row in rows] == [str(path) for path in scans]
    assert [row.answer is None for row in rows] == [place == 5 for place in range(10)]
    assert "not a format that is read" in rows[5].refused
    for row in (one for one in rows if one.answer):
        alone = predictor.predict(row.path)
        assert row.answer is not None and row.facts is not None
        assert (row.answer.decision, row.answer.declined) == (alone.decision, alone.declined)
        assert row.answer.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_one_answer_that_is_not_a_number_does_not_refuse_its_batch(predictor: Release, clinic: Clinic) -> None:
    class Dark:
        """Of dark images the answer is not a number, in a batch or alone."""

        name = "damaged"

        def run(self, batch: FloatArray) -> NDArray[np.float64]:
            return np.where(batch.mean(axis=(1, 2, 3)) < limit, np.nan, 1.0)[:, None]

    scans = find_scans([clinic.data / "scans"], 2)[:5]
    means = [float(predictor.prepare(path)[0].mean()) for path in scans]
    limit = sorted(means)[1]
    damaged = Release(predictor.info, "int8", predictor.chain, Dark(), setting=Setting(engine="damaged", batch=5))
    rows = list(predict_scans(damaged, scans))
    assert [row.answer is None for row in rows] == [mean < limit for mean in means]
    assert sum("a logit that is not a finite number" in row.refused for row in rows) == 1


def test_decoding_goes_on_in_processes_while_the_model_answers(
    predictor: Release, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "SERIAL_SECONDS", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    scans = find_scans([clinic.data / "scans"], 2)[:12]
    setting = predictor.setting.model_copy(update={"batch": 5})
    rows = predict_scans(replace(predictor, setting=setting), scans, workers=2)
    first = next(rows)
    assert len(mp.active_children()) == 2
    assert [row.answer and row.answer.decision for row in (first, *rows)] == [
        predictor.predict(path).decision for path in scans
    ]
    assert mp.active_children() == []


def test_heat_maps_of_what_is_present(finished: Finished, tmp_path: Path) -> None:
    scans = sorted((finished.clinic.data / "scans").glob("*.dcm"))[-4:]
    out, maps = tmp_path / "out.csv", tmp_path / "maps"
    done = call("predict", finished.release, *scans, "--out", out, "--heatmaps", maps, "--json")
    assert done.code == 0, done.stderr
    present = [row for row in rows_of(out) if row["decision"] in ("blob", "undecided")]
    pictures = sorted(maps.iterdir()) if maps.exists() else []
    assert done.summary["heatmaps"] == len(pictures) == len(present) > 0
    with Image.open(pictures[0]) as picture:
        assert picture.mode == "RGB" and min(picture.size) >= 512
        bar = np.asarray(picture.convert("L"))[-120:]
        assert len(np.unique(bar)) > 20  # the scale of the colours
