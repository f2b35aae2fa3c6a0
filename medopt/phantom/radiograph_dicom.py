"""A radiograph as a DICOM object: Digital X-Ray Image Storage - For Presentation (PS3.3 A.26), 12 bits stored in 16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from medopt import __version__
from medopt.core.files import atomic
from medopt.core.records import FloatArray

LARGEST = 4095
"""The largest value of 12 bits."""


@dataclass(frozen=True, slots=True)
class Radiograph:
    """The header of a phantom radiograph: a fictional patient, an imaginary system."""

    patient_id: str = "PHANTOM"
    patient_name: str = "PHANTOM^CHEST"
    sex: str = "O"
    age: int = 50
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    accession: str = ""
    date: str = "20200101"
    time: str = "120000"
    institution: str = "medopt phantom"
    model: str = "medopt phantom"
    kvp: int = 120
    spacing_mm: float = 0.4
    photometric: str = "MONOCHROME2"
    transfer_syntax: UID = ExplicitVRLittleEndian


def phantom_uid(*source: str) -> str:
    """A UID that depends on its sources alone."""
    return str(generate_uid(entropy_srcs=["medopt phantom", *("/" + part for part in source)]))


def write_radiograph(path: Path, pixels: FloatArray, header: Radiograph = Radiograph()) -> Path:
    """Write a radiograph as one DX DICOM file, whole or not at all; the same input gives the same bytes.

    `pixels` is (rows, columns) in 0..1, dense tissue bright. Stored as 0..4095, inverted for MONOCHROME1. UIDs that
    the header leaves empty are derived from the patient and the name of the file. Raises StorageError.
    """
    data = dataset(pixels, header, path.stem)
    with atomic(path) as part:
        data.save_as(part, enforce_file_format=True)
    return path


def dataset(pixels: FloatArray, header: Radiograph, name: str) -> Dataset:
    """The DICOM object of a radiograph, its pixel data encoded."""
    stored = np.rint(np.clip(pixels, 0, 1) * LARGEST).astype(np.uint16)
    inverse = header.photometric == "MONOCHROME1"
    data = Dataset()
    _patient_and_study(data, header, name)
    _acquisition(data, header)
    _image(data, header, *stored.shape)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.ImplementationClassUID = UID(phantom_uid("implementation"))
    data.file_meta.ImplementationVersionName = f"MEDOPT_{__version__}"[:16]
    data.PixelData = (LARGEST - stored if inverse else stored).tobytes()
    data["PixelData"].VR = "OW"
    if header.transfer_syntax != ExplicitVRLittleEndian:
        data.compress(header.transfer_syntax, generate_instance_uid=False)
    return data


def _patient_and_study(data: Dataset, header: Radiograph, name: str) -> None:
    """Modules Patient, General Study, Patient Study, General Series and DX Series, General Equipment."""
    data.SpecificCharacterSet = "ISO_IR 192"
    data.PatientName = header.patient_name
    data.PatientID = header.patient_id
    data.PatientBirthDate = ""
    data.PatientSex = header.sex
    data.PatientAge = f"{header.age:03d}Y"
    data.PatientComments = "Fictional patient, drawn by medopt phantom"
    data.StudyInstanceUID = header.study_uid or phantom_uid(header.patient_id, name, "study")
    data.SeriesInstanceUID = header.series_uid or phantom_uid(header.patient_id, name, "series")
    data.SOPInstanceUID = header.instance_uid or phantom_uid(header.patient_id, name, "instance")
    data.SOPClassUID = DigitalXRayImageStorageForPresentation
    for moment in ("Study", "Series", "Acquisition", "Content"):
        setattr(data, f"{moment}Date", header.date)
        setattr(data, f"{moment}Time", header.time)
    data.AccessionNumber = header.accession
    data.ReferringPhysicianName = ""
    data.StudyID = "1"
    data.StudyDescription = "Chest PA (phantom)"
    data.SeriesNumber = 1
    data.Modality = "DX"
    data.PresentationIntentType = "FOR PRESENTATION"
    data.Manufacturer = "medopt phantom"
    data.InstitutionName = header.institution
    data.ManufacturerModelName = header.model
    data.DeviceSerialNumber = "0"
    data.SoftwareVersions = __version__


def _acquisition(data: Dataset, header: Radiograph) -> None:
    """Modules DX Anatomy Imaged, DX Detector, DX Positioning, X-Ray Generation, Acquisition Context."""
    data.BodyPartExamined = "CHEST"
    data.AnatomicRegionSequence = [_code(codes.SCT.Chest)]
    data.ImageLaterality = "U"
    data.DetectorType = "SCINTILLATOR"
    data.ImagerPixelSpacing = [header.spacing_mm, header.spacing_mm]
    data.DetectorTemperature = None
    data.PositionerType = "NONE"
    data.ViewPosition = "PA"
    data.ViewCodeSequence = [_code(codes.SCT.PosteroAnterior)]
    data.ViewCodeSequence[0].ViewModifierCodeSequence = []
    data.PatientOrientation = ["L", "F"]
    data.KVP = header.kvp
    data.AcquisitionContextSequence = []


def _image(data: Dataset, header: Radiograph, rows: int, columns: int) -> None:
    """Modules General Image, Image Pixel, DX Image, VOI LUT."""
    inverse = header.photometric == "MONOCHROME1"
    data.InstanceNumber = 1
    data.ImageType = ["ORIGINAL", "PRIMARY", ""]
    data.ImageComments = "Drawn, not acquired: not for diagnosis"
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = header.photometric
    data.Rows, data.Columns = rows, columns
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = 0
    data.PixelIntensityRelationship = "LOG"
    data.PixelIntensityRelationshipSign = 1 if inverse else -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
    data.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    data.LossyImageCompression = "00"
    data.BurnedInAnnotation = "NO"
    data.WindowCenter, data.WindowWidth = 2048, 4096


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
