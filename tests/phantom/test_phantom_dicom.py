"""The DX object: headers, encodings, and what dciodvfy says of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEGLSLossless

from medopt.core.errors import StorageError
from medopt.phantom import Radiograph, draw_case, write_radiograph
from medopt.phantom.detector import SITES, Site
from medopt.phantom.study import Shot, _draw, plan_patients


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dx")
    first = {who.site: who for who in reversed(plan_patients(24, 3))}
    return {site: _draw(folder, Shot(who, 0), 3) for site, who in first.items()}


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_header_says_what_the_site_is(files: dict[str, Path], site: Site) -> None:
    data = pydicom.dcmread(files[site.name])
    assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == DigitalXRayImageStorageForPresentation
    assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID
    assert data.file_meta.TransferSyntaxUID == site.transfer_syntax
    assert data.PhotometricInterpretation == site.photometric
    assert data.PresentationLUTShape == ("INVERSE" if site.photometric == "MONOCHROME1" else "IDENTITY")
    assert list(data.ImagerPixelSpacing) == [site.spacing_mm] * 2
    assert (data.Rows, data.Columns) == (site.rows, site.columns)
    assert 1024 <= min(data.Rows, data.Columns) <= max(data.Rows, data.Columns) <= 2048
    assert (data.BitsAllocated, data.BitsStored, data.HighBit) == (16, 12, 11)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_patient_is_plainly_fictional(files: dict[str, Path], site: Site) -> None:
    data = pydicom.dcmread(files[site.name])
    assert str(data.PatientName).startswith("PHANTOM^")
    assert data.PatientID.startswith("PHANTOM-")
    assert data.Manufacturer == "medopt phantom"
    assert "Fictional" in data.PatientComments


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_pixels_use_twelve_bits_and_show_dark_lungs(files: dict[str, Path], site: Site) -> None:
    data = pydicom.dcmread(files[site.name])
    stored = data.pixel_array
    assert stored.dtype == np.uint16
    assert stored.max() <= 4095
    assert np.ptp(np.percentile(stored, (1, 99))) > 2400
    bright = 4095 - stored.astype(int) if site.photometric == "MONOCHROME1" else stored.astype(int)
    rows, columns = bright.shape
    band = bright[int(0.40 * rows) : int(0.50 * rows)]
    spine = np.median(band[:, int(0.46 * columns) : int(0.54 * columns)])
    lungs = [np.median(band[:, int(at * columns) : int((at + 0.1) * columns)]) for at in (0.22, 0.68)]
    assert spine > 1.5 * max(lungs)


def test_sites_differ_in_what_issue_and_reader_care_about() -> None:
    assert {site.photometric for site in SITES} == {"MONOCHROME1", "MONOCHROME2"}
    assert any(site.transfer_syntax.is_compressed for site in SITES)
    for what in ("photons", "blur_mm", "gamma", "gain", "offset", "spacing_mm"):
        assert len({getattr(site, what) for site in SITES}) == 3, what


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize("site", [site.name for site in SITES])
def test_dciodvfy_finds_no_error(files: dict[str, Path], site: str) -> None:
    run = subprocess.run(["dciodvfy", str(files[site])], capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    assert "DXImageForPresentation" in said
    assert "Error" not in said, said


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_small_image_is_written_and_read_back(tmp_path: Path, photometric: str, syntax: pydicom.uid.UID) -> None:
    pixels = np.linspace(-0.1, 1.1, 48 * 32, dtype=np.float32).reshape(48, 32)
    header = Radiograph(photometric=photometric, transfer_syntax=syntax)
    data = pydicom.dcmread(write_radiograph(tmp_path / "one.dcm", pixels, header))
    stored = data.pixel_array / 4095
    assert np.allclose(
        1 - stored if photometric == "MONOCHROME1" else stored, pixels.clip(0, 1), atol=0.5 / 4095 + 1e-6
    )


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_small_image_with_default_header_is_valid(tmp_path: Path) -> None:
    path = write_radiograph(tmp_path / "one.dcm", np.full((40, 40), 0.5, np.float32))
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in run.stdout + run.stderr, run.stderr


def test_same_image_same_bytes(tmp_path: Path) -> None:
    pixels = draw_case(1, "site_c", nodule=True, size=(96, 80))
    header = Radiograph(transfer_syntax=JPEGLSLossless)
    one, two = (write_radiograph(tmp_path / name / "x.dcm", pixels, header) for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: pydicom.Dataset, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_radiograph(tmp_path / "x.dcm", np.zeros((8, 8), np.float32))
    assert not list(tmp_path.iterdir())
