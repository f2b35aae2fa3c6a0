"""A version becomes the champion: only what both verdicts passed, compared with the present one on the same cases."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from medopt.core.errors import ConfigError, DataError
from medopt.evaluation.comparison import Comparison
from medopt.experiments.compare import compare_runs
from medopt.release.signature import TRUST, check_trusted
from medopt.tracking.fetch import fetch_release
from medopt.tracking.registry import Registry


@dataclass(frozen=True, slots=True)
class Promoted:
    """What was done: the champion now and until now, and how they compare; `compared` None where they were not."""

    version: str
    before: str | None
    compared: Comparison | None


def promote(registry: Registry, name: str, version: str, reason: str, *, uncompared: bool = False) -> Promoted:
    """Make a version the champion and write down who, when, why, and the comparison with the champion until now.

    Both are compared on the test cases that they share. Raises ReleaseRefused for what a verdict did not pass,
    ConfigError where the two cannot be compared and `uncompared` does not allow that.
    """
    if not reason.strip():
        raise ConfigError("A promotion takes a reason, in words that a colleague understands next year: --reason TEXT.")
    _refuse_unsigned(registry, name, version)
    chosen, champion = registry.passed(name, version), registry.champion(name)
    if champion == version:
        raise ConfigError(f"Version {version} of {name} is the champion already.")
    if champion is None:
        registry.promote(name, version, reason, "there was no champion before")
        return Promoted(version, None, None)
    with TemporaryDirectory() as folder:
        try:
            runs = [
                registry.tables(run_id, Path(folder) / place)
                for place, run_id in (
                    (f"champion, version {champion}", registry.run_of(name, champion)),
                    (f"version {version}", chosen.run_id or ""),
                )
            ]
            compared = compare_runs(runs, shared=True)
        except (DataError, ConfigError) as error:
            if not uncompared:
                raise ConfigError(
                    f"Version {version} of {name} cannot be compared with the champion, version {champion}: {error} To "
                    "promote it all the same, add --uncompared; the registry then says so."
                ) from None
            registry.promote(name, version, reason, f"not compared with version {champion}: {error}")
            return Promoted(version, champion, None)
    registry.promote(name, version, reason, comparison_tag(compared))
    return Promoted(version, champion, compared)


def _refuse_unsigned(registry: Registry, name: str, version: str) -> None:
    """Raise ReleaseError for a version without a trusted signature, where MEDOPT_TRUST asks for one."""
    if os.environ.get(TRUST):
        with TemporaryDirectory() as folder:
            check_trusted(fetch_release(f"models:/{name}/{version}", registry.uri, Path(folder)).place)


def comparison_tag(compared: Comparison) -> str:
    """The overall differences of a comparison as JSON, short enough for a tag of the registry."""
    (run,) = compared.runs
    counts = compared.model_dump(include={"cases", "patients", "split"})
    figures = {
        name: figure.model_dump(mode="json", exclude_defaults=True, include={"difference", "p"})
        for name, figure in run.figures.by_name().items()
    }
    return json.dumps(counts | figures, sort_keys=True)
