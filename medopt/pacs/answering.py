"""One study's images in, the objects to send back out: series by rules, decoding, prediction, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydicom import dcmread

from medopt.config import SeriesRules
from medopt.errors import DataError
from medopt.imaging.select import judge
from medopt.imaging.series_index import Series, index_folder
from medopt.inference.evidence import Evidence
from medopt.pacs.heat_map import heat_maps, shown
from medopt.pacs.made import Made
from medopt.pacs.results import Earlier, Origin, ScanAnswer, make_results, namer
from medopt.pacs.settings import Results
from medopt.provenance import file_digest
from medopt.release.contents import SUMS, Kind
from medopt.release.predictor import Predictor

NO_SINGLE_SERIES = "the rules leave no single series"


@dataclass(frozen=True, slots=True)
class Answered:
    """How a study ended. `decisions` are those of its scans, without an identifier."""

    ending: Literal["done", "declined", "parked"]
    reason: str = ""
    made: tuple[Made, ...] = ()
    decisions: tuple[str, ...] = field(default=())


class Answering:
    """An opened release that answers studies."""

    def __init__(self, release: Path, kind: Kind, rules: SeriesRules | None, wanted: Results) -> None:
        """Open the release; raises ReleaseError."""
        self._predictor = Predictor.open(release, kind)
        info = self._predictor.info
        model = info.models[kind]
        self._rules, self._wanted = rules or info.series, wanted
        self._evidence = Evidence.open(release / model.file) if wanted.heat_map else None
        self.origin = Origin(info, model, file_digest(release / model.file), file_digest(release / SUMS))

    def study(self, folder: Path, digests: Mapping[str, str], previous: Earlier, now: datetime) -> Answered:
        """Answer the images of a folder, all of one study; `digests` are the ledger's, by file name.

        A study of which the rules leave no single series, and one whose scans the release declines, is declined. One
        that cannot be read is parked: a person has to look.
        """
        try:
            judged = judge(index_folder(folder).series, self._rules)
            if judged.refused:
                return Answered("declined", f"{NO_SINGLE_SERIES}: {judged.refused[0]}")
            (series,) = judged.choice.taken
            answers = self._answers(folder, series)
        except DataError as error:
            return Answered("parked", str(error).replace(f"{folder}/", "").replace(str(folder), "the study"))
        declined = all(one.answer.declined for one in answers)
        made: list[Made] = []
        if not declined or self._wanted.declined:
            inputs = [digests[path.name] for path in series.files]
            made = make_results(self.origin, answers, inputs, previous, self._wanted, now)
            made += self._heat_maps(folder, series, answers, inputs, now)
        reason = "; ".join(dict.fromkeys(one.answer.declined for one in answers)) if declined else ""
        decisions = tuple("declined" if one.answer.declined else one.answer.decision for one in answers)
        return Answered("declined" if declined else "done", reason, tuple(made), decisions)

    def _heat_maps(
        self, folder: Path, series: Series, answers: Sequence[ScanAnswer], inputs: Sequence[str], now: datetime
    ) -> list[Made]:
        """Of the scans whose finding is not absent; those are read once more, the others never twice."""
        made: list[Made] = []
        if self._evidence is None:
            return made
        for one, scan in zip(answers, self._scans(folder, series), strict=True):
            if not shown(self.origin, one):
                continue
            volume = self._predictor.chain.read(scan)
            places = self._evidence.places(self._predictor.prepare(volume)[0])
            if places is not None:
                uid = namer(self.origin, one, inputs)
                made += heat_maps(self.origin, one, volume, places, uid, self._wanted, now)
        return made

    def _scans(self, folder: Path, series: Series) -> list[str | Path]:
        """What is read as one scan each: the series for a release of volumes, each of its images for one of images."""
        return [f"{folder}#{series.uid}"] if len(self._predictor.info.prepare.size) == 3 else list(series.files)

    def _answers(self, folder: Path, series: Series) -> list[ScanAnswer]:
        headers = tuple(dcmread(path, stop_before_pixels=True, force=True) for path in series.files)
        scans = self._scans(folder, series)
        images = [headers] if len(scans) < len(headers) else [(header,) for header in headers]
        return [ScanAnswer(self._predictor.predict_scan(scan), own) for scan, own in zip(scans, images, strict=True)]
