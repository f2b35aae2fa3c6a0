"""The stage `explain`: where the float network looked in its most confident errors and in a random test sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medopt.config import Study
from medopt.core.files import file_digest
from medopt.core.records import Case, FloatArray
from medopt.evaluation.analysis_results import ExplainedCase, ExplanationResult, NearestCases
from medopt.evaluation.evaluate import output_names
from medopt.evaluation.explain import Chosen, Explainer, check_sanity, choose, scaled, stage_of
from medopt.figures.explanations import Explained, explain_figure, nearest_figure
from medopt.figures.fonts import drawn_labels
from medopt.inference.engines import file_batches, load_batch, open_engine
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import NoResult, RunContext, Stage
from medopt.pipeline.stages.evaluate import PREDICTIONS, test_split_predictions
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.prepare import PreparedSplits, PrepareStage
from medopt.training.loop import load_best
from medopt.transforms.display import displayed_images
from medopt.transforms.prepare import PrepareChain, ReadScan
from medopt.transforms.restore import to_scan

RESULT, FOLDER = "explanations.json", "explain"
CHECKED = 6  # about so many of the cases pass the check of the maps, which takes seven maps each
CAPTION = "Left the scan; right, where the evidence for the answer given lay (Grad-CAM, {stage}). {sanity}"
CAPTION_OF_CASES = (
    "A column for each image of the case; below it, where the evidence for the answer given lay (Grad-CAM, {stage}; "
    "one map for all images). {sanity}"
)


class ExplainStage(Stage[NoResult]):
    """Draw where the float network looked in its most confident errors and in a random sample of the test split."""

    name = "explain"
    inputs = ("prepare", "judge")

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The predictions and the networks."""
        networks = [file_digest(path) for path in context.networks]
        return {"predictions": file_digest(context.folder.path / PREDICTIONS), "networks": networks}

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """Results and pictures."""
        return [folder.path / RESULT, folder.figures / FOLDER]

    def run(self, context: RunContext) -> NoResult:
        """Choose the cases and draw their maps."""
        study, gate_result, table = context.study, context.result(JudgeStage), test_split_predictions(context)["float"]
        calibration, point = gate_result.calibrations["float"], gate_result.points["float"]
        scored = CalibratedPredictions(table, study.data.task, calibration, point)
        splits = context.result(PrepareStage)
        explain_cases(study, splits, context.cases.root, context.networks, scored, context.folder)
        return NoResult()


