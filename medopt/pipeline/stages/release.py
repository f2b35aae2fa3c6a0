"""The stage `release`: it builds the folder that goes into service if both verdicts pass or a person overrides them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medopt.core.provenance import code_version, digest, machine, package_versions
from medopt.data.cache import load_facts
from medopt.data.images_seen import SEEN_FILE, encode_seen, images_seen
from medopt.evaluation.run_metrics import RunMetrics
from medopt.inference.engines import file_batches, load_batch
from medopt.pipeline.metrics_json import release_info
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages import ood_check
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.release.build import build_release
from medopt.release.drift_reference import Reference
from medopt.release.layout import DOMAIN, MODELS, SUMS, Provenance
from medopt.release.predictor import Release
from medopt.serving.prediction_table import Row, observed
from medopt.training.job import PreparedSplit


@dataclass(frozen=True, slots=True)
class Released:
    """The digest of the release's list of hashes."""

    release: str


class ReleaseStage(Stage[Released]):
    """Build and verify the release, or remove that of a model which no longer passes a verdict."""

    name = "release"
    inputs = ("prepare", "judge", "evaluate")
    result_type = Released

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """All figures, and the images that the networks have seen, where that is known."""
        return {"metrics": digest(RunMetrics.read(context.folder.path).json_values())} | _seen(context)

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The release folder."""
        return [folder.release]

    def complete(self, context: RunContext) -> None:
        """Build nothing if a verdict did not pass the model and nobody overrode it."""
        if RunMetrics.read(context.folder.path).is_released:
            super().complete(context)
            return
        shutil.rmtree(context.folder.release, ignore_errors=True)
        context.folder.forget(self.name)

    def run(self, context: RunContext) -> Released:
        """Raises ReleaseError where the release does not answer its golden cases as the models do."""
        study, folder, metrics = context.study, context.folder, RunMetrics.read(context.folder.path)
        prepared = context.result(PrepareStage)
        provenance = Provenance(
            manifest_digest=context.cases.digest,
            mlflow_run_id=context.tracker.run_id,
            code=code_version(),
            packages=package_versions(),
            machine=machine(),
            data_notes=metrics.data_notes,
        )
        check = folder.models / ood_check.RESULT if study.domain.enabled else None
        judged, name = context.result(JudgeStage), DOMAIN if check else None
        info = release_info(study, judged, metrics, prepared.chain, provenance, name)
        models = {kind: folder.models / f"{kind}.onnx" for kind in MODELS}
        build_release(
            folder.release, info, models, check, lambda predictor: reference_of(predictor, prepared["val"]),
            _seen(context),
        )  # fmt: skip
        return Released(digest((folder.release / SUMS).read_text()))


def _seen(context: RunContext) -> dict[str, str]:
    """The list of the images that the networks have seen, by the name of its file; nothing for runs of 0.1.0.

    With it a registered version or a copied release can be the start of another study.
    """
    digests = frozenset[bytes]().union(*map(images_seen, context.networks))
    return {SEEN_FILE: encode_seen(digests)} if digests else {}


def reference_of(predictor: Release, validation: PreparedSplit) -> Reference:
    """What drift is measured against: the aggregates of a release's answers on the validation images."""
    rows, columns = list[Row](), [one.column for one in predictor.info.covariates]
    for part in file_batches(validation.files):
        acquisitions = [load_facts(file) for file in validation.files[part]]
        cells = [dict(zip(columns, case.covariates, strict=True)) for case in validation.cases[part]]
        answers = predictor.predict_batch(load_batch(validation.files[part]), acquisitions, cells)
        pairs = zip(answers, acquisitions, strict=True)
        rows += [Row("", answer, facts=acquisition) for answer, acquisition in pairs]
    info = predictor.info
    return Reference.of(len(rows), observed(rows, info.labels, has_number=info.number is not None))
