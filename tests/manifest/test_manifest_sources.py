"""What is found in a source: class folders, NIfTI names, MedMNIST, datalists, archives."""

from __future__ import annotations

import gzip
import json
import stat
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scans_of_patients import mr_series, png

from medopt.core.errors import DataError
from medopt.core.reporter import SilentReporter
from medopt.imaging import read_scan
from medopt.manifest.sources.archive import unpack_archive
from medopt.manifest.sources.datalist import find_datalist
from medopt.manifest.sources.find_scans import find_scans
from medopt.manifest.sources.folders import read_class_folders
from medopt.manifest.sources.scan_listing import ScanListing, SourceOptions


def find(source: Path, **options: object) -> ScanListing:
    return find_scans(source, source.with_name("unpacked"), SourceOptions(**options), SilentReporter())  # type: ignore[arg-type]


def nifti(path: Path, shape: tuple[int, ...] = (4, 4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["cat/1.png", "dog/1.png"], [("cat", ""), ("dog", "")]),
        (["set/cat/1.png", "set/dog/more/1.png"], [("cat", ""), ("dog", "")]),
        (
            ["Training/cat/1.png", "Testing/Cat/1.png", "Training/dog/1.png"],
            [("Cat", "train"), ("Cat", "test"), ("dog", "train")],
        ),
        (["TRAIN/a/1", "valid/a/1", "test/b/1"], [("a", "train"), ("a", "val"), ("b", "test")]),
        (["a/train/1", "b/train/1", "a/validation/2"], [("a", "train"), ("b", "train"), ("a", "val")]),
        (["train/a/1", "train/b/1", "test/1"], [("a", "train"), ("b", "train"), None]),
        (["train/a/1", "train/b/1", "extra/a/1"], [("a", "train"), ("b", "train"), None]),
        (["train/a/1", "train/b/1"], [("a", "train"), ("b", "train")]),
        (["a/1", "b/1", "stray"], [("a", ""), ("b", ""), None]),
        (["a/1", "a/2"], None),
        (["1", "2"], None),
        ([f"patient{at}/1" for at in range(60)], None),
        (["training_set/a/1", "training_set/b/1", "test_set/a/2"], [("a", "train"), ("b", "train"), ("a", "test")]),
        (["Train_data/a/1", "Val-Images/b/1", "testSet 2/b/1"], [("a", "train"), ("b", "val"), ("b", "test")]),
        (["imagesTr/a/1", "imagesTr/b/1", "imagesTs/a/1"], [("a", "train"), ("b", "train"), ("a", "test")]),
        (["left/normal/1", "left/ill/2", "right/normal/3", "right/ill/4"], [(x, "") for x in ["normal", "ill"] * 2]),
        (["a/left/1", "b/right/2", "a/right/3", "b/left/4"], [("a", ""), ("b", ""), ("a", ""), ("b", "")]),
        ([f"NAME{at}/{c}/1" for at in range(5) for c in "xy"], [(c, "") for at in range(5) for c in "xy"]),
        ([f"train/NAME{at}/{c}/1" for at in range(5) for c in "xy"], [(c, "train") for at in range(5) for c in "xy"]),
        ([f"{c}/NAME{at}/1" for at in range(60) for c in "xy"], [(c, "") for at in range(60) for c in "xy"]),
        ([f"site{at}/{c}/1" for at in range(2) for c in "xy"], None),
        ([f"patient{at}/{view}" for at in range(3) for view in "123456789"], None),
        ([f"S{at:03d}/{view}" for at in range(3) for view in "123456789"], None),
        ([f"grade{at:02d}/{k}" for at in range(2) for k in "12"], [(f"grade{at:02d}", "") for at in (0, 0, 1, 1)]),
        (["Miller^Anna/1", "Smith^Jo/1", "Doe^Jo/1"], None),
        (["train_a/x/1", "train_b/y/1", "test_a/x/1"], None),
    ],
)  # fmt: skip
def test_class_folders(paths, expected):
    assert read_class_folders(paths) == expected


def test_images_with_masks_and_strays(tmp_path):
    for name in (
        "benign/b (1).png",
        "benign/b (1)_mask.png",
        "benign/b (1)_mask_1.png",
        "malignant/m.JPG",
        "stray.bmp",
    ):
        png(tmp_path / name.replace(".JPG", ".png")).rename(tmp_path / name)
    (tmp_path / "notes.txt").write_text("a")
    found = find(tmp_path)
    assert [(scan.image, scan.labels) for scan in found.scans] == [
        ("benign/b (1).png", ("benign",)),
        ("malignant/m.JPG", ("malignant",)),
    ]
    reasons = dict(found.left_out)
    assert reasons["benign/b (1)_mask.png"] == reasons["benign/b (1)_mask_1.png"] == "a mask, by its name"
    assert reasons["stray.bmp"] == "outside the class folders"


