"""Manifests with several images a case: columns image:NAME, written by hand or built from a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError
from medopt.manifest.build import BuildOptions, build_manifest
from medopt.manifest.check import missing_images
from medopt.manifest.image_facts import read_facts
from medopt.manifest.infer_study import infer_study
from medopt.manifest.run_manifest import manifest_digest, write_run_manifest
from medopt.manifest.table import read_manifest

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
    assert "other grids: 20 x 19" in read_facts(cases, pictures, prepare=views().prepare)[1].problem
    assert not read_facts(cases, pictures, prepare=views(channel_grid="resample").prepare)[1].problem


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
        ("0_cc.png,1_mlo.png,P0,benign", "row 3, column image:mlo: this image is in row 2, too"),
        (",,P0,benign", "row 2 names no image"),
    ],
)
def test_a_row_that_names_no_case_is_refused(pictures, tmp_path, row, reason):
    labels = table(tmp_path / "cases.csv", row)
    with pytest.raises(DataError, match=reason):
        build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=labels))
    with pytest.raises(ConfigError, match="--datalist writes one image a case"):
        build_manifest(pictures, tmp_path / "m.csv", BuildOptions(labels=labels, datalist=tmp_path / "d.json"))
