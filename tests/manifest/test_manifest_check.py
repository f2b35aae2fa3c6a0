from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from medopt.core.errors import ConfigError, DataError
from medopt.core.privacy import pseudonym
from medopt.core.records import Case
from medopt.manifest.card import Card
from medopt.manifest.check import check_cases, site_label_association
from medopt.manifest.findings import display_name, refuse_findings
from medopt.manifest.table import read_manifest

CARD = Card(
    title="Some images",
    source="https://example.org",
    licence="CC0",
    citation="-",
    labels={},
    manifest_sha256="0" * 64,
    get="Write to the authors.",
)


@pytest.fixture
def sound(tmp_path, case):
    """Two classes in three splits, each a patient of its own, with their files."""
    cases = [
        case(f"{split}{label}.png", f"p-{split}-{label}", label, split)
        for split in ("train", "val", "test")
        for label in (0, 1)
    ]
    for one in cases:
        (tmp_path / one.image).write_bytes(b"x")
    return cases


def texts(findings, severity="refuse"):
    return {item.name: item.text for item in findings if item.severity == severity}


def test_sound_cases_have_no_finding(tmp_path, sound, study):
    findings = check_cases(sound, tmp_path, study())
    assert findings == []
    refuse_findings(findings, study())


def test_patient_in_two_splits(tmp_path, sound, study, case):
    twin = case("twin.png", "p-train-0", 0, "test")
    (tmp_path / "twin.png").write_bytes(b"x")
    findings = check_cases([*sound, twin], tmp_path, study())
    text = texts(findings)["patient_overlap"]
    assert text.startswith("1 of 6 patients")
    assert "patient p-train-0 (a pseudonym) in train (train0.png), test (twin.png)" in text
    with pytest.raises(DataError, match=r"study s are refused\. patient_overlap: .* Put all images"):
        refuse_findings(findings, study())


def test_an_overlap_shows_pseudonyms_only(tmp_path, manifest, study):
    cases = read_manifest(manifest("a,MRN-4711,benign,train", "b,MRN-4711,malignant,test"), study())
    with pytest.raises(DataError) as caught:
        refuse_findings(check_cases(cases, tmp_path, study()), study())
    assert pseudonym("MRN-4711") in str(caught.value)
    assert "MRN-4711" not in str(caught.value)


def test_accepted_overlap_is_a_note_and_passes(tmp_path, sound, study, case):
    (tmp_path / "twin.png").write_bytes(b"x")
    accepting = study(accept=["patient_overlap"])
    findings = check_cases([*sound, case("twin.png", "p-train-0", 0, "test")], tmp_path, accepting)
    assert set(texts(findings, "note")) == {"patient_overlap"}
    refuse_findings(findings, accepting)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("patient_overlaps", "did you mean patient_overlap"), ("file_missing", "may accept patient_overlap")],
)
def test_only_acceptable_findings_can_be_accepted(tmp_path, sound, study, name, hint):
    with pytest.raises(ConfigError, match=hint):
        check_cases(sound, tmp_path, study(accept=[name]))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_absent_split_and_absent_class(tmp_path, sound, study, split):
    without = [one for one in sound if one.split != split]
    assert f"split {split}" in texts(check_cases(without, tmp_path, study()))["split_absent"]
    one_class = [one for one in sound if one.split != split or one.label == (0,)]
    text = texts(check_cases(one_class, tmp_path, study()))["class_absent"]
    assert f"split {split} (1 cases) has no case of malignant" in text


def test_absent_class_of_several_labels(tmp_path, study):
    several = study(task="multilabel", labels=["mass", "effusion"])
    cases = [
        Case(f"{split}{k}", f"{split}{k}", ".", label, split)
        for split in ("train", "val", "test")
        for k, label in enumerate([(0, 1), (1, 1 if split == "val" else 0)])
    ]
    assert (
        "split val (2 cases) has no case of effusion = 0,"
        in texts(check_cases(cases, tmp_path, several))["class_absent"]
    )


def test_missing_and_empty_files_are_listed_with_the_way_to_get_them(tmp_path, sound, study):
    (tmp_path / "val1.png").write_bytes(b"")
    for one in sound[:2]:
        (tmp_path / one.image).unlink()
    text = texts(check_cases(sound, tmp_path, study(), CARD))["file_missing"]
    assert text.startswith(f"3 of 6 images cannot be read below {tmp_path}: train0.png (not there)")
    assert "val1.png (empty file)" in text
    assert "MEDOPT_DATA. Write to the authors." in text


def test_many_missing_files_are_counted(tmp_path, study, case):
    cases = [case(f"{k}.png", f"p{k}", k % 2, ("train", "val", "test")[k % 3]) for k in range(12)]
    assert "and 7 more" in texts(check_cases(cases, tmp_path, study()))["file_missing"]


def test_a_file_name_that_the_system_refuses(tmp_path, sound, study, case):
    long = case("x" * 300, "p", 0, "train")
    assert "File name too long" in texts(check_cases([*sound, long], tmp_path, study()))["file_missing"]


