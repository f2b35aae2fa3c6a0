"""A run under way: its stages in order. What is unchanged is skipped, and all of it goes to MLflow."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medopt.config import Study, Training
from medopt.core import signals
from medopt.core.files import file_digest, write_json
from medopt.core.provenance import code_version, digest, machine, package_versions
from medopt.core.records import KINDS, EpochRecord, Override
from medopt.core.reporter import Reporter
from medopt.core.result import by_kind
from medopt.evaluation.predictions_io import read_predictions, write_predictions
from medopt.evaluation.run_metrics import METRICS_FILE, RunMetrics
from medopt.models.channel_widths import WIDTHS
from medopt.pipeline import explain, ood_check, robustness
from medopt.pipeline.drift_reference import reference_of
from medopt.pipeline.judge import FLOAT, INT8, NARROW, QUANTIZED, GateResult, judge_models
from medopt.pipeline.metrics_json import FIGURES, draw_figures, release_info, summarize
from medopt.pipeline.mlflow_summary import final_tags, logged_figures, model_name
from medopt.pipeline.prepared_splits import content_of, prepare_sets, refuse_duplicates
from medopt.pipeline.pruning import RESULT, PrunedStep, prune_in_steps, steps_to
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stages import (
    calibration_files,
    compress,
    predict_splits,
    refuse_early,
    validation_score,
)
from medopt.pipeline.study_cases import StudyCases
from medopt.pipeline.test_analyses import inspections
from medopt.release.build import build_release
from medopt.release.layout import DOMAIN, MODELS, SUMS, Provenance
from medopt.report import REPORT, write_report
from medopt.report.run_records import read_run
from medopt.tracking.tracker import Tracker
from medopt.training.auto_settings import resolve_auto
from medopt.training.hardware import Hardware
from medopt.training.job import BEST, PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.launch import dismiss, train
from medopt.transforms.prepare import PrepareChain

Watch = Callable[[Sequence[EpochRecord]], None]


@dataclass(frozen=True, slots=True)
class Run:
    """A run under way."""

    source: StudyCases
    folder: RunFolder
    tracker: Tracker
    reporter: Reporter
    hardware: Hardware
    watch: Watch | None = None

    def end(self, outcome: str) -> None:
        """The run did what was asked of it."""
        self.folder.write_facts(outcome=outcome)
        self.tracker.end(outcome)

    def training(self, runs: Path) -> tuple[dict[Any, PreparedSplit], dict[str, str], list[dict[str, Any]], list[str]]:
        """Prepare and train: the sets, what identifies the run, the history, and what is known of the data."""
        self.log_start()
        sets, identity, notes = self.ready(runs)
        return sets, identity, self._train(sets, identity), notes

    def ready(self, runs: Path) -> tuple[dict[Any, PreparedSplit], dict[str, str], list[str]]:
        """The prepared sets, what identifies the run, and what is known of the data."""
        chain, study = PrepareChain(self.source.study.prepare), self.source.study
        self.reporter.stage("prepare", "")
        sets = prepare_sets(self.source, chain, runs / "cache", self.reporter)
        refuse_early(study, sets)
        notes = [*refuse_duplicates(study, sets), *self.source.notes]
        return sets, {"study": study.digest(), "chain": chain.fingerprint, "data": content_of(sets)}, notes

    def all_stages(self, runs: Path) -> dict[str, Any]:
        """The whole way, from the images to the release; returns `metrics.json` with the folder and the link."""
        study, path = self.source.study, self.folder.path
        sets, identity, history, notes = self.training(runs)
        weights, models = path / "checkpoints" / BEST, [self.folder.models / name for name in (FLOAT, QUANTIZED)]
        pruned = self._prune(sets, identity, weights)
        models += [self.folder.models / NARROW] if pruned else []
        inputs = identity | {"history": history} | {step.weights.parent.name: step.facts for step in pruned}

        def compressing() -> dict[str, Any]:
            return compress(study, sets, weights, self.folder, self.reporter, pruned[-1].weights if pruned else None)

        compressed = self.stage("compress", inputs, models, compressing)
        return self.judged_on(sets, identity | {"compressed": compressed}, history, notes, [weights])

    def ensemble(
        self, runs: Path, members: Sequence[Path], files: dict[str, list[str]], merge: Callable[[Path], None]
    ) -> dict[str, Any]:
        """The stages after training, for a model merged of the members' run folders instead of a trained one."""
        self.log_start()
        sets, identity, notes = self.ready(runs)
        outputs = [self.folder.models / name for name in (FLOAT, QUANTIZED)]

        def merging() -> dict[str, Any]:
            merge(self.folder.models)
            return {"members": [folder.name for folder in members], "files": files}

        merged = self.stage("compress", identity | {"files": files}, outputs, merging)
        weights = [folder / "checkpoints" / BEST for folder in members]
        notes = [f"an ensemble: the mean of the logits of {len(members)} networks, of one seed each", *notes]
        return self.judged_on(sets, identity | {"merged": merged}, [], notes, weights)

    def judged_on(
        self,
        sets: dict[Any, PreparedSplit],
        identity: dict[str, Any],
        history: list[dict[str, Any]],
        notes: list[str],
        weights: Sequence[Path],
    ) -> dict[str, Any]:
        """From the models to the release: judge, evaluate, release, record."""
        study, path, chain = self.source.study, self.folder.path, PrepareChain(self.source.study.prepare)
        inputs = identity | {"history": history}
        models = self.folder.models

        def judging() -> dict[str, Any]:
            calibrating = calibration_files(study, sets)
            return judge_models(study, sets["val"], weights, models, calibrating, self.reporter).json_values()

        judged = GateResult.model_validate(self.stage("judge", inputs, [models / INT8], judging))
        figures = [path / "figures" / f"{name}.png" for name in FIGURES]
        outputs = [path / METRICS_FILE, path / "predictions.csv", *figures]
        override = None if judged.verdict.passed else self._override(models / INT8)
        inputs = identity | {"judged": judged.json_values(), "run": self.tracker.origin, "notes": notes}
        inputs |= {"override": asdict(override) if override else None}
        self.stage("evaluate", inputs, outputs, lambda: self._evaluate(sets, judged, history, notes, override))
        self._inspect(sets, identity, judged, weights)
        metrics = RunMetrics.read(path)
        values = metrics.json_values()
        if judged.verdict.passed or override:
            folder = [self.folder.release]
            held = sets["val"]
            self.stage("release", {"metrics": values}, folder, lambda: self._release(judged, metrics, chain, held))
        else:
            shutil.rmtree(self.folder.release, ignore_errors=True)
        if not judged.verdict.passed:
            self.folder.forget("judge")  # times differ from call to call: the same command measures anew
        self.stage("report", {"metrics": values}, [path / REPORT], self._report)
        self.stage("record", {"metrics": values, "run": self.tracker.origin}, [], lambda: self._record(metrics))
        return values | {"folder": str(path), "mlflow_link": self.tracker.link, "stages": self.folder.seconds()}

    def _override(self, int8: Path) -> Override | None:
        """Who releases what the gate refused. It holds for the model that it was given for, and for no later one."""
        recorded = self.folder.facts().get("override")
        if recorded is None:
            return None
        override, model = Override(**recorded), file_digest(int8)
        if override.model not in ("", model):
            self.reporter.message(f"{override.by} released another model of this run, not this one")
            return None
        override = replace(override, model=model)
        self.folder.write_facts(override=asdict(override))
        return override

    def _inspect(
        self, sets: dict[Any, PreparedSplit], identity: dict[str, Any], judged: GateResult, weights: Sequence[Path]
    ) -> None:
        """What else is measured of the test split, each in a file of its own; what is not asked for has none."""
        inputs = identity | {"judged": judged.json_values()}
        left_out = {self.folder.path / file for file in (robustness.RESULT, explain.RESULT, ood_check.RESULT)}
        asked = inspections(self.source.study, sets, self.source.root, weights, judged, self.folder, self.reporter)
        for one in asked:
            self.stage(one.name, inputs, one.outputs, one.work)
            left_out.discard(one.outputs[0])
        for file in left_out:  # an earlier run of this folder asked for it
            file.unlink(missing_ok=True)

    def stage(self, name: str, inputs: Any, outputs: Sequence[Path], work: Any) -> dict[str, Any]:
        """A stage of the folder, unless the run is to stop."""
        signals.stop_if_asked()
        return self.folder.stage(name, inputs, outputs, work, self.reporter)

    def log_start(self) -> None:
        """Where the run comes from, to MLflow."""
        code = code_version()
        tags = {
            "study": self.source.study.name,
            "model": model_name(self.source.study),
            "seed": str(self.source.study.seed),
            "manifest_digest": self.source.digest,
            "chain_fingerprint": PrepareChain(self.source.study.prepare).fingerprint,
            "code": code.commit or code.version,
            "code_clean": "unknown" if code.clean is None else str(code.clean),
            "machine": machine().cpu,
            "run_folder": self.folder.path.name,
        }
        splits = Counter(str(case.split) for case in self.source.cases)
        self.tracker.log_start(self.source.study, self.source.digest, tags, splits)

    def _train(self, sets: dict[Any, PreparedSplit], identity: dict[str, str]) -> list[dict[str, Any]]:
        folder, study = self.folder.path / "checkpoints", self._resolved(sets, identity)
        waiting = True  # the processes that a launcher started to help

        def work() -> dict[str, Any]:
            task = TrainingJob(study, sets["train"], sets["val"], folder, identity)
            lead = TrainingCallbacks(validation_score(study, sets), self._on_epoch, self.reporter)
            nonlocal waiting
            waiting = False
            trained = train(task, lead, self.hardware)
            history = [asdict(record) for record in trained.history]
            return {"best_epoch": trained.best, "device": trained.device, "history": history}

        facts = self.stage("train", identity, [folder / BEST], work)
        if waiting:
            dismiss(study.training, self.hardware)
        history: list[dict[str, Any]] = facts["history"]
        self._on_epoch([EpochRecord(**record) for record in history])
        return history

    def _prune(self, sets: dict[Any, PreparedSplit], identity: dict[str, str], weights: Path) -> list[PrunedStep]:
        """The steps of pruning, none where it is off."""
        wanted = self.source.study.compression.pruning
        if not wanted.target:
            return []
        targets = steps_to(wanted.target, wanted.steps)
        study = self._resolved(sets, identity)
        steps = prune_in_steps(study, sets, weights, targets, self.folder, self.reporter, self.hardware)
        told = {step.weights.parent.name: step.facts for step in steps}
        write_json(self.folder.path / RESULT, told)
        self._tell(self.tracker.log_early({f"pruning {name}": facts | {WIDTHS: None} for name, facts in told.items()}))
        return steps

    def _resolved(self, sets: dict[Any, PreparedSplit], identity: dict[str, str]) -> Study:
        """The study with numbers for what it leaves to be found, found once and kept for the whole run."""
        study, train_set = self.source.study, sets["train"]
        if not study.training.leaves_open:
            return study

        def work() -> dict[str, Any]:
            found, measured = resolve_auto(study, train_set.cases, train_set.files, self.reporter)
            return {"training": found.training.model_dump(mode="json"), "measured": measured}

        facts = self.stage("tune", identity, [], work)
        training = Training.model_validate(facts["training"])
        size, micro = training.resolved_sizes
        figures = {"lr": training.optimizer.rate, "batch_size": size, "micro_batch": micro}
        self._tell(self.tracker.log_early({"tuned": figures}))
        return study.model_copy(update={"training": training})

    def _on_epoch(self, history: Sequence[EpochRecord]) -> None:
        signals.stop_if_asked()
        self._tell(self.tracker.sync_history(history))
        if self.watch is not None:
            self.watch(history)

    def _tell(self, trouble: str | None) -> None:
        if trouble:
            self.reporter.message(trouble)

    def _evaluate(
        self,
        sets: Any,
        judged: GateResult,
        history: list[dict[str, Any]],
        notes: list[str],
        override: Override | None,
    ) -> dict[str, Any]:
        """Score the test split, once: everything was chosen before."""
        study, path = self.source.study, self.folder.path
        tables = predict_splits(study, sets, self.folder, judged)
        write_predictions(
            path / "predictions.csv", tables, study.data.labels, study.data.task, dict(judged.calibrations)
        )
        tables = read_predictions(path / "predictions.csv")  # every figure can be recomputed from that file
        sizes = by_kind(lambda kind: (self.folder.models / f"{kind}.onnx").stat().st_size)
        run_id = self.tracker.run_id
        metrics = summarize(study, tables, judged, sizes, override=override, mlflow_run_id=run_id, data_notes=notes)
        records = [EpochRecord(**record) for record in history]
        draw_figures(study, records, tables, judged, metrics, path / "figures")
        metrics.write(path / METRICS_FILE)
        return {}

    def _release(
        self, judged: GateResult, metrics: RunMetrics, chain: PrepareChain, held: PreparedSplit
    ) -> dict[str, Any]:
        provenance = Provenance(
            manifest_digest=self.source.digest,
            mlflow_run_id=self.tracker.run_id,
            code=code_version(),
            packages=package_versions(),
            machine=machine(),
            data_notes=metrics.data_notes,
        )
        gate = self.folder.models / ood_check.RESULT if self.source.study.domain.enabled else None
        name = DOMAIN if gate else None
        info = release_info(self.source.study, judged, metrics, chain.fingerprint, provenance, name)
        models = {kind: self.folder.models / f"{kind}.onnx" for kind in MODELS}
        build_release(self.folder.release, info, models, gate, lambda predictor: reference_of(predictor, held))
        return {"release": digest((self.folder.release / SUMS).read_text())}

    def _report(self) -> dict[str, Any]:
        write_report(self.folder.path)
        return {}

    def _record(self, metrics: RunMetrics) -> dict[str, Any]:
        path, passed = self.folder.path, metrics.gate.passed
        self.tracker.log_figures(logged_figures(metrics))
        self.tracker.log_tags(final_tags(read_run(path)))
        self.tracker.log_files({"": path / REPORT, "figures": path / "figures"})
        for name in (METRICS_FILE, "study.yaml"):
            self.tracker.log_files({"": path / name})
        for name in ("predictions.csv", *((robustness.TABLE,) if metrics.robustness else ())):
            self.tracker.log_files({"tables": path / name})
        for kind in KINDS:
            self.tracker.log_files({"models": self.folder.models / f"{kind}.onnx"})
        version = None
        if self.folder.release.exists():
            self.tracker.log_files({"release": self.folder.release})
            version = self.tracker.log_release(self.folder.release, passed=passed)
        return {"registered_version": version}
