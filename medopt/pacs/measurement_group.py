"""What a measurement report says of one finding in one scan: a measurement group of TID 1500.

The group has a tracking identifier and a region, the outline of the whole image (TID 1410) or of each image of a series
(TID 1411): the answer is about all of it, and viewers such as OHIF list only groups that have a region in an image.
Where the size of an image is not known, the group names the images alone (TID 1501).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medopt.pacs.result_objects import ModelIdentity, ResultContext, ScanAnswer
from medopt.pacs.study_header import image_header

Pictures = Mapping[tuple[str, str], Sequence[Dataset]]
"""The headers of the pictures of the evidence, by the scan's first image (its SOP instance UID) and the finding."""
NO_PICTURES: Pictures = {}
Group = (
    sr.PlanarROIMeasurementsAndQualitativeEvaluations
    | sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    | sr.MeasurementsAndQualitativeEvaluations
)


def measurement_group(context: ResultContext, scan: ScanAnswer, label: str, pictures: Pictures) -> Group:
    """Presence, and certainty in percent unless the scan was declined; of a number the number, too."""
    certainty = []
    if not scan.answer.declined:
        percent = round(100 * scan.answer.probabilities[label], 2)
        certainty = [sr.Measurement(name=codes.DCM.CertaintyOfFinding, value=percent, unit=codes.UCUM.Percent)]
        certainty += _number(context, scan)
    group = _group(
        scan,
        tracking_identifier(context, scan, label),
        _algorithm(context.identity),
        certainty,
        [sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, getattr(codes.SCT, scan.presence(label)))],
    )
    items = group[0].ContentSequence
    if scan.answer.declined:
        items.append(text_item(codes.DCM.Comment, f"Declined: {scan.answer.declined}"))
    elif scan.answer.missing:
        items.append(text_item(codes.DCM.Comment, missing_covariates(scan)))
    for picture in pictures.get((str(scan.images[0].SOPInstanceUID), label), ()):
        items.append(_image_item(codes.DCM.IllustrationOfROI, picture))
    return group


def tracking_identifier(context: ResultContext, scan: ScanAnswer, label: str) -> sr.TrackingIdentifier:
    """TID 4108: the finding, and a UID that follows from the model, the study's images and the finding."""
    first, scale = str(scan.images[0].SOPInstanceUID), context.identity.release.number
    named = label if scale is None else f"{scale.quantity}: {label}"
    return sr.TrackingIdentifier(uid=context.uid("tracking", first, label), identifier=named)


def image_library(images: Sequence[Dataset]) -> sr.ContainerContentItem:
    """TID 1600 with one group of all images that were read, each once; OHIF looks for it in older versions."""
    library = _container(codes.DCM.ImageLibrary)
    group = _container(codes.DCM.ImageLibraryGroup)
    group.ContentSequence = sr.ContentSequence([_image_item(codes.SCT.Source, image) for image in images])
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _container(name: Code) -> sr.ContainerContentItem:
    return sr.ContainerContentItem(name=name, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _image_item(name: Code, image: Dataset) -> sr.ImageContentItem:
    return sr.ImageContentItem(
        name=name,
        referenced_sop_class_uid=str(image.SOPClassUID),
        referenced_sop_instance_uid=str(image.SOPInstanceUID),
        relationship_type=sr.RelationshipTypeValues.CONTAINS,
    )


def _group(
    scan: ScanAnswer, tracking: sr.TrackingIdentifier, algorithm: sr.AlgorithmIdentification,
    measurements: Sequence[sr.Measurement], evaluations: Sequence[sr.QualitativeEvaluation],
) -> Group:  # fmt: skip
    """TID 1410 of one image, TID 1411 of several, TID 1501 where the size of any is not known."""
    outlines = [outline for image in scan.images if (outline := _outline(image)) is not None]
    if len(outlines) < len(scan.images):
        sources = [
            sr.SourceImageForMeasurementGroup(str(image.SOPClassUID), str(image.SOPInstanceUID))
            for image in scan.images
        ]
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking, algorithm_id=algorithm, measurements=measurements, qualitative_evaluations=evaluations,
            source_images=sources,
        )  # fmt: skip
    if len(outlines) == 1:
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking, referenced_region=outlines[0], algorithm_id=algorithm, measurements=measurements,
            qualitative_evaluations=evaluations,
        )  # fmt: skip
    middle = len(outlines) // 2  # viewers show the first
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking, referenced_regions=[*outlines[middle:], *outlines[:middle]], algorithm_id=algorithm,
        measurements=measurements, qualitative_evaluations=evaluations,
    )  # fmt: skip


def _outline(image: Dataset) -> sr.ImageRegion | None:
    """The border of an image, in pixels from its upper left corner (PS3.3 C.18.6); None if its size is not known."""
    header = image_header(image, Dataset())
    if not (header.Rows and header.Columns):
        return None
    width, height = float(header.Columns), float(header.Rows)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height], [0, 0]])
    source = sr.SourceImageForRegion(str(image.SOPClassUID), str(image.SOPInstanceUID))
    return sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, corners, source)


def missing_covariates(scan: ScanAnswer) -> str:
    """The covariates that the answer did without."""
    return f"Counted as missing: {', '.join(scan.answer.missing)}."


def _number(context: ResultContext, scan: ScanAnswer) -> list[sr.Measurement]:
    """The number of a regression study in its UCUM unit (TID 300), with its interval as the uncertainty (TID 310).

    Its concept is the code that the study gives, else Quantity.
    """
    number, scale = scan.answer.number, context.identity.release.number
    if number is None or scale is None:
        return []
    name = Code(*scale.code.split("^")) if scale.code else codes.SCT.Quantity
    ends = [None if end is None else _decimal(abs(end - number.value)) for end in (number.low, number.high)]
    return [
        sr.Measurement(
            name=name,
            value=_decimal(number.value),
            unit=Code(number.unit, "UCUM", "no units" if number.unit == "1" else number.unit),
            properties=sr.MeasurementProperties(
                lower_measurement_uncertainty=ends[0], upper_measurement_uncertainty=ends[1]
            ),
        )
    ]


def _decimal(value: float) -> float:
    """To six digits, which a decimal string holds."""
    return float(f"{value:.6g}")


def _algorithm(identity: ModelIdentity) -> sr.AlgorithmIdentification:
    """TID 4019; its parameters name everything that a number depends on."""
    parameters = [
        f"model sha256 {identity.model_digest}",
        f"release sha256 {identity.release_digest}",
        f"chain sha256 {identity.release.chain_fingerprint}",
        f"operating point {identity.model.threshold} ({identity.model.rule})",
    ]
    if sets := identity.model.sets:
        parameters.append(f"undecided unless one class is possible, coverage {sets.coverage:g} of each class")
    return sr.AlgorithmIdentification(
        name=identity.release.study,
        version=identity.release.created,
        parameters=parameters,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer="medopt",
    )


def text_item(name: Code, text: str) -> sr.TextContentItem:
    """A text that a container contains."""
    return sr.TextContentItem(name=name, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
