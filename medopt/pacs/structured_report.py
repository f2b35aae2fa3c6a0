"""The reports: a Comprehensive 3D SR after TID 1500, and a Basic Text SR for viewers that read only that.

Both are unverified and preliminary, with the patient, study and accession number of the images (PS3.3 A.35). Their UIDs
follow from the study, the images, the model and the type of report, so that the same work never gives a second object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import BasicTextSRStorage

from medopt.pacs.measurement_group import (
    NO_PICTURES,
    Pictures,
    image_library,
    measurement_group,
    missing_covariates,
    text_item,
)
from medopt.pacs.result_objects import (
    ModelIdentity,
    ResultContext,
    ScanAnswer,
    derived_uid,
    encode_object,
)
from medopt.pacs.study_header import UNICODE, image_header
from medopt.pacs.worker_protocol import EarlierResult, OutgoingObject

REPORT, TEXT = "report", "text"


def study_reports(
    context: ResultContext,
    scans: Sequence[ScanAnswer],
    previous: Mapping[str, EarlierResult],
    pictures: Pictures = NO_PICTURES,
) -> list[OutgoingObject]:
    """The reports of one study, which name its `pictures`. `previous` has its latest earlier result of each type."""
    report = _measurement_report(context, scans, previous.get(REPORT), pictures)
    objects = [encode_object(REPORT, report)]
    if context.settings.text:
        objects.append(encode_object(TEXT, _text_report(context, scans, report, previous.get(TEXT))))
    return objects


def _measurement_report(
    context: ResultContext, scans: Sequence[ScanAnswer], previous: EarlierResult | None, pictures: Pictures
) -> Dataset:
    """TID 1500; one measurement group for each finding of each scan."""
    identity, images = context.identity, [image for scan in scans for image in scan.images]
    header, study = context.header(images), identity.release.study
    moment = context.moment(header)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer(identity)),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[
            measurement_group(context, scan, label, pictures)
            for scan in scans
            for label in identity.release.reported_labels
        ],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(image_library(images))
    shown = [picture for each in pictures.values() for picture in each]
    report = sr.Comprehensive3DSR(
        evidence=[*(image_header(image, header) for image in images), *shown],
        content=content[0],
        series_instance_uid=context.uid(REPORT, "series"),
        series_number=context.settings.series_number,
        sop_instance_uid=context.uid(REPORT),
        instance_number=1,
        series_description=f"{study} (research, unverified)"[:64],
        is_complete=True,
        specific_character_set=UNICODE,
        **context.common_attributes(header),
        series_date=moment.date(),
        series_time=moment.time(),
    )
    context.complete(report, header)
    _name_predecessor(report, previous)
    return report


def observer(identity: ModelIdentity) -> sr.ObserverContext:
    """The release as the device that observed (TID 1002, 1004)."""
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", identity.release_digest),
            name=identity.release.study[:64],
            manufacturer_name="medopt",
        ),
    )


def _text_report(
    context: ResultContext, scans: Sequence[ScanAnswer], report: Dataset, previous: EarlierResult | None
) -> Dataset:
    """PS3.3 A.35.1; everything but the content is that of the measurement report."""
    text = Dataset()
    text.update({tag: report[tag] for tag in report.keys()})  # noqa: SIM118  # iterating converts every element
    for keyword in ("ContentTemplateSequence", "PredecessorDocumentsSequence"):
        if keyword in text:
            delattr(text, keyword)
    text.SOPClassUID, text.SOPInstanceUID = BasicTextSRStorage, context.uid(TEXT)
    text.SeriesInstanceUID = context.uid(TEXT, "series")
    text.SeriesNumber = context.settings.series_number + 1
    text.ContentSequence = _paragraphs(context.identity, scans)
    _name_predecessor(text, previous)
    return text


def _paragraphs(identity: ModelIdentity, scans: Sequence[ScanAnswer]) -> list[sr.TextContentItem]:
    """The question, a finding in a paragraph each, and the model: under headings of their own in a viewer."""
    release = identity.release
    findings = []
    for number, scan in enumerate(scans, start=1):
        prefix = f"Image {number} of {len(scans)}: " if len(scans) > 1 else ""
        if scan.answer.declined:
            findings.append(f"{prefix}Undetermined. Declined: {scan.answer.declined.rstrip('.')}.")
            continue
        if (given := scan.answer.number) is not None:
            coverage = "" if given.low is None else f", {given.coverage:.0%} interval in parentheses"
            findings.append(f"{prefix}{given.quantity}: {given.text}{coverage}.")
        for label in identity.release.reported_labels:
            percent = 100 * scan.answer.probabilities[label]
            findings.append(f"{prefix}{label}: {scan.presence(label)}, probability {percent:.1f} %.")
        findings += [f"{prefix}{missing_covariates(scan)}"] if scan.answer.missing else []
    model = (
        f"{release.study} of {release.created}, operating point {_threshold_text(identity.model.threshold)} "
        f"({identity.model.rule}), model sha256 {identity.model_digest}."
    )
    return [
        text_item(codes.DCM.Comment, f"{release.question} Research software, unverified, preliminary."),
        *(text_item(codes.DCM.Finding, finding) for finding in findings),
        text_item(codes.DCM.AlgorithmName, model),
    ]


def _threshold_text(threshold: float | tuple[float, ...] | None) -> str:
    if threshold is None:
        return "none"
    thresholds = threshold if isinstance(threshold, tuple) else (threshold,)
    return ", ".join(f"{value:.4g}" for value in thresholds)


def _name_predecessor(report: Dataset, previous: EarlierResult | None) -> None:
    """Name the report that this one replaces (PS3.3 C.17.2); both are of one study."""
    if previous is None:
        return
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = report.SOPClassUID, previous.sop_uid
    series.SeriesInstanceUID, series.ReferencedSOPSequence = previous.series_uid, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = report.StudyInstanceUID, [series]
    report.PredecessorDocumentsSequence = [study]
