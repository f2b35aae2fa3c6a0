"""The card of a manifest that was built: what was read, how it was labelled and split, and what is known against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from medopt.core.files import file_digest, write_text
from medopt.core.records import SPLITS
from medopt.manifest.card import Card
from medopt.manifest.sources.scan_listing import by_number, by_reason


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """How a manifest came about."""

    source: Path
    kind: str
    how_labelled: str
    how_split: str
    warnings: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def write_card(
    path: Path, manifest: Path, facts: BuildFacts, rows: Sequence[Mapping[str, str]], columns: Sequence[str]
) -> None:
    """Write the card of a manifest that lies there already; it holds no path of this machine and no identifier."""
    sites = Counter(row["site"] for row in rows)
    notes = [
        f"Labels: {facts.how_labelled}.",
        f"Split: {facts.how_split}.",
        f"{len(rows)} rows of {len({row['patient_id'] for row in rows})} patients at {len(sites)} sites; "
        + ", ".join(f"{split} {count}" for split, count in _counts(rows).items())
        + ". Patients, studies and series are pseudonyms.",
        *facts.warnings,
        *(f"Left out: {count} files, {reason}." for reason, count, _ in by_reason(facts.left_out)),
    ]
    card = Card(
        title=manifest.stem,
        source=f"{facts.source.name or facts.source.resolve().name} ({facts.kind})",
        licence="Not stated. Write here under which licence the images are, before they are passed on.",
        citation="None given.",
        labels=_meanings(rows, columns),
        notes=notes,
        manifest_sha256=file_digest(manifest),
    )
    content = card.model_dump(mode="json", exclude={"files", "get"})
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def _counts(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    found = Counter(row["split"] for row in rows)
    return {split: found[split] for split in SPLITS}


def _meanings(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> dict[str, str]:
    if len(columns) > 1:
        return {column: f"1 in {sum(row[column] == '1' for row in rows)} rows, else 0" for column in columns}
    found = Counter(row[columns[0]] for row in rows)
    return {name: f"{found[name]} rows" for name in sorted(found, key=by_number)}