def test_a_series_is_a_folder(tmp_path, sound, study, case):
    (tmp_path / "series").mkdir()
    assert check_cases([*sound, case("series", "p", 0, "train")], tmp_path, study()) == []


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ("all.npz#train/2", "all.npz#train/2 (the array has 2 images, counted from 0)"),
        ("all.npz#trian/0", "all.npz (has no array trian, but train, scalar)"),
        ("all.npz#scalar/0", "the array has 0 images"),
        ("none.npz#train/0", "none.npz (not there)"),
        ("broken.npz#train/0", "broken.npz (not an .npz file"),
    ],
)
def test_npz_members(tmp_path, sound, study, case, image, fault):
    np.savez(tmp_path / "all.npz", train=np.zeros((2, 4, 4)), scalar=np.float64(1))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 cut off")
    good = case("all.npz#train/1", "p", 0, "train")
    assert check_cases([*sound, good], tmp_path, study()) == []
    assert fault in texts(check_cases([*sound, good, case(image, "q", 0, "train")], tmp_path, study()))["file_missing"]


def test_all_findings_are_told_at_once(tmp_path, study, case):
    cases = [case("a.png", "p", 0, "train"), case("b.png", "p", 1, "val")]
    with pytest.raises(DataError) as caught:
        refuse_findings(check_cases(cases, tmp_path, study()), study())
    for name in ("patient_overlap", "class_absent", "split_absent", "file_missing"):
        assert f"{name}: " in str(caught.value)


def at_sites(share: float, patients: int = 60) -> list[Case]:
    """Two sites; at each, `share` of the patients have the label that is that site's."""
    cases = []
    for k in range(patients):
        site, turn = k % 2, k // 2
        label = site if turn < share * patients / 2 else 1 - site
        cases.append(Case(f"c{k}", f"p{k}", f"{k}.png", (label,), ("train", "val", "test")[k % 3], f"site_{site}"))  # type: ignore[arg-type]
    return cases


@pytest.mark.parametrize(
    ("share", "name", "severity"),
    [(0.5, None, None), (0.8, "site_and_label", "note"), (1.0, "site_predicts_label", "refuse")],
)
def test_a_site_that_tells_the_label(tmp_path, study, share, name, severity):
    cases = at_sites(share)
    for one in cases:
        (tmp_path / one.image).write_bytes(b"x")
    found = [one for one in check_cases(cases, tmp_path, study()) if one.name.startswith("site")]
    assert [(one.name, one.severity) for one in found] == ([(name, severity)] if name else [])
    if severity == "refuse":
        accepted = check_cases(cases, tmp_path, study(accept=["site_predicts_label"]))
        assert [(one.name, one.severity) for one in accepted] == [("site_predicts_label", "note")]
        assert "Cramer's V 1.00 (1.00-1.00) over 2 sites" in accepted[0].text


def test_association_is_that_of_the_textbook_and_its_interval_covers_it():
    """Bergsma's worked form on a 2 x 2 table: phi^2 = 0.36 of 60 cases."""
    cases = at_sites(0.8)
    value, low, high = site_label_association([c.site for c in cases], [c.label[0] for c in cases], cases)
    phi2, n = 0.36, 60
    expected = np.sqrt((phi2 - 1 / (n - 1)) / (2 - 1 / (n - 1) - 1))
    assert value == pytest.approx(expected)
    assert 0.3 < low < value < high < 0.85


def test_images_of_few_patients_say_nothing_of_sites():
    cases = at_sites(1.0, 18)
    assert site_label_association([c.site for c in cases], [c.label[0] for c in cases], cases) is None


@pytest.mark.parametrize(
    ("image", "patient", "shown"),
    [
        ("a/scan.png", "MRN7", "a/scan.png"),
        ("MRN7/scan.png", "MRN7", f"{pseudonym('MRN7')}/scan.png"),
        ("a/MRN7.dcm", "MRN7", f"a/{pseudonym('MRN7')}.dcm"),
        ("export#1.2.840.113619.2.5", "MRN7", f"export#{pseudonym('1.2.840.113619.2.5')}"),
        ("1.2.840.113619.2.5.dcm", "MRN7", f"{pseudonym('1.2.840.113619.2.5')}.dcm"),
        ("x.npz#train/3", "train/3", "x.npz#train/3"),
        ("scan.png", "scan.png", "scan.png"),
    ],
)
def test_a_shown_name_holds_no_identifier(image, patient, shown):
    assert display_name(Case("c", pseudonym(patient), image, (0,), "train")) == shown


def test_a_missing_image_is_told_without_its_patient(tmp_path, sound, study):
    absent = Case("c", pseudonym("MRN7"), "MRN7/1.dcm", (0,), "train")
    text = texts(check_cases([*sound, absent], tmp_path, study()))["file_missing"]
    assert "MRN7" not in text


def test_sixty_thousand_rows_are_checked_in_a_moment(tmp_path, study):
    (tmp_path / "x.png").write_bytes(b"x")
    cases = at_sites(0.5, 300)
    many = [replace(one, image="x.png", patient_id=f"p{k}") for k, one in enumerate(cases * 200)]
    started = time.perf_counter()
    check_cases(many, tmp_path, study())
    assert time.perf_counter() - started < 10  # under 2 s where nothing else runs
