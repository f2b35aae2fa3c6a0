"""Key images: a Key Object Selection (PS3.3 A.35.4, TID 2010) that names the images with a finding that is present."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from medopt.core.records import is_exclusive
from medopt.manifest.label_words import is_absence
from medopt.pacs.result_objects import ModelIdentity, ResultContext, ScanAnswer, encode_object
from medopt.pacs.structured_report import observer
from medopt.pacs.study_header import UNICODE, image_header
from medopt.pacs.worker_protocol import OutgoingObject

KEY_IMAGES = "key images"


def key_images(context: ResultContext, scans: Sequence[ScanAnswer]) -> list[OutgoingObject]:
    """One selection for a study; none where no finding is present. Of a volume it names all images."""
    identity, findings = context.identity, [(scan, _findings(context.identity, scan)) for scan in scans]
    images = [image for scan, present in findings if present for image in scan.images]
    if not images:
        return []
    header = context.header(images)
    moment, present = context.moment(header), dict.fromkeys(label for _, labels in findings for label in labels)
    headers = [image_header(image, header) for image in images]
    document = KeyObjectSelectionDocument(
        evidence=headers,
        content=KeyObjectSelection(
            document_title=codes.DCM.OfInterest,
            referenced_objects=headers,
            observer_device_context=observer(identity),
            description=f"{identity.release.study}: {', '.join(present)}. Research software, unverified, preliminary.",
        ),
        series_instance_uid=context.uid(KEY_IMAGES, "series"),
        series_number=context.settings.series_number + 5,
        sop_instance_uid=context.uid(KEY_IMAGES),
        instance_number=1,
        series_description=f"{identity.release.study} key images (research)"[:64],
        specific_character_set=UNICODE,
        **context.common_attributes(header),
    )
    document.SeriesDate, document.SeriesTime = DA(moment.date()), TM(moment.time())
    context.complete(document, header)
    return [encode_object(KEY_IMAGES, document)]


def _findings(identity: ModelIdentity, scan: ScanAnswer) -> list[str]:
    """The findings that are present; a class of several that says that nothing was found is none."""
    labels = identity.release.reported_labels
    if is_exclusive(identity.release.task):
        labels = [label for label in labels if not is_absence(label)]
    return [label for label in labels if scan.presence(label) == "Present"]
