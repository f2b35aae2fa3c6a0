"""Answers one study: choose its series by rules, decode and predict its scans, generate the objects to send back."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation

from medopt.config import SeriesRules
from medopt.core.errors import DataError, ReleaseError
from medopt.core.files import file_digest
from medopt.imaging.channels import ScanPath
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.redact import redacted
from medopt.imaging.series_index import Series, index_folder
from medopt.imaging.series_rules import SeriesSelection, matching_series, select_channels, select_series
from medopt.inference.evidence_map import Evidence
from medopt.pacs.evidence_data import evidence_maps
from medopt.pacs.heat_map import heat_maps, mapped_labels
from medopt.pacs.key_images import key_images
from medopt.pacs.result_objects import ModelIdentity, ResultContext, ScanAnswer, derived_uid, object_header
from medopt.pacs.settings import ResultSettings
from medopt.pacs.structured_report import study_reports
from medopt.pacs.study_header import study_header
from medopt.pacs.study_record import Stopwatch, study_record
from medopt.pacs.worker_protocol import OutgoingObject, StudyRequest, StudyResponse
from medopt.release.case_covariates import Cells, with_headers
from medopt.release.golden import replay
from medopt.release.layout import SUMS, Kind, ReleaseInfo
from medopt.release.predictor import Answer, Release

_LATE_IMPORTS = ("pydicom.pixels.decoders", "skimage.transform", "PIL.ImageFont", "medopt.transforms.restore")


@dataclass(frozen=True, slots=True)
class _Scan:
    """What is read as one scan: a file, `folder#series`, or those of each image of a case; and its files."""

    source: ScanPath
    files: tuple[Path, ...]


class _NoCase(DataError):
    """A study whose series are not the images of one case. The text quotes nothing from headers."""


class StudyInference:
    """An opened release that answers studies."""

    def __init__(
        self, release: Path, precision: Kind, rules: SeriesRules | None, settings: ResultSettings, *,
        answers_only: bool = False,
    ) -> None:  # fmt: skip
        """Open the release and replay its golden cases; raises ReleaseError. `rules` replace its own for series.

        `answers_only`: no object is made of the answers.
        """
        self._answers_only = answers_only
        self._predictor = Release.open(release, precision)
        info = self._predictor.info
        replay(release, info, [self._predictor])
        model = info.models[precision]
        self._rules, self._settings = rules or info.series, settings
        _check_channel_rules(info, self._rules)
        self._takes_volumes = len(info.prepare.size) == 3
        self._evidence = Evidence.open(release / model.file) if settings.heat_maps else None
        self.identity = ModelIdentity(info, model, file_digest(release / model.file), file_digest(release / SUMS))

    def warm_up(self) -> None:
        """Do once what the first study would wait for: libraries that are imported late, and the engine's first run.

        The scan is a blank one and leaves no trace.
        """
        channels, size = self._predictor.info.prepare.input_channels, self._predictor.info.prepare.size
        blank_scan = np.zeros((channels, *size), np.float32)
        with suppress(Exception):  # whatever fails here shows with the first study, where it has a reason
            answer = self._predictor.predict_batch(blank_scan[None], [None])[0]
            image = _drawn_header()
            context = ResultContext(self.identity, str(image.StudyInstanceUID), [], self._settings, datetime.now(UTC))
            study_reports(context, [ScanAnswer(answer, (image,))], {})
            if self._evidence is not None:
                self._evidence.places(blank_scan)
            for name in _LATE_IMPORTS:
                importlib.import_module(name)

    def answer(self, request: StudyRequest) -> StudyResponse:
        """Answer the images of a folder, all of one study.

        The study is declined if the rules leave no series to answer, or if the release declines each of its scans. It
        is parked if it cannot be read, or if the rules do not leave one series for each image of a case: a person has
        to look.
        """
        folder, watch = request.folder, Stopwatch.start()
        try:
            all_images = [_read_header(path) for path in sorted(folder.iterdir())]
            study_header(all_images)
            all_series = index_folder(folder).series
            selection = select_series(all_series, self._rules, may_miss=self._may_miss)
            if self._rules.channels:
                chosen, scans = self._case(folder, all_series)
            else:
                chosen = self._chosen(all_series, selection)
                scans = [scan for series in chosen for scan in self._scans(folder, series)]
            cells = with_headers(self._predictor.info.covariates, {}, all_images)
            answers = [self._predict(scan, cells) for scan in scans] or [_undetermined(all_series, selection)]
            by_series = self._takes_volumes or bool(self._rules.channels)
            record = study_record(all_images, answers, watch, by_series=by_series)
        except _NoCase as error:
            return StudyResponse(ending="parked", reason=str(error))
        except DataError as error:
            reason = redacted(str(error).replace(f"{folder}/", "").replace(str(folder), "the study"), folder)
            return StudyResponse(ending="parked", reason=reason)
        declined, reason = all(scan.answer.declined for scan in answers), ""
        if declined:
            reasons = dict.fromkeys(scan.answer.declined or "" for scan in answers)
            reason = "; ".join(reasons) if chosen else _exclusion_counts(all_series, selection, self._rules)
        return StudyResponse(
            ending="declined" if declined else "done",
            reason=reason,
            objects=self._objects(request, chosen or all_series, scans, answers, all_images),
            decisions=tuple("declined" if scan.answer.declined else scan.answer.decision for scan in answers),
            record=record,
        )

    def _objects(
        self, request: StudyRequest, inputs: Sequence[Series], scans: Sequence[_Scan], answers: Sequence[ScanAnswer],
        all_images: Sequence[Dataset],
    ) -> tuple[OutgoingObject, ...]:  # fmt: skip
        """The reports, heat maps and key images of a study; none for a declined study if the settings say so."""
        if self._answers_only:
            return ()
        if not self._settings.declined and all(scan.answer.declined for scan in answers):
            return ()
        digests = [request.digests[path.name] for series in inputs for path in series.files]
        study_uid = str(answers[0].images[0].StudyInstanceUID)
        context = ResultContext(self.identity, study_uid, digests, self._settings, request.now, all_images)
        maps: list[OutgoingObject] = []
        named: dict[tuple[str, str], list[Dataset]] = {}
        for scan, answer in self._scans_to_map(scans, answers):
            for kind in self._heat_maps(context, scan, answer):
                for label, each in zip(mapped_labels(self.identity, answer), kind, strict=False):
                    key = str(answer.images[0].SOPInstanceUID), label
                    named.setdefault(key, []).append(object_header(each))
                maps += kind
        objects = study_reports(context, answers, request.previous, named) + maps
        if self._settings.key_images:
            objects += key_images(context, answers)
        return tuple(objects)

    def _chosen(self, all_series: Sequence[Series], selection: SeriesSelection) -> Sequence[Series]:
        """The series to answer, as in training: if there are rules, they leave one series of a study.

        Without rules, a release for images answers each image of each series (two views are often two series); a
        release for volumes needs a choice among several.
        """
        if self._takes_volumes or self._rules != SeriesRules():
            return selection.chosen
        return matching_series(all_series, self._rules)

    def _scans(self, folder: Path, series: Series) -> list[_Scan]:
        """A release for volumes reads the series as one scan, a release for images each of its images."""
        if self._takes_volumes:
            return [_Scan(f"{folder}#{series.uid}", tuple(series.files))]
        return [_Scan(path, (path,)) for path in series.files]

    def _case(self, folder: Path, all_series: Sequence[Series]) -> tuple[Sequence[Series], list[_Scan]]:
        """The series of the images of a case, and the case; none where the rules leave no series for any image.

        Raises _NoCase where they leave several series for an image, or none for one of them.
        """
        found = select_channels(all_series, self._rules)
        if not found.chosen and not found.faults:
            return (), []
        if problem := found.problem(self._may_miss):
            raise _NoCase(f"The rules (series.channels) do not leave one series for each image: {problem}.")
        given = [found.chosen.get(name) for name in self._predictor.info.prepare.channel_names]
        series = [one for one in given if one is not None]
        sources = (one and (f"{folder}#{one.uid}" if len(one.files) > 1 else one.files[0]) for one in given)
        files = tuple(path for one in series for path in one.files)
        return series, [_Scan(tuple(source or "" for source in sources), files)]

    @property
    def _may_miss(self) -> bool:
        return self._predictor.info.prepare.missing_channel == "zeros"

    def _predict(self, scan: _Scan, cells: Cells) -> ScanAnswer:
        """The answer to a scan; `cells` are the covariates on which all images of the study agree."""
        headers = tuple(_read_header(path) for path in scan.files)
        image, acquisition = self._predictor.prepare(scan.source)
        (answer,) = self._predictor.predict_batch(image[None], [acquisition], [cells])
        return ScanAnswer(answer, headers, (acquisition.modality, *acquisition.subgroups().values()))

    def _scans_to_map(self, scans: Sequence[_Scan], answers: Sequence[ScanAnswer]) -> list[tuple[_Scan, ScanAnswer]]:
        """The scans that get a heat map: those with the highest probability of a mapped finding."""
        pairs = [pair for pair in zip(scans, answers, strict=False) if mapped_labels(self.identity, pair[1])]

        def highest(pair: tuple[_Scan, ScanAnswer]) -> float:
            answer = pair[1]
            return max(answer.answer.probabilities[label] for label in mapped_labels(self.identity, answer))

        return sorted(pairs, key=highest, reverse=True)[: self._settings.heat_maps]

    def _heat_maps(self, context: ResultContext, scan: _Scan, answer: ScanAnswer) -> list[list[OutgoingObject]]:
        """The pictures of a scan and, where the settings ask for it, its evidence maps; it is read again for them."""
        if self._evidence is None:
            return []
        volume = self._predictor.chain.read(scan.source)
        evidence = self._evidence.places(self._predictor.prepare(volume)[0])
        if evidence is None:
            return []
        makers = [heat_maps, *([evidence_maps] if self._settings.heat_map_data else [])]
        return [make(context, answer, volume, evidence) for make in makers]


def _check_channel_rules(info: ReleaseInfo, rules: SeriesRules) -> None:
    """Raise ReleaseError where the rules do not say which series is each image of a case."""
    names = info.prepare.channel_names
    if not names and rules.channels:
        raise ReleaseError(
            f"A case of the release {info.study} is one image: take the rules for several (series.channels) out of the "
            "node file."
        )
    if set(rules.channels) != set(names):
        raise ReleaseError(
            f"A case of the release {info.study} has {len(names)} images ({', '.join(names)}), and there are rules for "
            f"the series of {', '.join(rules.channels) or 'none'}. Write rules for each into the node file, as in "
            f"series: {{channels: {{{names[0]}: {{description: [{names[0]}]}}, ...}}}}."
        )


def _drawn_header() -> Dataset:
    """The header of no image: for the reports that are written once before the first study."""
    image = Dataset()
    image.SOPClassUID, image.Modality, image.Rows, image.Columns = DigitalXRayImageStorageForPresentation, "DX", 1, 1
    image.StudyInstanceUID = image.SeriesInstanceUID = image.SOPInstanceUID = derived_uid("warm up")
    return image


def _read_header(path: Path) -> Dataset:
    return parse_dicom(path, stop_before_pixels=True, force=True)


def _undetermined(all_series: Sequence[Series], selection: SeriesSelection) -> ScanAnswer:
    """The answer for a study of which no series could be chosen, with the first image of each series."""
    _, _, why = selection.refusals[0].partition(": ")
    headers = tuple(_read_header(series.files[0]) for series in all_series)
    declined = f"The rules do not leave one series of this study. {why}"
    return ScanAnswer(Answer({}, "", (), declined=declined), headers)


def _exclusion_counts(all_series: Sequence[Series], selection: SeriesSelection, rules: SeriesRules) -> str:
    """The same for a log: how many series each rule excluded; nothing is quoted from their headers."""
    if rules.channels:
        counted = select_channels(all_series, rules).problem(may_miss=False)
        return f"the rules leave no series for any image of a case ({counted})"
    excluded = Counter(selection.reasons[series.uid].split(" ")[0].rstrip(":") for series in all_series)
    counts = ", ".join(f"{number} {'left' if rule == 'one' else rule}" for rule, number in excluded.items())
    return f"the rules do not leave one of the {len(all_series)} series of this study ({counts})"