def test_folders_give_a_site_that_is_neither_class_nor_split(tmp_path):
    for name in ("train/ill/north/1.png", "train/well/south/2.png", "test/ill/south/3.png", "test/well/north/4.png"):
        png(tmp_path / name)
    found = find(tmp_path, site_from="folder")
    assert [(scan.site, *scan.labels, scan.split) for scan in found.scans] == [
        ("south", "ill", "test"),
        ("north", "well", "test"),
        ("north", "ill", "train"),
        ("south", "well", "train"),
    ]


def test_with_a_table_of_labels_folders_tell_splits_alone(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/3.png"):
        png(tmp_path / name)
    found = find(tmp_path, labelled=True)
    assert [(scan.image, scan.labels, scan.split) for scan in found.scans] == [
        ("test/3.png", (), "test"),
        ("train/a/1.png", (), "train"),
        ("train/b/2.png", (), "train"),
    ]
    png(tmp_path / "stray.png")
    assert {scan.split for scan in find(tmp_path, labelled=True).scans} == {""}


def test_folders_of_dicom_are_labels_where_asked_for(tmp_path):
    for at in range(4):
        mr_series(tmp_path / "train" / ("ill", "well")[at % 2] / f"patient{at}", f"P{at}", f"1.2.{at}")
    assert {scan.labels for scan in find(tmp_path).scans} == {()}
    found = find(tmp_path, class_folders=True)
    assert [scan.labels for scan in found.scans] == [("ill",), ("well",), ("ill",), ("well",)]


def test_bids_names_are_patient_study_and_series(tmp_path):
    nifti(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    nifti(tmp_path / "sub-02/anat/sub-02_acq-fast_T1w.nii.gz")
    nifti(tmp_path / "sub-02/anat/sub-02_label-x_mask.nii.gz")
    nifti(tmp_path / "sub-02/anat/sub-02_dseg.nii")
    nifti(tmp_path / "sub-02/func/sub-02_bold.nii.gz", (4, 4, 4, 3))
    nifti(tmp_path / "derivatives/sub-02/sub-02_T1w.nii.gz")
    (tmp_path / "sub-02/anat/broken.nii.gz").write_bytes(b"no")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t34.5\tfemale\n")
    found = find(tmp_path)
    one, two = found.scans
    assert (one.patient, one.study, one.series, one.age, one.sex) == (
        "sub-01", "sub-01_ses-a", "sub-01_ses-a_T1w", "34", "F",
    )  # fmt: skip
    assert (two.patient, two.study, two.description, two.age) == ("sub-02", "sub-02", "acq-fast_T1w", "")
    reasons = {Path(path).name: reason for path, reason in found.left_out if "derivatives" not in path}
    assert reasons["sub-02_bold.nii.gz"] == "several volumes in one file"
    assert reasons["broken.nii.gz"].startswith("its header is damaged")
    assert {"sub-02_label-x_mask.nii.gz", "sub-02_dseg.nii"} <= reasons.keys()
    assert len(found.left_out) == 5


def test_dicom_among_other_files_is_found_whatever_its_name(tmp_path):
    mr_series(tmp_path / "x", "P", "1.2.3", name="scan.png.")
    png(tmp_path / "preview.png")
    found = find(tmp_path)
    assert found.kind == "DICOM"
    assert [scan.image for scan in found.scans] == ["x"]
    assert found.left_out == (("preview.png", "not DICOM"),)


def test_a_folder_of_several_series_names_each_by_uid(tmp_path):
    first = mr_series(tmp_path, "P", "1.2.3", "T1", name="a")
    second = mr_series(tmp_path, "P", "1.2.3", "T2", name="b")
    assert {scan.image for scan in find(tmp_path).scans} == {f".#{first}", f".#{second}"}


def test_medmnist(tmp_path):
    images = np.zeros((4, 2, 2), np.uint8)
    labels = np.array([[0], [1], [0], [1]])
    np.savez(
        tmp_path / "m.npz",
        **{f"{s}_images": images for s in ("train", "val", "test")},
        **{f"{s}_labels": labels for s in ("train", "val", "test")},
    )
    found = find(tmp_path)
    assert len(found.scans) == 12
    assert (found.scans[5].image, found.scans[5].labels, found.scans[5].split) == ("m.npz#val_images/1", ("1",), "val")
    np.savez(tmp_path / "m.npz", train_images=images, train_labels=np.zeros((3, 1), int))
    with pytest.raises(DataError, match="train has 3 labels for images of the shape"):
        find(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", train_images=images, train_labels=np.eye(4, 14, dtype=int))
    assert find(tmp_path / "m.npz").label_columns[:2] == ("label_0", "label_1")
    np.savez(tmp_path / "other.npz", a=images)
    with pytest.raises(DataError, match="is not a MedMNIST archive"):
        find(tmp_path / "other.npz")


def datalist(tmp_path: Path, **content: object) -> Path:
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    return path


def test_a_decathlon_datalist(tmp_path):
    path = datalist(
        tmp_path,
        training=[
            {"image": "./tr/1.nii.gz", "label": 0, "fold": 1},
            {"image": "tr/2.nii.gz", "label": 1, "patient_id": 7},
        ],
        test=["./ts/3.nii.gz"],
    )
    found = find(path)
    assert [(s.image, s.labels, s.split, s.patient, s.fold) for s in found.scans] == [
        ("tr/1.nii.gz", ("0",), "train", "", 1),
        ("tr/2.nii.gz", ("1",), "train", "7", -1),
        ("ts/3.nii.gz", (), "test", "", -1),
    ]
    assert found.root == tmp_path


def test_absolute_paths_of_a_datalist_become_relative(tmp_path):
    inside = find_datalist(datalist(tmp_path, training=[{"image": str(tmp_path / "a" / "1.png"), "label": 0}]))
    assert [scan.image for scan in inside.scans] == ["a/1.png"]
    outside = find_datalist(
        datalist(tmp_path, training=[{"image": "/srv/x/a/1.png", "label": 0}, {"image": "/srv/x/b/2.png", "label": 1}])
    )
    assert (outside.root, [scan.image for scan in outside.scans]) == (Path("/srv/x"), ["a/1.png", "b/2.png"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": [{"image": "a.nii.gz", "label": "labels/a.nii.gz"}]}, "this datalist is for segmentation"),
        ({"training": [{"image": ["a.png", "b.png"], "label": 0}]}, "Several images as channels"),
        ({"training": {"image": "a"}}, "must be a list"),
        ({"other": []}, "is not a MONAI datalist"),
        ({"training": [{"image": "a", "label": {"x": 1}}]}, "a label must be a number"),
        ({"training": [{"image": "a", "label": [1, 0]}, {"image": "b", "label": 1}]}, "another length"),
    ],
)
def test_datalists_that_cannot_be_used(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        find_datalist(datalist(tmp_path, **content))


def test_a_path_that_leads_out_of_the_folder_is_left_out(tmp_path):
    found = find_datalist(
        datalist(tmp_path, training=[{"image": "../a.png", "label": 0}, {"image": "b.png", "label": 1}])
    )
    assert [scan.image for scan in found.scans] == ["b.png"]
    assert "leads out of its folder" in found.left_out[0][1]


def test_an_archive_is_unpacked_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("set/a/1.png", "set/b/2.png", "__MACOSX/set/a/._1.png"):
            archive.write(png(tmp_path / "one.png"), name)
    first, again = find(tmp_path / "set.zip"), find(tmp_path / "set.zip")
    assert first == again
    assert first.root == tmp_path / "unpacked"
    assert [(scan.image, scan.labels) for scan in first.scans] == [("set/a/1.png", ("a",)), ("set/b/2.png", ("b",))]
    (tmp_path / "set.zip").write_bytes((tmp_path / "set.zip").read_bytes() + b"x")
    with pytest.raises(DataError, match="is there already and does not come from"):
        find(tmp_path / "set.zip")


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../out.txt", b"x")], "leads out of its folder"),
        ([("/etc/out.txt", b"x")], "absolute"),
        ([("a/../../out.txt", b"x")], "leads out of its folder"),
        ([("a\\..\\out.txt", b"x")], "a path that is refused"),
        ([(link("a"), b"/etc/passwd")], "holds a link"),
        ([("a", b"x"), ("./a", b"y")], "two of its files have the same path"),
        ([(f"{at}", bytes(40 << 20)) for at in range(2)], "made to fill the disk"),
    ],
)
def test_archives_that_are_not_sound_leave_nothing_behind(tmp_path, members, said):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    with pytest.raises(DataError, match=said):
        unpack_archive(tmp_path / "a.zip", tmp_path / "deep" / "files", SilentReporter())
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


def test_a_damaged_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", np.random.default_rng(0).bytes(5000))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[100:200] = bytes(100)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        find(tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match="damaged"):
        find(tmp_path / "a.zip")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(DataError, match="There is no file or folder"):
        find(tmp_path / "none")
    with pytest.raises(DataError, match="holds 0 files, and none is DICOM"):
        find(tmp_path)
    png(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a single file"):
        find(tmp_path / "a.png")


@pytest.mark.parametrize("packed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_damaged_in_the_middle_is_refused_however_it_is_packed(tmp_path, packed):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("a.dcm", np.random.default_rng(0).bytes(50_000))
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged, or packed in a way that is not read"):
        unpack_archive(path, tmp_path / "files", SilentReporter())
    assert [found.name for found in tmp_path.iterdir()] == ["a.zip"]


def test_images_are_told_by_content_and_all_else_is_listed(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    kinds = {"a.webp": "WEBP", "b.jfif": "JPEG", "c.jp2": "JPEG2000", "d.gif": "GIF", "e": "PNG", "f.jpg": "MPO"}
    for at, (name, form) in enumerate(kinds.items()):
        (tmp_path / "ill").mkdir(exist_ok=True)
        image, more = Image.fromarray(array + at), {"save_all": True} if form == "MPO" else {}
        if form == "MPO":
            more["append_images"] = [Image.fromarray(array[:8, :8])]
        image.save(tmp_path / "ill" / name, format=form, **more)
    png(tmp_path / "well" / "1.png", 3)
    for name in ("v.mha", "v.nrrd", "v.nii.gz", "v.npy", "clip.mp4", "more.zip", "odd.bin"):
        (tmp_path / "well" / name).write_bytes(b"something else")
    (tmp_path / "well" / "away.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "well" / "notes.txt").write_text("beside")
    found = find(tmp_path, kind="images")
    assert sorted(scan.image for scan in found.scans) == sorted(["well/1.png", *(f"ill/{name}" for name in kinds)])
    for scan in found.scans:
        assert read_scan(scan.image, data=tmp_path).array.shape[-1] in (16, 2)
    reasons = {path.rpartition("/")[2]: reason for path, reason in found.left_out}
    assert set(reasons) == {"v.mha", "v.nrrd", "v.nii.gz", "v.npy", "clip.mp4", "more.zip", "odd.bin", "away.png"}
    assert "convert it to .nii.gz" in reasons["v.nrrd"] and "unpack" in reasons["more.zip"]
    assert reasons["away.png"] == "a link that leads nowhere"


def test_other_volumes_beside_nifti_are_listed_and_alone_say_what_to_do(tmp_path):
    nifti(tmp_path / "s" / "a.nii.gz")
    for name in ("b.mha", "c.img", "d.png"):
        (tmp_path / "s" / name).write_bytes(b"x")
    assert {path for path, _ in find(tmp_path / "s").left_out} == {"b.mha", "c.img", "d.png"}
    (tmp_path / "s" / "a.nii.gz").unlink()
    (tmp_path / "s" / "d.png").unlink()
    with pytest.raises(DataError, match=r"\.mha is a format that is not read: convert it to \.nii\.gz"):
        find(tmp_path / "s")


def test_linked_class_folders_are_followed(tmp_path):
    for at, name in enumerate(("ill", "well")):
        png(tmp_path / "pool" / name / "1.png", at)
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / name).symlink_to(tmp_path / "pool" / name, target_is_directory=True)
    (tmp_path / "pool" / "ill" / "again").symlink_to(tmp_path / "s", target_is_directory=True)
    found = find(tmp_path / "s")
    assert sorted((scan.image, scan.labels) for scan in found.scans) == [
        ("ill/1.png", ("ill",)), ("well/1.png", ("well",))
    ]  # fmt: skip


def test_an_archive_with_backslashes_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set\\", b"")
        for at, name in enumerate(("set\\ill\\1.png", "set\\well\\2.png")):
            archive.writestr(name, png(tmp_path / "one.png", at).read_bytes())
    found = find_scans(tmp_path / "a.zip", tmp_path / "out", SourceOptions(), SilentReporter())
    assert sorted(scan.image for scan in found.scans) == ["set/ill/1.png", "set/well/2.png"]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("..\\..\\x.png", b"x")
    with pytest.raises(DataError, match=r"leads out of its folder"):
        find_scans(tmp_path / "b.zip", tmp_path / "out2", SourceOptions(), SilentReporter())


def test_a_nifti_whose_name_says_another_compression_is_listed(tmp_path):
    """As `read_scan` reads it: by its content."""
    image = nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4))
    for name, content in (("a.nii.gz", image.to_bytes()), ("b.nii", gzip.compress(image.to_bytes()))):
        (tmp_path / name).write_bytes(content)
    found = find(tmp_path)
    assert [scan.image for scan in found.scans] == ["a.nii.gz", "b.nii"] and not found.left_out
