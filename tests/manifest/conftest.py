from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medopt.config import Study
from medopt.core.records import Case


@pytest.fixture
def study() -> Callable[..., Study]:
    def make(**data: object) -> Study:
        fields = {"manifest": "m.csv", "labels": ["benign", "malignant"], **data}
        return Study.model_validate({"name": "s", "question": "?", "data": fields, "prepare": {"size": [32, 32]}})

    return make


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: str, header: str = "image,patient_id,label,split") -> Path:
        path = tmp_path / "m.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def case() -> Callable[..., Case]:
    def make(image: str, patient: str, label: int, split: str) -> Case:
        return Case(case_id=image, patient_id=patient, image=image, label=(label,), split=split)  # type: ignore[arg-type]

    return make
