"""Build a release folder: written whole or not at all, and verified before it gets its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from medopt.core.files import storage, write_text
from medopt.release.card import card_of, render_card
from medopt.release.drift_reference import REFERENCE, Reference
from medopt.release.golden import draw_golden, open_every_model, record_answers, verify_release
from medopt.release.layout import CARD, CARD_FACTS, INFO, Kind, ReleaseInfo, write_sums
from medopt.release.predictor import Release
from medopt.release.sbom import write_sbom
from medopt.release.signature import sign_if_configured


def _seal(folder: Path) -> None:
    """List the checksums, and sign them where a key is configured: an unsigned release would not open."""
    write_sums(folder)
    sign_if_configured(folder)


def build_release(
    target: Path,
    info: ReleaseInfo,
    models: Mapping[Kind, Path],
    domain: Path | None = None,
    reference: Callable[[Release], Reference] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write the release to `target`, replacing an earlier one of the same run.

    `models` are the ONNX files, `domain` the file of the out-of-domain check that `info` names; `reference` computes
    the reference for drift with the opened int8 model; `texts` are further files by name. The folder is built beside
    `target`, verified, and renamed. Raises ReleaseError where it does not verify, StorageError where it cannot be
    written.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with storage(target):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for kind, path in models.items():
                shutil.copyfile(path, part / info.models[kind].file)
            if domain is not None and info.domain is not None:
                shutil.copyfile(domain, part / info.domain)
            for name, text in (texts or {}).items():
                write_text(part / name, text)
            write_text(part / INFO, info.model_dump_json(indent=2) + "\n")
            card = card_of(info)
            write_text(part / CARD, render_card(card))
            card.write(part / CARD_FACTS)
            write_sbom(part, info.study, info.created)
            scans = draw_golden(part / "golden", info.prepare)
            _seal(part)
            record_answers(part, open_every_model(part), scans)
            if reference is not None:
                _seal(part)
                distributions = reference(Release.open(part, "int8"))
                write_text(part / REFERENCE, distributions.model_dump_json() + "\n")
            _seal(part)
            verify_release(part)
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
