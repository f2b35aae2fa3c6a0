"""`medopt plan`: the data decide, each choice has a reason, and the file runs as it is."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from clinic import Clinic
from clinic_fixtures import call
from PIL import Image

from medopt.config import Study, Training
from medopt.config.study_file import load_study
from medopt.core.errors import DataError
from medopt.core.records import Case
from medopt.manifest.image_facts import ImageFacts
from medopt.manifest.infer_study import infer_study
from medopt.manifest.table import read_manifest
from medopt.models.cost import study_cost
from medopt.planning.decide import MAX_SIDE, MAX_STEPS, MAX_VOXELS, WINDOWS, decide
from medopt.planning.duration import duration_notes, seconds_an_image
from medopt.planning.fingerprint import SAMPLE, Fingerprint, take_fingerprint
from medopt.planning.size import tile_notes
from medopt.planning.write import describe_fingerprint


def look(size: tuple[int, ...], spacing_mm: tuple[float, ...], modality: str, low: float, high: float) -> ImageFacts:
    return ImageFacts(size=size, spacing_mm=spacing_mm, modality=modality, low=low, high=high)


CT = look((200, 512, 512), (1.5, 0.7, 0.7), "CT", -1000, 1200)
MR = look((24, 512, 512), (5.0, 0.45, 0.45), "MR", 0, 900)
DX = look((2000, 1600), (0.15, 0.15), "DX", 10, 4000)
PNG = replace(look((256, 256), (), "", 0, 250), eight_bit=True)


def data(looks: Sequence[ImageFacts], train: int = 400, **counts: int) -> Fingerprint:
    classes = counts or {"no": train // 2, "yes": train - train // 2}
    part = {"": train} | classes
    return Fingerprint(train, train, ("a",), {"train": part, "val": part, "test": part}, tuple(looks))


GB = 10**9


def settings(found: Fingerprint, device: str = "cpu", modality: str = "", memory: int | None = None) -> dict[str, Any]:
    return {one.key: one.value for one in decide(found, device, modality, memory)}


def study_of(decided: dict[str, Any]) -> Study:
    """The study that a plan makes."""
    raw: dict[str, Any] = {
        "name": "s",
        "question": "Is it?",
        "data": {"manifest": "m.csv", "labels": ["no", "yes"]},
        "prepare": {},
    }
    for key, value in decided.items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    return Study.model_validate(raw)


def test_every_decision_has_a_reason() -> None:
    for looks in ([CT], [MR], [DX], [PNG]):
        assert all(len(one.reason) > 8 for one in decide(data(looks), "cpu"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scan", [CT, MR], ids=["CT", "MR"])
def test_a_volume_fits_the_device_and_the_finest_axis_gives_way_first(scan: ImageFacts, device: str) -> None:
    found = settings(data([scan]), device)
    assert np.prod(found["prepare.size"]) < 1.35 * MAX_VOXELS[device]
    spacing = found["prepare.spacing_mm"]
    assert all(new >= old for new, old in zip(spacing, scan.spacing_mm, strict=True))
    assert max(spacing) / min(spacing) <= max(scan.spacing_mm) / min(scan.spacing_mm)
    extent, kept = np.multiply(scan.size, scan.spacing_mm), np.multiply(found["prepare.size"], spacing)
    np.testing.assert_allclose(kept, extent, rtol=0.15)  # the whole body part is in it
    assert found["prepare.fit"] == "crop_or_pad"


def test_a_small_volume_keeps_its_spacing() -> None:
    found = settings(data([look((40, 52, 36), (1.0, 1.0, 1.0), "MR", 0, 90)]))
    assert (found["prepare.spacing_mm"], found["prepare.size"]) == ([1, 1, 1], [40, 52, 36])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_thick_slices_stay_thick_and_the_plane_keeps_its_detail(device: str) -> None:
    found = settings(data([replace(CT, size=(60, 512, 512), spacing_mm=(5.0, 0.78, 0.78))]), device)
    thick, *plane = found["prepare.spacing_mm"]
    assert thick >= 1.9 * max(plane) and max(plane) < 3.5  # not 5 mm on each side
    assert found["model.strides"][0] == [1, 2, 2] and found["model.kernels"][0] == [1, 7, 7]


def test_plan_and_model_have_one_rule_for_the_network_of_volumes() -> None:
    for scan in (CT, MR, look((20, 320, 320), (5.0, 0.5, 0.5), "MR", 0, 9), look((40, 52, 36), (1, 1, 1), "MR", 0, 9)):
        planned = study_of(settings(data([scan])))
        by_itself = planned.model.model_copy(update={"stem": "auto", "strides": "auto", "kernels": "auto"})
        assert study_cost(planned) == study_cost(planned.model_copy(update={"model": by_itself}))


def test_a_radiograph_is_as_large_as_its_findings_need_and_memory_holds() -> None:
    images = data([DX], 78_000)
    sides = [settings(images, "cuda", memory=size * GB)["prepare.size"][0] for size in (8, 16, 80)]
    assert 512 <= sides[0] < sides[1] < sides[2] == 1024
    assert settings(data([replace(DX, modality="US")]), "cuda")["prepare.size"][0] == 512
    assert settings(data([DX]), "cpu")["prepare.size"][0] == 256
    reasons = {one.key: one.reason for one in decide(data([DX]), "cpu")}
    assert "on a CPU" in reasons["prepare.size"] and "512 to 1024 on a GPU" in reasons["prepare.size"]


@pytest.mark.parametrize(("device", "memory"), [("cuda", 8), ("cuda", 16), ("cuda", 140), ("cpu", 8)])
@pytest.mark.parametrize("train", [60, 400, 3_000, 78_000])
def test_a_step_fits_into_memory(device: str, memory: int, train: int) -> None:
    found = settings(data([DX], train), device, memory=memory * GB)
    cost, training = study_cost(study_of(found)), study_of(found).training
    at_once = training.resolved_sizes[1]
    assert at_once * cost.kept_values * 2 + 16 * cost.parameters < memory * GB
    assert at_once >= 2 and training.resolved_sizes[0] % at_once == 0


def test_epochs_follow_from_steps() -> None:
    for device in ("cpu", "cuda"):
        for train in (60, 140, 400, 2_000, 78_000, 1_000_000):
            found = settings(data([PNG], train), device)
            steps = max(1, train // found["training.batch_size"])
            total = found["training.epochs"] * steps
            assert total >= min(1000, 200 * steps)
            assert total <= MAX_STEPS[device] or found["training.epochs"] == 1
    assert settings(data([PNG], 78_000), "cuda")["training.epochs"] == 12


def test_the_recipe_is_medopts_own() -> None:
    found = settings(data([replace(PNG, size=(28, 28))], 546))
    usual = study_of({"prepare.size": [28, 28]})
    planned = study_of(found).training
    assert planned.model_copy(update={"patience": Training().patience}) == usual.training
    assert study_of(found).model.architecture() == usual.model.architecture() | {"stem": "small"}


def test_a_ct_is_mapped_by_what_is_no_air() -> None:
    scan = replace(CT, tissue=(-180.0, 410.0))
    assert settings(data([scan]))["prepare.intensity"] == {"method": "range", "low": -200, "high": 450}
    assert any("not air" in one.reason for one in decide(data([scan]), "cpu"))


def test_how_long_it_takes_is_an_estimate_from_a_step() -> None:
    found = data([replace(PNG, size=(32, 32))], 400)
    study = study_of(settings(found))
    read, trained = duration_notes(study, found, "cpu", 1.2)
    assert "estimate" in trained and "CPU thread" in trained
    assert "about 8 min here (estimate" in read  # a sample of one image took 1.2 s
    assert seconds_an_image(study, "cpu") > 0
    if not torch.cuda.is_available():
        assert duration_notes(study, found, "cuda", 1.2) == [
            "How long training takes on a GPU is not estimated: this machine has none."
        ]


def test_a_volume_without_spacing_is_fitted_as_a_whole() -> None:
    found = settings(data([replace(CT, spacing_mm=())]))
    assert found["prepare.fit"] == "stretch" and "prepare.spacing_mm" not in found
    assert np.prod(found["prepare.size"]) < 1.35 * MAX_VOXELS["cpu"]


def test_nan_becomes_background_where_images_have_it() -> None:
    assert settings(data([MR, replace(MR, nan=True)]))["prepare.nan"] == "background"
    assert "prepare.nan" not in settings(data([MR]))


def test_a_plan_says_what_shrinking_loses_of_large_images_alone() -> None:
    large = data([replace(DX, size=(3000, 2500))])
    (note,) = tile_notes(large, [512, 416])
    assert "7.5 megapixels" in note and "shrunk by 5.9" in note and "fewer than about 18 pixels" in note
    assert "model.pooling: attention" in note and "model.tile: [512, 512]" in note
    assert not tile_notes(large, [1536, 1280]) and not tile_notes(data([PNG]), [64, 64])
    assert not tile_notes(data([CT]), [96, 96, 96])


def test_images_are_counted_in_square_pixels() -> None:
    found = settings(data([replace(PNG, size=(60, 120), aspect=2.0)]))
    assert (found["prepare.size"], found["prepare.fit"]) == ([120, 120], "stretch")
    mixed = settings(data([replace(DX, size=(500, 1000), aspect=2.0), replace(DX, size=(1000, 1000))]))
    assert mixed["prepare.size"] == [256, 256]


def test_an_image_keeps_its_size_or_its_aspect() -> None:
    assert (settings(data([PNG]))["prepare.size"], settings(data([PNG]))["prepare.fit"]) == ([256, 256], "stretch")
    tiny = settings(data([replace(PNG, size=(28, 28))]))
    assert (tiny["prepare.size"], tiny["model.stem"]) == ([28, 28], "small")
    large = settings(data([DX]), "cuda")
    assert large["prepare.size"] == [MAX_SIDE["cuda"], 832]  # 2000 x 1600 in steps of 32
    mixed = settings(data([DX, replace(DX, size=(1600, 2000))]))
    assert mixed["prepare.fit"] == "pad"


def test_intensities_follow_what_the_values_mean() -> None:
    soft = replace(CT, low=-150, high=310)
    assert settings(data([soft]))["prepare.intensity"] == {"method": "range", "low": -150, "high": 350}
    assert settings(data([CT]))["prepare.intensity"] == {"method": "windows", "windows": WINDOWS}
    assert settings(data([PNG]))["prepare.intensity"] == {"method": "range", "low": 0, "high": 255}
    assert settings(data([MR]))["prepare.intensity"]["method"] == "percentiles"
    assert settings(data([PNG, DX]))["prepare.intensity"]["method"] == "percentiles"


@pytest.mark.parametrize(
    ("scan", "given", "shift"), [(CT, "", "ct"), (MR, "", "mr"), (DX, "", "radiograph"), (PNG, "US", "ultrasound")]
)
def test_the_simulated_scanner_is_the_modalitys(scan: ImageFacts, given: str, shift: str) -> None:
    assert settings(data([scan]), modality=given)["augment.shift"] == shift


def test_without_a_modality_no_scanner_is_simulated() -> None:
    assert settings(data([PNG]))["augment.shift"] == "none"


def test_more_images_make_a_larger_network_and_fewer_epochs() -> None:
    few, many = settings(data([DX], 300)), settings(data([DX], 60_000))
    assert (few["model.depth"], many["model.depth"]) == (26, 50)
    assert few["model.width"] < many["model.width"]
    assert few["training.epochs"] > many["training.epochs"]


def test_a_rare_class_is_not_weighted() -> None:
    assert settings(data([DX], 300, no=280, yes=20))["training.class_weights"] == "none"


def test_colour_takes_three_channels_only_where_most_images_have_it() -> None:
    colour = replace(PNG, colour=True)
    assert settings(data([colour, colour, PNG]))["prepare.channels"] == 3
    assert settings(data([colour, PNG, PNG]))["prepare.channels"] == 1


def test_a_planned_study_runs_as_it_is(clinic: Clinic, tmp_path: Path) -> None:
    manifest, out = clinic.data / load_study(clinic.study_file).data.manifest, tmp_path / "planned.yaml"
    root = clinic.data / load_study(clinic.study_file).data.root
    done = call("plan", manifest, "--data", root, "--out", out, "--json")
    assert done.code == 0, done.stderr
    study = load_study(out)
    assert done.summary["study"] == study.model_dump(mode="json")
    text = out.read_text()
    assert text.count("#") > 15 and "the second is the finding" in text
    assert re.search(r"root: /.*# on this machine; elsewhere, the folder there", text)
    assert "(estimate: " in text and "# Training takes " in text and "Training takes " in done.stdout
    assert call("run", out, "--dry-run", "--runs", tmp_path / "runs").code == 0


def test_a_study_file_that_a_person_wrote_is_not_written_over(clinic: Clinic, tmp_path: Path) -> None:
    manifest = clinic.data / load_study(clinic.study_file).data.manifest
    root = clinic.data / load_study(clinic.study_file).data.root
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\n")
    call("plan", manifest, "--data", root, "--out", mine).refused(2, "was not planned", "another --out")
    assert mine.read_text() == "name: mine\n"
    planned = tmp_path / "planned.yaml"
    assert [call("plan", manifest, "--data", root, "--out", planned).code for _ in range(2)] == [0, 0]


def test_images_that_are_elsewhere_are_refused_with_the_places(clinic: Clinic, tmp_path: Path) -> None:
    manifest = clinic.data / load_study(clinic.study_file).data.manifest
    call("plan", manifest, "--data", tmp_path, "--out", tmp_path / "a.yaml").refused(3, str(tmp_path), "--data DIR")
    assert not (tmp_path / "a.yaml").exists()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[list[dict[str, str]]], Path]:
    def write(rows: list[dict[str, str]]) -> Path:
        with (tmp_path / "m.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / "m.csv"

    return write


def row(number: int, **more: str) -> dict[str, str]:
    return {"image": f"{number}.png", "patient_id": f"p{number}", "split": "train"} | more


def test_what_is_no_finding_comes_first(written: Callable[..., Path]) -> None:
    for labels, expected in (
        (("benign", "malignant"), ["benign", "malignant"]),
        (("tumour", "normal"), ["normal", "tumour"]),
        (("pneumonia", "no pneumonia"), ["no pneumonia", "pneumonia"]),
        (("10", "9", "0"), ["0", "9", "10"]),
    ):
        manifest = written([row(k, label=label) for k, label in enumerate(labels)])
        assert infer_study(manifest).data.labels == expected


def test_columns_of_zeros_and_ones_are_a_multi_label_study(written: Callable[..., Path]) -> None:
    manifest = written([row(k, edema=str(k % 2), mass="0", remark="x") for k in range(4)])
    study = infer_study(manifest)
    assert (study.data.task, study.data.labels) == ("multilabel", ["edema", "mass"])


def test_a_manifest_without_two_labels_is_refused(written: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="one label only, 'a'"):
        infer_study(written([row(1, label="a"), row(2, label="a")]))
    with pytest.raises(DataError, match="has no column label"):
        infer_study(written([row(1)]))


def test_a_sample_is_spread_over_sites_and_labels_and_bounded(written: Callable[..., Path], tmp_path: Path) -> None:
    count = SAMPLE + 60
    rows = [row(k, label="b" if k < 5 else "a", site="rare" if k == 7 else "usual") for k in range(count)]
    for number in range(count):
        side = 12 if number in (3, 7) else 10
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (side, side)).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    manifest = written(rows)
    study = infer_study(manifest)
    found = take_fingerprint(read_manifest(manifest, study), study.data.labels, "binary", tmp_path)
    assert len(found.sample) == SAMPLE
    assert [look.size for look in found.sample].count((12, 12)) == 2  # the one of the rare site, and a rare label's
    assert found.counts["train"] == {"": count, "a": count - 5, "b": 5}


def test_a_scan_that_cannot_be_read_is_named(written: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    manifest = written([row(1, label="a"), row(2, label="b")])
    study = infer_study(manifest)
    with pytest.raises(DataError, match=r"2 of 2 sampled images cannot be used.*medopt manifest check"):
        take_fingerprint(read_manifest(manifest, study), study.data.labels, "binary", tmp_path)


@pytest.fixture
def two_classes(tmp_path: Path, written: Callable[..., Path]) -> Callable[..., Path]:
    """A manifest of 40 small images whose labels are two given names by turns."""

    def write(*labels: str) -> Path:
        rows = []
        for at in range(40):
            Image.fromarray(np.full((32, 32), 5 * at, np.uint8) + np.eye(32, dtype=np.uint8)).save(
                tmp_path / f"{at}.png"
            )
            rows.append(row(at, label=labels[at % len(labels)], split=("train", "train", "val", "test")[at // 2 % 4]))
        return written(rows)

    return write


@pytest.mark.parametrize("labels", [("non-COVID", "COVID"), ("Parasitized", "Uninfected"), ("CN", "AD")])
def test_the_finding_is_the_label_that_is_no_word_for_healthy(
    two_classes: Callable[..., Path], tmp_path: Path, labels: tuple[str, str]
) -> None:
    assert call("plan", two_classes(*labels), "--out", tmp_path / "s.yaml").code == 0
    assert load_study(tmp_path / "s.yaml").data.labels[1] in ("COVID", "Parasitized", "AD")


def test_where_names_do_not_say_the_finding_the_user_says_it(two_classes: Callable[..., Path], tmp_path: Path) -> None:
    manifest, out = two_classes("grade A", "grade B"), tmp_path / "s.yaml"
    call("plan", manifest, "--out", out).refused(3, "is the finding", "--positive 'grade B'")
    assert not out.exists()
    call("plan", manifest, "--out", out, "--positive", "grade C").refused(2, "not a label of the manifest")
    done = call(
        "plan", manifest, "--out", out, "--positive", "grade a", "--name", "grading", "--question", "Is it grade A?"
    )
    assert done.code == 0, done.stderr
    study = load_study(out)
    assert (study.data.labels, study.name, study.question) == (["grade B", "grade A"], "grading", "Is it grade A?")
    call("plan", manifest, "--out", out, "--positive", "grade A", "--name", "Gr ading").refused(2, "--name")


def test_labels_are_renamed_in_the_study(two_classes: Callable[..., Path], tmp_path: Path) -> None:
    manifest, out = two_classes("0", "1"), tmp_path / "s.yaml"
    assert call("plan", manifest, "--out", out, "--rename", "0=healthy,1=nodule").code == 0
    study = load_study(out)
    assert (study.data.labels, study.data.rename) == (["healthy", "nodule"], {"0": "healthy", "1": "nodule"})
    assert [case.label for case in read_manifest(manifest, study)][:2] == [(0,), (1,)]
    call("plan", manifest, "--out", out, "--rename", "0").refused(2, "--rename takes OLD=NEW")
    call("plan", manifest, "--out", out, "--rename", "7=x").refused(2, "no such label")


def test_rows_without_a_label_and_labels_in_two_spellings_are_refused(
    two_classes: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "s.yaml"
    call("plan", two_classes("no", "yes", "n/a"), "--out", out).refused(3, "13 rows without a label ('n/a')")
    call("plan", two_classes("no", "yes", "Yes"), "--out", out).refused(3, "'Yes' and 'yes'")
    assert infer_study(two_classes("None", "normal", "mass")).data.labels == ["None", "normal", "mass"]


def test_one_wrong_spacing_of_sixteen_does_not_decide_the_plan(tmp_path: Path) -> None:
    rng, cases = np.random.default_rng(0), []
    for at in range(16):
        step = 47.4 if at == 3 else 1.0 + at / 100
        voxels = rng.normal(size=(20, 24, 16)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([step, step, step, 1])), tmp_path / f"{at}.nii.gz")
        cases.append(Case(f"c{at}", f"p{at}", f"{at}.nii.gz", (at % 2,), "train"))
    found = take_fingerprint(cases, ["no", "yes"], "binary", tmp_path)
    assert (len(found.sample), len(found.odd)) == (15, 1)
    assert found.odd[0].startswith("3.nii.gz (47.4 x 47.4 x 47.4 mm, 16 x 24 x 20 voxels)")
    plan = settings(found)
    assert max(plan["prepare.spacing_mm"]) < 1.2 and plan["prepare.size"] == [16, 24, 24]
    assert any("Is its header right?" in line for line in describe_fingerprint(found))