def explain_cases(
    study: Study,
    splits: PreparedSplits,
    root: Path,
    weights: Sequence[Path],
    scored: CalibratedPredictions,
    place: RunFolder,
) -> None:
    """Draw figures/explain/cases.png and write explanations.json.

    `scored` are the float model's predictions of the test split, in the order of the set; `weights` those of the
    network, or of each member of an ensemble; `root` is where the scans lie. Nothing of a header is written.
    """
    test, folder = splits["test"], place.path / "figures" / FOLDER
    chosen = choose(scored, study.evaluation.explain, study.seed)
    networks = [load_best(study, path) for path in weights]
    images = [load_batch([test.files[one.row]])[0] for one in chosen]
    stage, outputs = stage_of(networks[0], images[0]), scored.probability.shape[1]
    looked = [(image, one.explained(outputs)) for image, one in zip(images, chosen, strict=True)]
    explainer = Explainer(networks, stage)
    maps = [scaled(explainer.map(*pair)) for pair in looked]
    sanity = check_sanity(study, networks, looked[:: max(1, len(looked) // CHECKED)], stage)
    read, names = PrepareChain(study.prepare).read, output_names(scored.task, study.data.labels)
    drawn = output_names(scored.task, drawn_labels(study.data.labels))
    found = [
        _explained(study, read, root, test.cases[one.row], one, values, drawn[one.output])
        for one, values in zip(chosen, maps, strict=True)
    ]
    cases = tuple(
        _record(test.cases[one.row], one, names[one.output], values) for one, values in zip(chosen, maps, strict=True)
    )
    caption = (CAPTION_OF_CASES if study.prepare.channel_names else CAPTION).format(
        stage=stage, sanity=f"\n{sanity.said}"
    )
    if study.data.covariates:
        caption += " What the covariates add to the answer is not on any map."
    explain_figure(found, folder / "cases.png", caption=caption)
    errors = [one for one in chosen if one.why != "drawn at random"]
    nearest = _nearest(study, splits, errors, place) if study.evaluation.nearest and errors else ()
    result = ExplanationResult(method="Grad-CAM", stage=stage, sanity=sanity, cases=cases, nearest=nearest)
    result.write(place.path / RESULT)


def _explained(
    study: Study, read: ReadScan, root: Path, case: Case, chosen: Chosen, values: Tensor, output: str
) -> Explained:
    """The case's scan as it is shown, beside where the network found its evidence for `output`."""
    paths = tuple(f"{root / image}" if image else "" for image in case.channels)
    volume = read(paths or f"{root / case.image}")
    back = to_scan(values[None], volume.array.shape[1:], volume.spacing_mm[-volume.spatial_dims :], study.prepare)
    images = displayed_images(volume, study.prepare)
    title = f"case {case.case_id}, {chosen.why}\n{output} {chosen.probability:.2f}, "
    title += f"decided {'yes' if chosen.decided else 'no'}"
    if study.prepare.channel_names:
        title += f"\n{', '.join(channel for channel, _ in images)}"
    return Explained([image for _, image in images], back[0].numpy(), title)


def _record(case: Case, chosen: Chosen, output: str, values: Tensor) -> ExplainedCase:
    return ExplainedCase(
        case_id=case.case_id,
        why=chosen.why,
        output=output,
        probability=chosen.probability,
        decided=chosen.decided,
        empty_map=not bool(values.any()),
    )


def _nearest(
    study: Study, splits: PreparedSplits, errors: Sequence[Chosen], place: RunFolder
) -> tuple[NearestCases, ...]:
    """The training images nearest to each error by the float model's features, drawn and listed."""
    engine = open_engine("onnxruntime", place.models / "float.onnx", study.compression.cores)
    train, test = splits["train"], splits["test"]
    known, asked = (_features(engine, files) for files in (train.files, [test.files[one.row] for one in errors]))
    rows, nearest = [], []
    for one, features in zip(errors, asked, strict=True):
        apart = np.linalg.norm(known - features, axis=1)
        near = np.argsort(apart, kind="stable")[: study.evaluation.nearest].tolist()
        case = test.cases[one.row]
        images: list[tuple[str, FloatArray]] = [(one.why, _plain(test.files[one.row], study))]
        for row in near:
            words = f"{neighbour_label(study, train.cases[row])}, {apart[row]:.2g}"
            images.append((words, _plain(train.files[row], study)))
        rows.append((f"case {case.case_id}", images))
        nearest.append(NearestCases(case_id=case.case_id, nearest=tuple(train.cases[row].case_id for row in near)))
    nearest_figure(rows, place.path / "figures" / FOLDER / "nearest.png")
    return tuple(nearest)


def _plain(file: Path, study: Study) -> FloatArray:
    """A prepared image without its channels; the images of a case side by side, without their masks."""
    image = load_batch([file])[0]
    count = len(study.prepare.channel_names)
    return np.concatenate(list(image[:count]), axis=-1) if count else np.asarray(image.mean(axis=0))


def _features(engine: Any, files: Sequence[Path]) -> NDArray[np.float64]:
    return np.concatenate([engine.run_both(load_batch(files[part]))[1] for part in file_batches(files)])


def neighbour_label(study: Study, case: Case) -> str:
    """What a training image shows, in words: its class, or the labels that are known to hold."""
    if study.data.task == "multilabel":
        present = ";".join(name for name, yes in zip(study.data.labels, case.label, strict=True) if yes)
        return present or ("none" if None not in case.label else "none known")
    return study.data.labels[case.class_index]
