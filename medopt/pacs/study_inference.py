"""One study's images in, the objects to send back out: series by rules, decoding, prediction, reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from medopt.config import SeriesRules
from medopt.core.errors import DataError
from medopt.core.files import file_digest
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.series_index import Series, index_folder
from medopt.imaging.series_rules import Judgement, fit, judge
from medopt.inference.evidence_map import Evidence
from medopt.pacs.dicom_object import OutgoingObject
from medopt.pacs.heat_map import heat_maps, shown
from medopt.pacs.settings import Results
from medopt.pacs.structured_report import Earlier, ModelIdentity, ScanAnswer, make_results, namer
from medopt.release.layout import SUMS, Kind
from medopt.release.predictor import Answer, Release


@dataclass(frozen=True, slots=True)
class Answered:
    """How a study ended. `decisions` are those of its scans, without an identifier."""

    ending: Literal["done", "declined", "parked"]
    reason: str = ""
    made: tuple[OutgoingObject, ...] = ()
    decisions: tuple[str, ...] = field(default=())


class Answering:
    """An opened release that answers studies."""

    def __init__(self, release: Path, kind: Kind, rules: SeriesRules | None, wanted: Results) -> None:
        """Open the release; raises ReleaseError."""
        self._predictor = Release.open(release, kind)
        info = self._predictor.info
        model = info.models[kind]
        self._rules, self._wanted = rules or info.series, wanted
        self._volumes = len(info.prepare.size) == 3
        self._evidence = Evidence.open(release / model.file) if wanted.heat_maps else None
        self.origin = ModelIdentity(info, model, file_digest(release / model.file), file_digest(release / SUMS))

    def study(self, folder: Path, digests: Mapping[str, str], previous: Earlier, now: datetime) -> Answered:
        """Answer the images of a folder, all of one study; `digests` are the ledger's, by file name.

        A study of which the rules do not leave what is to be answered, and one whose scans the release declines, is
        declined. One that cannot be read is parked: a person has to look.
        """
        try:
            found = index_folder(folder).series
            judged = judge(found, self._rules)
            taken = self._taken(found, judged)
            scans = [scan for series in taken for scan in self._scans(folder, series)]
            answers = [self._answer(scan, images) for scan, images in scans] or [_refused(found, judged)]
        except DataError as error:
            return Answered("parked", str(error).replace(f"{folder}/", "").replace(str(folder), "the study"))
        declined = all(one.answer.declined for one in answers)
        made: list[OutgoingObject] = []
        if not declined or self._wanted.declined:
            inputs = [digests[path.name] for series in taken or found for path in series.files]
            made = make_results(self.origin, answers, inputs, previous, self._wanted, now)
            for scan, answer in self._shown([scan for scan, _ in scans], answers):
                made += self._heat_maps(scan, answer, inputs, now)
        reason = (
            "; ".join(dict.fromkeys(one.answer.declined or "" for one in answers)) if taken else _counted(found, judged)
        )
        decisions = tuple("declined" if one.answer.declined else one.answer.decision for one in answers)
        return Answered("declined" if declined else "done", reason if declined else "", tuple(made), decisions)

    def _taken(self, found: Sequence[Series], judged: Judgement) -> Sequence[Series]:
        """The series to answer, as in training: where rules are given, they leave one series of a study.

        Where none are, a release for images answers each image of each series (two views are often two series); one
        for volumes wants to be told which of several it is.
        """
        if self._volumes or self._rules != SeriesRules():
            return judged.choice.taken
        return fit(found, self._rules)

    def _scans(self, folder: Path, series: Series) -> list[tuple[str | Path, tuple[Path, ...]]]:
        """What is read as one scan each, with its files.

        A release for volumes takes the series as one, a release for images each of its images by itself.
        """
        if self._volumes:
            return [(f"{folder}#{series.uid}", tuple(series.files))]
        return [(path, (path,)) for path in series.files]

    def _answer(self, scan: str | Path, files: Sequence[Path]) -> ScanAnswer:
        images = tuple(parse_dicom(path, stop_before_pixels=True, force=True) for path in files)
        return ScanAnswer(self._predictor.predict(scan), images)

    def _shown(self, scans: Sequence[str | Path], answers: Sequence[ScanAnswer]) -> list[tuple[str | Path, ScanAnswer]]:
        """The scans that get a heat map: those of the highest probability of what is shown."""
        pairs = [pair for pair in zip(scans, answers, strict=False) if shown(self.origin, pair[1])]

        def highest(pair: tuple[str | Path, ScanAnswer]) -> float:
            return max(pair[1].answer.probabilities[label] for label in shown(self.origin, pair[1]))

        return sorted(pairs, key=highest, reverse=True)[: self._wanted.heat_maps]

    def _heat_maps(
        self, scan: str | Path, one: ScanAnswer, inputs: Sequence[str], now: datetime
    ) -> list[OutgoingObject]:
        """Of a scan with a finding that is not absent; it is read once more, the others never twice."""
        if self._evidence is None:
            return []
        volume = self._predictor.chain.read(scan)
        places = self._evidence.places(self._predictor.prepare(volume)[0])
        if places is None:
            return []
        uid = namer(self.origin, one, inputs)
        return heat_maps(self.origin, one, volume, places, uid, self._wanted, now)


def _refused(found: Sequence[Series], judged: Judgement) -> ScanAnswer:
    """What a report says of a study of which no series could be chosen; it names the first image of each."""
    _, _, why = judged.refused[0].partition(": ")
    images = tuple(parse_dicom(one.files[0], stop_before_pixels=True, force=True) for one in found)
    return ScanAnswer(Answer({}, "", (), declined=f"The rules do not leave one series of this study. {why}"), images)


def _counted(found: Sequence[Series], judged: Judgement) -> str:
    """The same for a log: which rule left out how many series, without a word of their headers."""
    words = Counter(judged.choice.reasons[one.uid].split(" ")[0].rstrip(":") for one in found)
    told = ", ".join(f"{many} {'left' if word == 'one' else word}" for word, many in words.items())
    return f"the rules do not leave one of the {len(found)} series of this study ({told})"
