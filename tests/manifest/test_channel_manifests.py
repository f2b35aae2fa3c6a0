"""Manifests with several images a case: columns image:NAME, written by hand or built from a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medopt.config import SeriesRules, Study
from medopt.core.errors import ConfigError, DataError
from medopt.core.records import Case, Split
from medopt.core.reporter import SilentReporter
from medopt.data.cache import PreparedCache, load_prepared
from medopt.manifest.build import BuildOptions, BuiltManifest, build_manifest
from medopt.manifest.check import missing_images
from medopt.manifest.image_facts import read_facts
from medopt.manifest.infer_study import infer_study
from medopt.manifest.quality import inspect_images, quality_findings
from medopt.manifest.run_manifest import manifest_digest, write_run_manifest
from medopt.manifest.sources.scan_listing import SourceOptions
from medopt.manifest.splits import SplitRules
from medopt.manifest.table import read_manifest
from medopt.transforms.prepare import PrepareChain
from tests.imaging.scans_made import radiograph, saved
from tests.scans_of_patients import mr_series

HEADER = "image:cc,image:mlo,patient_id,label,split"


def views(**prepare: object) -> Study:
    return Study.model_validate(
        {
            "name": "views",
            "question": "?",
            "data": {"manifest": "m.csv", "labels": ["benign", "malignant"]},
            "prepare": {"size": [32, 32], "channels": ["cc", "mlo"]} | prepare,
        }
    )


def test_each_named_image_has_its_column(manifest, study, tmp_path):
    path = manifest("a_cc.png,a_mlo.png,A,benign,train", "b_cc.png,b_mlo.png,B,malignant,test", header=HEADER)
    first, second = read_manifest(path, views())
    assert (first.image, first.channels) == ("a_cc.png", ("a_cc.png", "a_mlo.png"))
    write_run_manifest(tmp_path / "run.csv", (first, second), views())
    assert read_manifest(tmp_path / "run.csv", views(), from_run=True) == (first, second)
    turned = views(channels=["mlo", "cc"])
    assert read_manifest(path, turned)[0].channels == ("a_mlo.png", "a_cc.png")
    assert manifest_digest([first]) != manifest_digest([replace(first, channels=first.channels[::-1])])
    with pytest.raises(DataError, match=r"several images a case \(cc, mlo\): write prepare.channels: \[cc, mlo\]"):
        read_manifest(path, study())
    with pytest.raises(DataError, match="no column image:mlo"):
        read_manifest(manifest("a.png,A,benign,train", header="image:cc,patient_id,label,split"), views())


def test_an_image_may_be_missing_where_the_study_says_so(manifest):
    path = manifest(",a_mlo.png,A,benign,train", "b_cc.png,,B,malignant,test", header=HEADER)
    with pytest.raises(DataError, match="image:cc: row 2: the cell is empty"):
        read_manifest(path, views())
    zeros = views(missing_channel="zeros")
    first, second = read_manifest(path, zeros)
    assert (first.image, first.channels) == ("a_mlo.png", ("", "a_mlo.png")) and second.image == "b_cc.png"
    assert infer_study(path).prepare.missing_channel == "zeros"
    with pytest.raises(DataError, match="the case has no image"):
        read_manifest(manifest(",,A,benign,train", header=HEADER), zeros)


def test_an_image_stands_in_one_row_and_leads_nowhere_else(manifest):
    path = manifest("a.png,b.png,A,benign,train", "c.png,b.png,B,malignant,test", header=HEADER)
    with pytest.raises(DataError, match=r"image:mlo: row 3: the same as row 2 \(b.png\)"):
        read_manifest(path, views())
    with pytest.raises(DataError, match=r"image:mlo: row 2: '../b.png' it leads out"):
        read_manifest(manifest("a.png,../b.png,A,benign,train", header=HEADER), views())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(12):
        for name in ("cc", "mlo"):
            pixels = np.random.default_rng((at, len(name))).integers(0, 255, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{at}_{name}.png")
    return folder


def table(path: Path, *changed: str) -> Path:
    rows = [f"{at}_cc.png,{at}_mlo.png,P{at},{('benign', 'malignant')[at % 2]}" for at in range(11)]
    rows[: len(changed)] = changed
    path.write_text("\n".join(["image:cc,image:mlo,patient_id,label", *rows]) + "\n")
    return path


def test_every_image_of_a_case_is_looked_for_and_looked_at(manifest, pictures):
    path = manifest("0_cc.png,gone.png,A,benign,train", "1_cc.png,1_mlo.png,B,malignant,test", header=HEADER)
    cases = read_manifest(path, views())
    assert missing_images(cases, pictures) == {0: "gone.png (not there)"}
    Image.new("L", (16, 16), 3).save(pictures / "1_mlo.png")
    facts = read_facts(cases, pictures, prepare=views().prepare)
    assert facts[0].unreadable and "gone.png" in facts[0].problem
    assert facts[1].problem == "image 2 of the case is constant: all pixels are 3"
    Image.fromarray(np.arange(380, dtype=np.uint8).reshape(20, 19)).save(pictures / "1_mlo.png")
    assert "different grids: 20 x 19" in read_facts(cases, pictures, prepare=views().prepare)[1].problem
    resample = views(channel_grid="resample").prepare
    assert "Neither says where it lies" in read_facts(cases, pictures, prepare=resample)[1].problem


def test_build_takes_the_cases_from_a_table(pictures, tmp_path):
    labels = table(tmp_path / "cases.csv", "0_cc.png,,P0,benign")
    built = build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=labels))
    assert list(built.rows[0])[:3] == ["image:cc", "image:mlo", "patient_id"]
    cases = read_manifest(built.manifest, views(missing_channel="zeros"))
    assert len(cases) == 11 and ("0_cc.png", "") in {case.channels for case in cases}
    assert {path for path, _ in built.left_out} == {"0_mlo.png", "11_cc.png", "11_mlo.png"}
    assert "cases.csv, a row a case" in built.card.read_text()
    assert build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=labels)).rows == built.rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0_cc.png,gone.png,P0,benign", "row 2, column image:mlo: gone.png names no scan"),
        ("0_cc.png,1_mlo.png,P0,benign", "row 3, column image:mlo: this image is in row 2, column image:mlo, too"),
        (",,P0,benign", "row 2 names no image"),
    ],
)
def test_a_row_that_names_no_case_is_refused(pictures, tmp_path, row, reason):
    labels = table(tmp_path / "cases.csv", row)
    with pytest.raises(DataError, match=reason):
        build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=labels))
    options = BuildOptions(labels=table(tmp_path / "cases.csv"), datalist=tmp_path / "d.json")
    with pytest.raises(ConfigError, match="--datalist writes one image a case"):
        build_manifest(pictures, tmp_path / "m.csv", options)


def test_an_image_stands_in_one_cell(manifest, pictures, tmp_path):
    path = manifest("a.png,a.png,A,benign,train", "c.png,d.png,B,malignant,test", header=HEADER)
    with pytest.raises(DataError, match=r"image:mlo: row 2: the same as row 2, column image:cc \(a.png\)"):
        read_manifest(path, views())
    path = manifest("a.png,b.png,A,benign,train", "b.png,d.png,B,malignant,test", header=HEADER)
    with pytest.raises(DataError, match=r"image:cc: row 3: the same as row 2, column image:mlo \(b.png\)"):
        read_manifest(path, views())
    for row in ("0_cc.png,0_cc.png,P0,benign", "0_cc.png,1_cc.png,P0,benign"):
        labels = table(tmp_path / "cases.csv", row)
        with pytest.raises(DataError, match=r"this image is in row 2, column image:(cc|mlo), too"):
            build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=labels))


def test_the_patient_of_a_pattern_is_that_of_every_image(pictures, tmp_path):
    options = BuildOptions(labels=table(tmp_path / "cases.csv"), patient=r"(\d+)_")
    rows = build_manifest(pictures, tmp_path / "m.csv", options).rows
    assert len({row["patient_id"] for row in rows}) == 11
    swapped = table(tmp_path / "cases.csv", "0_cc.png,1_mlo.png,P0,benign", "1_cc.png,0_mlo.png,P1,malignant")
    with pytest.raises(DataError, match="finds another patient in the paths of one case, in 2 of 11 cases"):
        build_manifest(pictures, tmp_path / "m.csv", replace(options, labels=swapped))


def series(folder: Path, *patients: tuple[str, str]) -> Path:
    """T1 and T2 of each case in folders of their own, with the patients that their headers give."""
    for at, names in enumerate(patients):
        for name, patient in zip(("t1", "t2"), names, strict=True):
            mr_series(folder / f"case{at}" / name, patient, f"1.2.{at + 3}", name)
    return folder


def sequences(path: Path, *patients: str, header: str = "image:t1,image:t2,patient_id,label") -> BuildOptions:
    rows = [f"case{at}/t1,case{at}/t2,{patient},{at % 2}" for at, patient in enumerate(patients)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return BuildOptions(labels=path)


def test_the_patient_of_the_table_contradicts_no_header(tmp_path):
    once = series(tmp_path / "once", *((f"H{at}", f"H{at}") for at in range(8)))
    rows = build_manifest(once, tmp_path / "m.csv", sequences(tmp_path / "c.csv", *"ABCDEFGG")).rows
    assert len({row["patient_id"] for row in rows}) == 7  # the table says that two identifiers are one person
    torn = series(tmp_path / "torn", *((f"H{at // 2}", f"H{at // 2}") for at in range(8)))
    options = sequences(tmp_path / "c.csv", *"ABCDEFGH")
    with pytest.raises(DataError, match="Patients of the source that are several in the table of labels, 4"):
        build_manifest(torn, tmp_path / "m.csv", options)
    rows = build_manifest(torn, tmp_path / "m.csv", replace(options, patient="table")).rows
    assert len({row["patient_id"] for row in rows}) == 8
    mixed = series(tmp_path / "mixed", ("H0", "H1"), *((f"H{at}", "anonymous") for at in range(2, 9)))
    with pytest.raises(DataError, match="The images of 1 of 8 cases are of several patients by their headers"):
        build_manifest(mixed, tmp_path / "m.csv", options)


def test_labels_of_cases_follow_the_rules_of_labels_of_images(pictures, tmp_path):
    def built(header: str, *cells: str) -> BuiltManifest:
        path = tmp_path / "cases.csv"
        rows = [f"{at}_cc.png,{at}_mlo.png,P{at},{cell}" for at, cell in enumerate(cells)]
        path.write_text("\n".join([f"image:cc,image:mlo,patient_id,{header}", *rows]) + "\n")
        return build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=path))

    rows = built("diagnosis", *("Benign", "benign", "Benign", "malignant", "malignant", "n/a") * 2)
    assert {row["label"] for row in rows.rows} == {"Benign", "malignant"} and len(rows.rows) == 10
    assert any("the only one that fits" in note for note in rows.warnings)
    assert ("5_cc.png", "the label is missing: 'n/a'") in rows.left_out
    options = BuildOptions(labels=tmp_path / "cases.csv", label_columns=("site", "age"))
    built("label,site,age", *("a,0,1", "b,1,0") * 5)
    with pytest.raises(ConfigError, match="--label-column site is a column of every manifest"):
        build_manifest(pictures, tmp_path / "m.csv", options)
    with pytest.raises(ConfigError, match="--key: a table with columns image:NAME"):
        build_manifest(pictures, tmp_path / "m.csv", replace(options, label_columns=("label",), key="patient_id"))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("image:cc,image:m l o", "'m l o' cannot be the name of an image"),
        ("image:cc,image:CC", "two of the names are the same"),
        ("image:cc", "needs two columns or more"),
        (",".join(f"image:c{at}" for at in range(17)), "at most 16 images"),
    ],
)
def test_names_that_no_image_can_have_are_refused_with_the_reason(pictures, tmp_path, header, reason):
    path = tmp_path / "cases.csv"
    cells = ",".join(["0_cc.png"] * (header.count(",") + 1))
    path.write_text(f"{header},patient_id,split,label\n{cells},A,train,x\n{cells},B,test,y\n")
    with pytest.raises(DataError, match=f"cases.csv, row 1: the columns image:.* cannot be used: .*{reason}"):
        infer_study(path)
    with pytest.raises(DataError, match=reason):
        build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=path))


def test_the_facts_of_a_case_are_those_of_all_its_images(tmp_path):
    def scan(name: str, modality: str, seed: int, **elements: str) -> str:
        pixels = np.random.default_rng(seed).integers(0, 900, (16, 16)).astype(np.uint16)
        saved(radiograph(pixels, **{"Modality": modality} | elements), tmp_path / f"{name}.dcm")
        return f"{name}.dcm"

    def case(at: int, **second: str) -> Case:
        modality = second.pop("Modality", "MR")
        images = (scan(f"a{at}", "CT", 2 * at), scan(f"b{at}", modality, 2 * at + 1, **second))
        return Case(f"c{at}", f"p{at}", images[0], (at % 2,), "train", channels=images)

    cases = [case(at) for at in range(28)]
    cases += [case(28, BurnedInAnnotation="YES", Modality="DX"), case(29, ConversionType="SD")]
    single = replace(cases[0], channels=(cases[0].image, ""))
    facts = read_facts([*cases, single], tmp_path)
    assert facts[0].modality == "CT+MR" and facts[28].burned_in and facts[29].capture and facts[30].modality == "CT"
    found = {one.name: one.text for one in quality_findings([*cases, single], facts, {})}
    assert "1 images are of another modality than MR: b28.dcm (CR/DX)" in found["minority_modality"]
    assert "b29.dcm" in found["secondary_captures"] and "a28" in found["burned_in"]
    twice = replace(cases[0], channels=(cases[0].image, "copy.dcm"))
    (tmp_path / "copy.dcm").write_bytes((tmp_path / cases[0].image).read_bytes())
    assert read_facts([twice], tmp_path)[0].problem.endswith("image 2 of the case has the same pixels as image 1.")


def test_a_copy_of_one_image_of_a_case_is_a_copy(pictures):
    names = [("0_cc.png", "0_mlo.png"), ("1_cc.png", "copy.png"), ("2_cc.png", "")]
    (pictures / "copy.png").write_bytes((pictures / "0_mlo.png").read_bytes())
    splits: tuple[Split, ...] = ("train", "test", "val")
    cases = [
        Case(images[0], images[0], images[0], (at % 2,), split, channels=images)
        for at, (images, split) in enumerate(zip(names, splits, strict=True))
    ]
    found = inspect_images(cases, read_facts(cases, pictures), pictures, views(missing_channel="zeros"))
    assert [(pair.first, pair.second, pair.exact) for pair in found.pairs] == [(0, 1, True)]
    assert "exact_duplicates" in {finding.name for finding in found.refused}


def test_images_of_a_case_in_two_splits_of_the_source_are_refused(pictures, tmp_path):
    for at in range(12):
        for name in ("cc", "mlo"):
            split = "test" if at > 8 or (at == 0 and name == "mlo") else "val" if at > 5 else "train"
            (pictures / split).mkdir(exist_ok=True)
            (pictures / f"{at}_{name}.png").rename(pictures / split / f"{at}_{name}.png")
    options = BuildOptions(labels=table(tmp_path / "cases.csv"))
    with pytest.raises(DataError, match="images of 1 of 11 cases are in several splits of the source"):
        build_manifest(pictures, tmp_path / "m.csv", options)
    assert build_manifest(pictures, tmp_path / "m.csv", replace(options, rules=SplitRules(resplit=True))).rows


def dicom_cases(tmp_path: Path, **second: str) -> tuple[Path, Path]:
    """A manifest that was built from folders of DICOM files, and where they lie; `second` is in the T2 of case 2."""
    place = tmp_path / "export"
    for at in range(12):
        for name, scale in (("t1", 2 + at), ("t2", 40 + at)):
            changed = second if (at, name) == (2, "t2") else {}
            mr_series(place / f"case{at}" / name, f"H{at}", f"1.2.{at + 3}", name, slices=5, scale=scale, **changed)
    options = sequences(tmp_path / "c.csv", *(f"H{at}" for at in range(12)))
    return build_manifest(place, tmp_path / "m.csv", replace(options, patient="table")).manifest, place


def mr_study(**prepare: object) -> Study:
    data = {"manifest": "m.csv", "labels": ["0", "1"]}
    prepared = {"size": [8, 8, 8], "channels": ["t1", "t2"], "fit": "crop_or_pad"} | prepare
    return Study.model_validate({"name": "mr", "question": "?", "data": data, "prepare": prepared})


def test_folders_of_dicom_files_go_from_the_table_to_tensors(tmp_path):
    manifest, place = dicom_cases(tmp_path)
    cases, chain = read_manifest(manifest, mr_study()), PrepareChain(mr_study().prepare)
    assert {case.channels for case in cases} >= {("case0/t1", "case0/t2")}
    assert not [fact.problem for fact in read_facts(cases, place, prepare=mr_study().prepare) if fact.problem]
    files = PreparedCache(tmp_path / "cache", chain).fill(cases, place, SilentReporter())
    at = next(at for at, case in enumerate(cases) if case.channels[0] == "case0/t1")
    expected = chain(tuple(f"{place / image}" for image in cases[at].channels))
    assert expected.shape == (2, 8, 8, 8) and expected[0].max() > 0.9
    assert np.array_equal(load_prepared(files[at]), expected)


@pytest.mark.parametrize(
    ("second", "reason", "way_out"),
    [
        ({"PatientID": "QUITTENBAUM7"}, "are of different patients by their headers", {"channel_patients": "ignore"}),
        ({"FrameOfReferenceUID": "1.2.826.77"}, "different frames of reference", {"channel_frames": "registered"}),
    ],
)
def test_what_headers_contradict_is_refused_by_the_check_and_by_prepare(tmp_path, second, reason, way_out):
    manifest, place = dicom_cases(tmp_path, **second)
    cases = read_manifest(manifest, mr_study())
    problems = [fact.problem for fact in read_facts(cases, place, prepare=mr_study().prepare) if fact.problem]
    assert len(problems) == 1 and "case2" in problems[0] and reason in problems[0]
    with pytest.raises(DataError, match=rf"case2.*{reason}") as refused:
        PreparedCache(tmp_path / "cache", PrepareChain(mr_study().prepare)).fill(cases, place, SilentReporter())
    assert not [text for text in second.values() if text in problems[0] + str(refused.value)]
    taken = mr_study(**way_out)
    assert not [fact.problem for fact in read_facts(cases, place, prepare=taken.prepare) if fact.problem]
    assert (
        len(PreparedCache(tmp_path / "cache", PrepareChain(taken.prepare)).fill(cases, place, SilentReporter())) == 12
    )


def test_rules_for_each_image_build_the_cases_of_an_export(tmp_path):
    place = tmp_path / "export"
    for at in range(8):
        for name in ("t1 axial", "t2 axial", "scout"):
            if (at, name) != (3, "t1 axial"):
                scale = at + 2 + 40 * (name == "t2 axial")
                mr_series(place / f"study{at}", f"H{at}", f"1.2.{at + 3}", name, slices=3, name=name[:2], scale=scale)
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,label\n" + "".join(f"H{at},{at % 2}\n" for at in range(8)))
    rules = SeriesRules.model_validate({"channels": {"t1": {"description": ["t1"]}, "t2": {"description": ["t2"]}}})
    options = BuildOptions(labels=labels, source=SourceOptions(rules=rules))
    with pytest.raises(DataError, match=r"In 1 of 8 studies .* t1: no series of 2 is left \(2 description\)"):
        build_manifest(place, tmp_path / "m.csv", options)
    options = replace(options, source=SourceOptions(rules=rules, may_miss=True))
    built = build_manifest(place, tmp_path / "m.csv", options)
    cases = read_manifest(built.manifest, mr_study(missing_channel="zeros"))
    assert len(cases) == 8 and [case.channels[0] for case in cases if "study3#" in case.image] == [""]
    chain = PrepareChain(mr_study(missing_channel="zeros").prepare)
    assert chain(tuple(f"{place / image}" if image else "" for image in cases[0].channels)).shape == (4, 8, 8, 8)
    table = sequences(tmp_path / "c.csv", "H0").labels
    with pytest.raises(ConfigError, match="Series rules and table both say what the images of a case are"):
        build_manifest(place, tmp_path / "m.csv", replace(options, labels=table))


def test_rules_are_for_the_images_of_the_study():
    rules = {"series": {"channels": {"t1": {"description": ["t1"]}}}}
    with pytest.raises(ValueError, match=r"has rules for \['t1'\]; it needs them for each of prepare.channels"):
        Study.model_validate(mr_study().model_dump() | {"data": mr_study().data.model_dump() | rules})
    with pytest.raises(ValueError, match="a channel cannot be called image"):
        mr_study(channels=["image", "t2"])
