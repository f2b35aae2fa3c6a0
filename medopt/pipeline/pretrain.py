"""Pretraining on images without labels: from a folder or a manifest to a start that a study can begin with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from medopt import __version__
from medopt.config import Study
from medopt.config.model import SCRATCH
from medopt.config.study_file import parse_study
from medopt.core import signals
from medopt.core.errors import ConfigError, StorageError, TrainingError
from medopt.core.files import local_disk, write_text
from medopt.core.provenance import code_version, digest, machine
from medopt.core.records import Case, PretrainingRecord
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedCache
from medopt.data.images_seen import SEEN, encode_seen
from medopt.manifest.unlabelled import UnlabelledImages
from medopt.models.resnet import network_note
from medopt.models.starts.files import ARCHITECTURE
from medopt.pipeline.mlflow_summary import model_name, run_name
from medopt.pipeline.pretrain_images import ImageSelection
from medopt.pipeline.run_folder import RunFolder, locked_folder, new_path
from medopt.planning.decide import decide
from medopt.planning.fingerprint import take_fingerprint
from medopt.tracking.tracker import Tracker
from medopt.training.checkpoint import read_tensors, write_tensors
from medopt.training.neighbour_probe import NeighbourProbe
from medopt.training.pretrain import Pretrained, Pretraining, pretrain
from medopt.transforms.prepare import PrepareChain

PRETRAINING = "pretraining"  # in run.json: the key by which the folder is found; in a start: what made it
MIN_BATCH = 4
STEPS = 2000
"""Steps of the default recipe, by judgement and not by a search; more images make fewer epochs of as many steps."""
NETWORK = ("depth", "width", "stem", "strides", "kernels", "variant", "init", "zero_init_residual")
"""What is taken of a study's `model` section; the rest is of its last layer, or of another start."""


@dataclass(frozen=True, slots=True)
class FinishedPretraining:
    """The start that was written, and how it came about."""

    start: Path
    folder: Path
    mlflow_link: str
    selection: ImageSelection
    pretrained: Pretrained
    study: Study


def plan_pretraining(
    source: Path, images: UnlabelledImages, selection: ImageSelection, like: Study | None, overrides: list[str] | None,
    device: str, modality: str, reporter: Reporter,
) -> Study:  # fmt: skip
    """The settings of a pretraining: those of a study, or planned as `medopt plan` does; then the overrides.

    Raises ConfigError for an unknown setting, or for weights to begin with: pretraining begins with drawn ones.
    """
    raw: dict[str, Any] = {}
    if like is not None and like.model.pooling != "none":
        raise ConfigError(
            f"{like.name} sees tiles or slices (model.pooling), and pretraining learns from whole images. Pretrain on "
            "a folder of images as large as a tile, without --like."
        )
    if like is not None:
        settings = like.model_dump(mode="json")
        raw = {name: settings[name] for name in ("seed", "prepare", "augment")}
        raw["model"] = {key: settings["model"][key] for key in NETWORK}
    else:
        same = [replace(case, label=(0,)) for case in selection.learn]
        fingerprint = take_fingerprint(same, ["any"], "binary", images.root, reporter)
        for decision in decide(fingerprint, device, modality):
            section, _, key = decision.key.partition(".")
            raw.setdefault(section, {})[key] = decision.value
    name = re.sub(r"[^a-z0-9_-]+", "-", source.stem.lower()).strip("-_")[:50] or "images"
    labels = list(images.labels) or ["unlabelled", "labelled"]
    raw |= {
        "name": f"pretrain-{name}",
        "question": f"What do the images of {name} have in common? (Pretraining without labels.)",
        "data": {"manifest": source.name, "task": images.task, "labels": labels},
        "training": _training(len(selection.learn), len(raw["prepare"]["size"])),
    }
    raw["model"] |= {"head": "last", "dropout": 0.0}
    study = parse_study(raw, overrides, str(source))
    if study.model.start != SCRATCH or study.model.scaled_channels or study.training.has_auto:
        raise ConfigError("Pretraining begins with drawn weights, and a rate and batch size that are numbers.")
    if study.training.resolved_sizes[0] < MIN_BATCH:
        raise ConfigError(
            f"training.batch_size is {study.training.batch_size}: whether embeddings collapse cannot be seen in fewer "
            f"than {MIN_BATCH} images at once; 32 and more learn better."
        )
    return study.model_copy(update={"model": study.model.model_copy(update={"head": "last", "dropout": 0.0})})


