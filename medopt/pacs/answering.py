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
from medopt.pacs.made import Made
from medopt.pacs.results import Earlier, Origin, ScanAnswer, make_results
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
        made: Sequence[Made] = ()
        if not declined or self._wanted.declined:
            inputs = [digests[path.name] for path in series.files]
            made = make_results(self.origin, answers, inputs, previous, self._wanted, now)
        reason = "; ".join(dict.fromkeys(one.answer.declined for one in answers)) if declined else ""
        decisions = tuple("declined" if one.answer.declined else one.answer.decision for one in answers)
        return Answered("declined" if declined else "done", reason, tuple(made), decisions)

    def _answers(self, folder: Path, series: Series) -> list[ScanAnswer]:
        """A release for volumes takes the series as one, a release for images each of its images by itself."""
        headers = {path: dcmread(path, stop_before_pixels=True, force=True) for path in series.files}
        if len(self._predictor.info.prepare.size) == 3:
            return [ScanAnswer(self._predictor.predict_scan(f"{folder}#{series.uid}"), tuple(headers.values()))]
        return [ScanAnswer(self._predictor.predict_scan(path), (header,)) for path, header in headers.items()]
