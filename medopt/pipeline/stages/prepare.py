"""The prepared images of a run by split, and what is refused of them before anything is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.provenance import digest
from medopt.core.records import SPLITS
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedCache, load_prepared
from medopt.manifest.check import ACCEPTABLE, accept, refuse, told
from medopt.manifest.duplicates import duplicate_findings, find_pairs, thumbnail
from medopt.manifest.quality import pixel_digest
from medopt.pipeline.study_cases import StudyCases
from medopt.training.job import PreparedSplit
from medopt.transforms.prepare import PrepareChain


def prepare_sets(source: StudyCases, chain: PrepareChain, cache: Path, reporter: Reporter) -> dict[Any, PreparedSplit]:
    """Prepare the images that the cache does not hold yet; raises DataError that lists what cannot be read."""
    cases = source.cases
    started = time.perf_counter()
    files = PreparedCache(cache, chain).fill(cases, source.root, reporter)
    seconds = time.perf_counter() - started
    reporter.message(f"{len(files)} images in {seconds:.1f} s, chain {chain.fingerprint[:16]}")
    sets = {}
    for split in SPLITS:
        rows = [index for index, case in enumerate(cases) if case.split == split]
        sets[split] = PreparedSplit([cases[index] for index in rows], [files[index] for index in rows])
    return sets


def refuse_duplicates(study: Study, sets: dict[Any, PreparedSplit]) -> list[str]:
    """Refuse pictures that stand in two splits or under two labels; what the study accepts comes back as notes."""
    cases = [case for split in SPLITS for case in sets[split].cases]
    files = [file for split in SPLITS for file in sets[split].files]
    thumbnails = {row: thumbnail(load_prepared(file)) for row, file in enumerate(files)}
    pairs = find_pairs(thumbnails, lambda row: pixel_digest(load_prepared(files[row])))
    found = accept(duplicate_findings(cases, pairs), study)
    refuse(found, study)
    return [told(finding, study) for finding in found if finding.name in ACCEPTABLE]


def content_of(sets: dict[Any, PreparedSplit]) -> str:
    """What the prepared images and their labels are: the cache's names are hashes of content."""
    return digest(
        {split: [(p.name, c.label) for p, c in zip(s.files, s.cases, strict=True)] for split, s in sets.items()}
    )