def _training(images: int, dims: int) -> dict[str, Any]:
    batch = min(32 if dims == 2 else 8, images)
    return {
        "epochs": min(400, max(20, round(STEPS / max(1, images // batch)))),
        "batch_size": batch,
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "metric": "loss",
        "ema_decay": 0.0,
        "mixup": 0.0,
    }


def run_pretraining(
    study: Study, images: UnlabelledImages, selection: ImageSelection, start: Path, runs: Path, reporter: Reporter,
    probe_every: int = 5, fresh: bool = False,
) -> FinishedPretraining:  # fmt: skip
    """Pretrain, or go on with it, and write the start.

    Raises TrainingError where the loss is not a number or the embeddings collapse, ConfigError where `start` is there
    already and another pretraining wrote it.
    """
    cases = [*selection.learn, *selection.judge]
    chain = PrepareChain(study.prepare)
    reporter.stage("prepare", "")
    files = PreparedCache(runs / "cache", chain).fill(cases, images.root, reporter)
    facts = {"settings": study.training_digest(), "images": _images_digest(cases, files, probe_every)}
    key = digest(facts)
    _refuse_other(start, key)
    probe = NeighbourProbe.of(cases, files, images.labels, images.task, study.seed) if images.labels else None
    with _opened(study, selection, runs, key, fresh, facts["images"]) as (folder, tracker):
        reporter.stage("pretrain", f"{len(selection.learn)} images, {study.training.epochs} epochs")

        def on_epoch(history: Sequence[PretrainingRecord]) -> None:
            signals.raise_if_interrupted()
            if trouble := tracker.sync_history(history):
                reporter.message(trouble)

        job = Pretraining(
            study,
            files[: len(selection.learn)],
            folder.path / "checkpoints",
            facts,
            probe,
            probe_every,
            on_epoch,
            reporter,
        )
        pretrained = pretrain(job)
        write_start(start, study, pretrained, selection, chain, key)
        tracker.log_figures({PRETRAINING: {"neighbours_before": pretrained.before, "images": len(selection.learn)}})
        tracker.log_files({"start": start})
        folder.write_facts(outcome="pretrained")
        tracker.end("pretrained")
        return FinishedPretraining(start, folder.path, tracker.link, selection, pretrained, study)


def write_start(
    path: Path, study: Study, pretrained: Pretrained, selection: ImageSelection, chain: PrepareChain, key: str
) -> None:
    """Write the backbone as a start, with what it was made of: its settings, and which images it has seen."""
    network = study.model.architecture()
    facts = {
        PRETRAINING: key,
        "method": "VICReg",
        "medopt": __version__,
        "images": len(selection.learn),
        "epochs": len(pretrained.history),
        ARCHITECTURE: {name: network[name] for name in ("depth", "width")} | network_note(study),
        "prepare": study.prepare.model_dump(mode="json"),
        "chain": chain.fingerprint,
        "neighbours": pretrained.history[-1].neighbours,
        SEEN: encode_seen(one for content in selection.content for one in content.digests),
    }
    write_tensors(path, pretrained.weights, facts)


def _images_digest(cases: Sequence[Case], files: Sequence[Path], probe_every: int) -> str:
    """The digest of images, splits and labels: the cache's names are hashes of content."""
    rows = [(file.name, case.split, case.label) for file, case in zip(files, cases, strict=True)]
    return digest({"rows": rows, "probe_every": probe_every})


def _refuse_other(start: Path, key: str) -> None:
    """Raise ConfigError before anything is trained where the file to write is there and is not this pretraining's."""
    if not start.exists():
        return
    with suppress(TrainingError):
        if read_tensors(start)[1].get(PRETRAINING) == key:
            return
    raise ConfigError(
        f"{start} is there already and holds something else, so it is not written over. Give another --out."
    )


@contextmanager
def _opened(
    study: Study, selection: ImageSelection, runs: Path, key: str, fresh: bool, images: str
) -> Iterator[tuple[RunFolder, Tracker]]:
    """The folder of this pretraining, found again by its key, and its MLflow run, closed as failed where it fails."""
    above = runs / study.name
    known = [] if fresh else [path for path in above.glob("*-*-????????") if _facts(path).get(PRETRAINING) == key]
    path = max(known, default=None) or new_path(above, key[:8])
    with locked_folder(path, is_new=not known) as folder:
        write_text(folder.path / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        tracker = Tracker(study, runs, folder.facts().get("mlflow_run_id"), run_name(study, folder.path))
        try:
            folder.write_facts(mlflow_run_id=tracker.run_id, outcome="running", **{PRETRAINING: key})
            with local_disk():
                tracker.log_start(study, images, _tags(study, folder), {"train": len(selection.learn)})
                yield folder, tracker
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            outcome = "interrupted" if interrupted else type(error).__name__
            tracker.end(outcome, "KILLED" if interrupted else "FAILED")
            with suppress(StorageError):  # what ended the run is the news
                folder.write_facts(outcome=outcome)
            raise


def _facts(path: Path) -> Mapping[str, Any]:
    return RunFolder(path, False).facts()


def _tags(study: Study, folder: RunFolder) -> dict[str, str]:
    code = code_version()
    return {
        "study": study.name,
        "model": model_name(study),
        "seed": str(study.seed),
        "chain_fingerprint": PrepareChain(study.prepare).fingerprint,
        "code": code.commit or code.version,
        "machine": machine().cpu,
        "run_folder": folder.path.name,
    }
