"""The stage `prepare`: the prepared images of each split, and what is refused of them before anything is trained.

It keeps no record: prepared images are cached by content, for all runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from medopt.config import Study
from medopt.core import signals
from medopt.core.errors import ConfigError
from medopt.core.provenance import digest
from medopt.core.records import SPLITS, Split
from medopt.data.cache import PreparedCache, load_prepared
from medopt.inference.engines import unsupported_reason
from medopt.manifest.duplicates import duplicate_findings, find_case_duplicates, thumbnail
from medopt.manifest.findings import ACCEPTABLE, accept_findings, finding_text, refuse_findings
from medopt.manifest.image_facts import pixel_digest
from medopt.metrics.calibration import refuse_few
from medopt.pipeline.predict import labels_of
from medopt.pipeline.stage import RunContext, Stage
from medopt.training.job import PreparedSplit
from medopt.transforms.prepare import PrepareChain


@dataclass(frozen=True, slots=True)
class PreparedSplits:
    """The prepared images of a run: by split, the fingerprint of the chain, the digest of images and labels, notes."""

    splits: Mapping[Split, PreparedSplit]
    chain: str
    content: str
    notes: tuple[str, ...]

    def __getitem__(self, split: Split) -> PreparedSplit:
        return self.splits[split]


class PrepareStage(Stage[PreparedSplits]):
    """Prepare what the cache does not hold yet; raises DataError that lists what cannot be read or must not be used."""

    name = "prepare"

    def complete(self, context: RunContext) -> None:
        """Look every image up by its content; there is nothing to skip."""
        signals.raise_if_interrupted()
        context.reporter.stage(self.name, "")
        prepared = self.run(context)
        context.results[self.name] = prepared
        context.digests[self.name] = digest({"chain": prepared.chain, "data": prepared.content})

    def run(self, context: RunContext) -> PreparedSplits:
        """The images of every split. Raises ConfigError where a later stage could not be done on this machine."""
        study, cases, chain = context.study, context.cases.cases, PrepareChain(context.study.prepare)
        started = time.perf_counter()
        files = PreparedCache(context.runs / "cache", chain).fill(cases, context.cases.root, context.reporter)
        seconds = time.perf_counter() - started
        context.reporter.message(f"{len(files)} images in {seconds:.1f} s, chain {chain.fingerprint[:16]}")
        splits = {}
        for split in SPLITS:
            rows = [index for index, case in enumerate(cases) if case.split == split]
            splits[split] = PreparedSplit([cases[index] for index in rows], [files[index] for index in rows])
        refuse_early(study, splits)
        notes = (*refuse_duplicates(study, splits), *context.cases.notes)
        return PreparedSplits(splits, chain.fingerprint, content_of(splits), notes)


def refuse_early(study: Study, splits: Mapping[Split, PreparedSplit]) -> None:
    """Raise ConfigError before training where what comes after it could not be done.

    Validation is too small for the calibration that is asked for, or this machine cannot judge what the release is for.
    """
    if reason := unsupported_reason(study.compression.profile):
        raise ConfigError(
            f"compression.profile {study.compression.profile} cannot be judged on this machine: {reason}. Run it where "
            "the release will run, or take --set compression.profile=cpu."
        )
    if study.evaluation.calibration == "isotonic":
        refuse_few(labels_of(study, splits["val"]), study.data.outputs, study.data.task)


def refuse_duplicates(study: Study, splits: Mapping[Split, PreparedSplit]) -> list[str]:
    """Refuse pictures that stand in two splits or under two labels; what the study accepts comes back as notes."""
    cases = [case for split in SPLITS for case in splits[split].cases]
    files = [file for split in SPLITS for file in splits[split].files]
    count = len(study.prepare.channel_names)
    places = [slice(at, at + 1) for at in range(count)] or [slice(None)]  # masks behind the images show nothing
    columns = [{row: thumbnail(load_prepared(file)[place]) for row, file in enumerate(files)} for place in places]
    pairs = find_case_duplicates(columns, lambda row, at: pixel_digest(load_prepared(files[row])[places[at]]))
    found = accept_findings(duplicate_findings(cases, pairs), study)
    refuse_findings(found, study)
    return [finding_text(finding, study) for finding in found if finding.name in ACCEPTABLE]


def content_of(splits: Mapping[Split, PreparedSplit]) -> str:
    """The digest of the prepared images, their labels and covariates: the cache's names are hashes of content."""
    return digest(
        {
            split: [(p.name, c.label, *c.covariates) for p, c in zip(s.files, s.cases, strict=True)]
            for split, s in splits.items()
        }
    )
