"""What tells the label without the image: found where it is drawn in, and not where nothing is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from medopt.config import Study
from medopt.core.records import Case, Volume
from medopt.evaluation import shortcuts
from medopt.evaluation.analysis_results import ShortcutsResult
from medopt.evaluation.shortcuts import find_shortcuts, shortcut_findings, shortcut_lines
from medopt.evaluation.validation_fit import parts_of
from medopt.manifest.trivial_facts import TrivialFacts, moments_of, trivial_facts, with_missing
from medopt.metrics.calibrated_predictions import CalibratedPredictions

Draw = Callable[[np.random.Generator, int], Volume]


def volume(array: np.ndarray, **source: str) -> Volume:
    return Volume(
        array.astype(np.float32)[None], np.eye(4), (1.0,) * array.ndim, source={"spacing": "unknown", **source}
    )


def noise(draws: np.random.Generator, label: int) -> Volume:
    """An image of any size, brightness, margin and mark that has nothing to do with the label."""
    image = draws.normal(draws.normal(100, 10), 20, draws.integers(40, 60, 2))
    margin = int(draws.integers(0, 5))
    image[:, : margin or None] = 0 if margin else image
    if draws.random() < 0.3:
        image[:4, -6:] = image.max()
    return volume(image, format=str(draws.choice(["PNG", "JPEG"])), manufacturer=str(draws.choice(["A", "B", "C"])))


def sized(draws: np.random.Generator, label: int) -> Volume:
    return volume(draws.normal(100, 20, draws.integers(40, 60, 2) + 8 * label))


def marked(draws: np.random.Generator, label: int) -> Volume:
    image = draws.normal(100, 20, (48, 48))
    if draws.random() < (0.8 if label else 0.1):
        image[2:8, 38:46] = 255
    return volume(image)


def padded(draws: np.random.Generator, label: int) -> Volume:
    image = draws.normal(100, 20, (48, 48))
    image[:, : int(draws.integers(1, 6)) + 4 * label] = 0
    return volume(image)


def bright(draws: np.random.Generator, label: int) -> Volume:
    return volume(draws.normal(100 + 15 * label, 20, (48, 48)) + draws.normal(0, 8))


def of_one_maker(draws: np.random.Generator, label: int) -> Volume:
    return volume(draws.normal(100, 20, (48, 48)), manufacturer="A" if draws.random() < 0.2 + 0.6 * label else "B")


def found_in(
    study: Study, draw: Draw, seed: int = 0, patients: int = 100, images: int = 1, **columns: Callable[..., str]
) -> ShortcutsResult:
    draws = np.random.default_rng(seed)
    cases, facts = [], []
    for patient in range(patients):
        label = int(draws.integers(study.data.outputs if study.data.task == "multiclass" else 2))
        truth = (label, 1 - label) if study.data.task == "multilabel" else (label,)
        for image in range(images):
            groups = tuple((name, text(draws, label)) for name, text in columns.items())
            name = f"c{patient}-{image}"
            cases.append(Case(name, f"p{patient}", f"{name}.png", truth, "train", groups=groups))
            facts.append(trivial_facts(draw(draws, label), [], 1000 + int(draws.integers(50))))
    return find_shortcuts(cases, facts, study)


def names(found: ShortcutsResult) -> list[str]:
    return [one.name for one in found.looks if one.is_shortcut]


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (sized, "the size of the image"),
        (marked, "the brightness of the corners"),
        (padded, "padding"),
        (bright, "the brightness"),
        (of_one_maker, "the manufacturer"),
    ],
)
def test_a_shortcut_that_is_drawn_in_is_found(tiny_study: Callable[..., Study], draw: Draw, name: str) -> None:
    study = tiny_study()
    found = found_in(study, draw)
    assert name in names(found) and found.looks[0].auc.value > 0.7
    (finding,) = shortcut_findings(found, study)
    assert finding.severity == "note" and f"{name} alone reaches AUC 0." in finding.text
    assert any(line.startswith(f"shortcut: {name} alone reaches AUC") for line in shortcut_lines(found))
    refusing = study.model_copy(update={"data": study.data.model_copy(update={"shortcuts": "refuse"})})
    assert shortcut_findings(found, refusing)[0].severity == "refuse"


def test_few_false_alarms_where_nothing_tells_the_label(tiny_study: Callable[..., Study]) -> None:
    """Seven looks in each of 60 data sets without a shortcut, half of them with three images a patient."""
    study, alarms = tiny_study(), 0
    for seed in range(60):
        found = found_in(study, noise, seed, patients=60, images=1 + 2 * (seed % 2))
        assert len(found.looks) >= 6 and found.looks[0].corrected.low <= found.looks[0].auc.low
        alarms += bool(names(found))
    assert alarms <= 3  # 5 % of 60
    assert shortcut_findings(found, study) == [] and shortcut_lines(found)[0].startswith("shortcuts: none in ")


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_other_tasks_too(tiny_study: Callable[..., Study], task: str) -> None:
    labels = ["a", "b", "c"] if task == "multiclass" else ["a", "b"]
    study = tiny_study(data={"task": task, "labels": labels})
    assert "the size of the image" in names(found_in(study, sized, patients=150))


def test_a_column_of_the_manifest_is_a_fact(tiny_study: Callable[..., Study]) -> None:
    def age(draws: np.random.Generator, label: int) -> str:
        return str(int(draws.integers(20, 60)) + 15 * label)

    def sex(draws: np.random.Generator, label: int) -> str:
        return str(draws.choice(["F", "M", ""]))

    found = found_in(tiny_study(), noise, age=age, sex=sex)
    assert names(found) == ["the column age"] and "the column sex" in {one.name for one in found.looks}


def test_a_relation_without_a_direction_is_found(tiny_study: Callable[..., Study]) -> None:
    def middle(draws: np.random.Generator, label: int) -> Volume:
        side = int(draws.integers(46, 54)) if label else int(draws.choice([40, 42, 58, 60]))
        return volume(draws.normal(100, 20, (side, side)))

    assert "the size of the image" in names(found_in(tiny_study(), middle))


def test_too_few_patients_and_unreadable_images(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study()
    few = found_in(study, sized, patients=10)
    assert few.looks == () and "10 patients are too few" in shortcut_lines(few)[0]
    assert shortcut_findings(few, study) == []
    assert find_shortcuts([Case("c", "p", "c.png", (1,), "train")], [None], study).images == 0


def header(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def facts_of(array: np.ndarray, headers: Sequence[Dataset] = (), size: int | None = 100, **source: str) -> TrivialFacts:
    return trivial_facts(volume(array, **source), headers, size)


def test_the_facts_by_hand() -> None:
    image = np.full((10, 20), 50.0)
    image[:, :5] = 0  # a quarter is padding
    image[0:2, 16:20] = 255  # the corner above on the right is 2 x 4 pixels
    found = facts_of(
        image,
        [header(BitsStored=12, PhotometricInterpretation="MONOCHROME1", StudyDate="20200102", StudyTime="123000.5")],
        manufacturer="A",
    )
    assert found.numbers["the size of the image"] == (10, 20, 200, 0.5)
    assert found.numbers["padding"] == (0.25, 0.25, 0.0)
    assert found.numbers["the brightness of the corners"] == (0, 1, 0, 0)
    assert found.numbers["the size of the file"] == (100, 0.5)
    assert found.numbers["the date of the scan"] == (737426,) and found.numbers["the time of the scan"] == (12.5,)
    assert found.words["the bit depth"] == "12" and found.words["the photometric interpretation"] == "MONOCHROME1"
    assert found.words["the manufacturer"] == "A" and "the spacing" not in found.numbers


def test_dates_that_are_none_and_volumes() -> None:
    found = facts_of(np.random.default_rng(0).normal(size=(4, 10, 10)), [header(StudyDate=""), header()], None)
    assert np.isnan(found.numbers["the date of the scan"][0]) and "the size of the file" not in found.numbers
    assert found.numbers["the size of the image"] == (4, 10, 10, 400, 1)


def test_dates_of_the_manifest_and_a_class_of_one_patient(tmp_path: Path, tiny_study: Callable[..., Study]) -> None:
    """A column of dates is told from others; a rare class leaves a draw of parts, if not one of each class in each."""
    rows = [f"{n}.png,p{n},{n % 2},20{10 + n % 2}-0{1 + n % 9}-11,{n},word" for n in range(60)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(["image,patient_id,label,acquired,number,text", *rows]))
    columns = moments_of(manifest)
    assert list(columns) == ["acquired"] and columns["acquired"][1] == "2011-02-11"
    draws = np.random.default_rng(0)
    facts = [trivial_facts(noise(draws, 0), [], None) for _ in range(60)]
    cases = [Case(f"c{n}", f"p{n}", f"{n}.png", (n % 2,), "train") for n in range(60)]
    assert names(find_shortcuts(cases, facts, tiny_study(), columns)) == ["the column acquired"]
    three = tiny_study(data={"task": "multiclass", "labels": ["a", "b", "c"]})
    rare = [*cases[:-1], replace(cases[-1], label=(2,))]
    assert find_shortcuts(rare, facts, three, columns).looks[0].name == "the column acquired"


def test_a_missing_image_of_a_case_is_a_fact() -> None:
    facts = with_missing(TrivialFacts({}, {"the file format": "PNG"}), ("a.png", "", "c.png"))
    assert facts is not None and facts.words["which images are missing"] == "there missing there"


def test_a_run_reads_no_more_than_it_can_afford(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(f"c{n}", f"p{n}", f"{n}.nii", (n % 2,), "train") for n in range(300)]
    for case in cases:
        (tmp_path / case.image).write_bytes(bytes(100))
    drawn = [cases.index(case) for case in shortcuts._affordable(cases, tmp_path, 0, 200)]
    assert len(drawn) == 200 and drawn == sorted(drawn) and drawn != list(range(200))  # in the order of the manifest
    monkeypatch.setattr(shortcuts, "BYTES", 9_000)  # to the byte
    few = shortcuts._affordable(cases, tmp_path, 0, 200)
    assert len(few) == 90 and few == shortcuts._affordable(cases, tmp_path, 0, 200)
    monkeypatch.setattr(shortcuts, "BYTES", 100)
    assert len(shortcuts._affordable(cases, tmp_path, 0, 200)) == shortcuts.AT_LEAST


NAN = float("nan")


@pytest.mark.parametrize(
    ("column", "features"),
    [
        ([1, 5, 3], [[-2 / 3, 2 / 3, 0], [4 / 9, 4 / 9, 0]]),  # ranks from -1 to 1, and their squares
        ([1, 1, 3, 3], [[-0.5, -0.5, 0.5, 0.5]]),  # squares that are all the same are no feature
        ([4, 4, 4], []),
        ([4, 4, NAN], [[0, 0, 1]]),  # that it is missing differs
        ([4, NAN, NAN], []),  # one value is none to compare with
        ([NAN, NAN, NAN], []),
        ([1, 2, NAN], [[-0.5, 0.5, 0], [0.25, 0.25, 0], [0, 0, 1]]),
    ],
)
def test_numbers_become_ranks_by_hand(column: list[float], features: list[list[float]]) -> None:
    found = shortcuts._of_numbers(np.array(column)[:, None])
    assert found.shape == (len(column), len(features))
    for made, expected in zip(found.T, features, strict=True):
        assert made == pytest.approx(expected)


def test_words_are_features_where_five_images_or_more_have_them_and_not_all() -> None:
    words = ["a"] * 5 + ["b"] * 4 + ["c"] * 6
    found = shortcuts._of_words(words)
    assert found.T.tolist() == [[1.0] * 5 + [0.0] * 10, [0.0] * 9 + [1.0] * 6]
    assert shortcuts._of_words(["a"] * 6).shape == (6, 0)


def test_a_column_is_of_numbers_from_eleven_different_ones_on() -> None:
    eleven, ten = [str(n) for n in range(11)], [str(n % 10) for n in range(11)]
    assert shortcuts._as_numbers([*eleven, ""])[:11].tolist() == list(range(11))  # type: ignore[index]
    assert np.isnan(shortcuts._as_numbers([*eleven, ""])[11])  # type: ignore[index]
    assert shortcuts._as_numbers(ten) is None and shortcuts._as_numbers([*eleven, "word"]) is None
    assert shortcuts._as_numbers(["", ""]) is None


def test_cases_become_a_table_of_their_truth(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(data={"task": "multilabel", "labels": ["a", "b"]})
    cases = [Case(f"c{n}", f"p{n}", "x.png", (n % 2, None), "train", site=f"s{n}") for n in range(2)]
    table = shortcuts._table(cases, study)
    columns = (table.case_id, table.patient_id, table.site, table.split)
    assert [column.tolist() for column in columns] == [["c0", "c1"], ["p0", "p1"], ["s0", "s1"], ["train"] * 2]
    assert (table.labels.tolist(), table.logits.tolist()) == ([[0, -1], [1, -1]], [[0, 0], [0, 0]])


def test_two_patients_of_a_class_make_two_parts_and_one_leaves_four_drawn_ones(
    tiny_study: Callable[..., Study],
) -> None:
    study = tiny_study()
    for positive, count in ((2, 2), (1, 4), (8, 4)):
        cases = [Case(f"c{n}", f"p{n // 2}", "x.png", (int(n < 2 * positive),), "train") for n in range(60)]
        table = shortcuts._table(cases, study)
        parts = shortcuts._parts(table, CalibratedPredictions(table, "binary"), study)
        assert np.unique(parts).tolist() == list(range(count))
        assert (parts[::2] == parts[1::2]).all()  # a patient is in one part
        if positive > 1:
            assert np.array_equal(parts, parts_of(table, "binary", study.seed))
