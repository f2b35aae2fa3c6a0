"""Golden cases and checksums on a release made by hand: three labels and two small models."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from results import gate, run_metrics

from medopt.config import Prepare
from medopt.core.errors import ReleaseError
from medopt.core.provenance import CodeVersion, Machine
from medopt.imaging import read_scan
from medopt.metrics.calibration import Calibration
from medopt.metrics.conformal import PredictionSets
from medopt.metrics.thresholds import OperatingPoint
from medopt.release import golden
from medopt.release.golden import draw_golden, golden_batch, golden_scans, record_answers, replay, verify_release
from medopt.release.layout import (
    SUMS,
    ModelInfo,
    Provenance,
    ReleaseInfo,
    check_chain,
    check_sums,
    read_info,
    refuse_channels,
    write_sums,
)
from medopt.release.predictor import Release
from medopt.transforms.prepare import PrepareChain

LABELS = ["effusion", "nodule", "device"]
WEIGHT, BIAS = np.array([[2.0, -1.0, 0.5]], np.float32), {"float": [-0.4, 0.3, 0.1], "int8": [-0.4, 0.31, 0.1]}
TEMPERATURE = 1.5


def save_model(path: Path, bias: list[float]) -> None:
    """Logits of an image: its mean times WEIGHT, plus the bias."""
    constants = [
        numpy_helper.from_array(WEIGHT, "weight"),
        numpy_helper.from_array(np.array(bias, np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 32, 32])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count])
        for name, count in (("logits", 3), ("features", 1))
    ]
    graph = helper.make_graph(nodes, "hand", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def release_info(**changes: Any) -> ReleaseInfo:
    prepare = Prepare(size=[32, 32])  # type: ignore[arg-type]
    models = {
        kind: ModelInfo(
            file=f"model.{kind}.onnx",
            calibration=Calibration("temperature", TEMPERATURE),
            threshold=(0.5, 0.4, 0.6),
            rule="youden",
            engines=["onnxruntime"],
        )
        for kind in ("int8", "float")
    }
    values: dict[str, Any] = {
        **{"format": 2, "study": "hand", "question": "?", "created": "today", "task": "multilabel", "labels": LABELS},
        **{
            "prepare": prepare,
            "chain_fingerprint": PrepareChain(prepare).fingerprint,
            "models": models,
            "gate": gate(),
        },
        "figures": run_metrics().for_release(),
        "provenance": Provenance(
            manifest_digest="d",
            mlflow_run_id=None,
            code=CodeVersion("0.0.1"),
            packages={"medopt": "0.0.1"},
            machine=Machine("a processor", 2, "3.11.7", "Linux"),
            data_notes=(),
        ),
    }
    return ReleaseInfo(**(values | changes))


FLAT, DEEP = Prepare(size=[32, 32]), Prepare(size=[8, 8, 8])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release, with its golden cases."""
    return build_by_hand(tmp_path_factory.mktemp("built"), release_info())


def build_by_hand(release: Path, info: ReleaseInfo) -> Path:
    (release / "release.json").write_text(info.model_dump_json())
    for kind, bias in BIAS.items():
        save_model(release / f"model.{kind}.onnx", bias)
    scans = draw_golden(release / "golden", FLAT)
    write_sums(release)
    record_answers(release, golden.open_every_model(release, 1), scans)
    write_sums(release)
    return release


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(built, tmp_path / "release"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[golden.ReplayedCase]:
    """Change what `golden.json` holds, and replay the cases."""
    values = json.loads((folder / "golden.json").read_text())
    change(values)
    (folder / "golden.json").write_text(json.dumps(values))
    write_sums(folder)
    return verify_release(folder, 1).cases


def test_the_recorded_answers_are_the_models_by_hand(folder: Path) -> None:
    values = json.loads((folder / "golden.json").read_text())
    assert values["tolerance"] == {"probability": 0.02, "pixels": 1e-4}
    assert [case["scan"] for case in values["cases"]] == [f"golden/case-{number}.dcm" for number in (1, 2, 3)]
    chain = PrepareChain(read_info(folder).prepare)
    for case, scan in zip(values["cases"], golden_scans(folder), strict=True):
        image = chain(scan).numpy().astype(np.float64)
        places = [int(at * (32 * 32 - 1) / 15) for at in range(16)]
        assert case["pixels"] == pytest.approx([image.mean(), image.std(), *image.ravel()[places]], abs=1e-6)
        assert list(case["answers"]) == ["int8/onnxruntime", "float/onnxruntime"]
        for kind, bias in BIAS.items():
            logits = image.mean() * WEIGHT[0] + np.array(bias)
            expected = 1 / (1 + np.exp(-logits / TEMPERATURE))
            assert case["answers"][f"{kind}/onnxruntime"] == pytest.approx(
                dict(zip(LABELS, expected, strict=True)), abs=1e-6
            )
    batch = golden_batch(folder, chain)
    assert batch.shape == (3, 1, 32, 32)
    assert [float(image.mean()) for image in batch] == pytest.approx([case["pixels"][0] for case in values["cases"]])


def test_a_replay_lists_every_case_and_model_with_its_answer(folder: Path) -> None:
    rows = verify_release(folder, 1).cases
    values = json.loads((folder / "golden.json").read_text())
    assert [(row.case, row.model) for row in rows] == [
        (f"golden/case-{number}.dcm", f"{kind}/onnxruntime") for number in (1, 2, 3) for kind in ("int8", "float")
    ]
    for row in rows:
        case = next(case for case in values["cases"] if case["scan"] == row.case)
        assert row.probability == pytest.approx(case["answers"][row.model], abs=1e-9)
        assert row.difference < 1e-9


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_label_of_one_case_that_moves_either_way_is_refused(
    folder: Path, label: str, sign: int, number: int
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["cases"][number]["answers"]["float/onnxruntime"][label] += sign * 0.021

    name = rf"golden/case-{number + 1}\.dcm"
    with pytest.raises(ReleaseError, match=f"{name}: float/onnxruntime answers differ by 0.021") as refused:
        edit(folder, change)
    assert "int8" not in str(refused.value)
    assert "pixels" not in str(refused.value)


def test_a_decision_that_is_not_the_builds_is_refused(folder: Path) -> None:
    values = json.loads((folder / "golden.json").read_text())
    decisions = values["cases"][0]["decisions"]
    assert list(decisions) == ["int8/onnxruntime", "float/onnxruntime"]
    with pytest.raises(ReleaseError, match=r"case-1\.dcm: int8/onnxruntime decides .*, not 'undecided:nodule'"):
        edit(folder, lambda found: found["cases"][0]["decisions"].update({"int8/onnxruntime": "undecided:nodule"}))


def test_what_is_left_undecided_is_recorded(tmp_path: Path) -> None:
    sets = PredictionSets(0.9, (0.0,) * 6, (5,) * 6)  # nothing is ever ruled out
    model = release_info().models["int8"].model_copy(update={"sets": sets})
    built = build_by_hand(tmp_path, release_info(models={"int8": model, "float": model}))
    cases = json.loads((built / "golden.json").read_text())["cases"]
    everything = ";".join(f"undecided:{label}" for label in LABELS)
    assert {text for case in cases for text in case["decisions"].values()} == {everything}
    verify_release(built, 1)


def test_a_case_may_differ_up_to_exactly_the_tolerance(folder: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["cases"][1]["answers"]["int8/onnxruntime"]["nodule"] -= 0.015

    rows = edit(folder, change)
    largest = max(rows, key=lambda row: row.difference)
    assert (largest.case, largest.model) == ("golden/case-2.dcm", "int8/onnxruntime")
    assert largest.difference == pytest.approx(0.015, abs=1e-9)

    def limit(values: dict[str, Any]) -> None:
        values["tolerance"]["probability"] = largest.difference

    assert len(edit(folder, limit)) == 6

    def less(values: dict[str, Any]) -> None:
        values["tolerance"]["probability"] = np.nextafter(largest.difference, 0)

    with pytest.raises(ReleaseError, match=r"differ by 0\.015"):
        edit(folder, less)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("at", [0, 1, 2, 17])
def test_prepared_pixels_that_differ_either_way_are_refused(folder: Path, sign: int, at: int) -> None:
    def change(values: dict[str, Any]) -> None:
        values["cases"][2]["pixels"][at] += sign * 2e-4

    with pytest.raises(ReleaseError, match=r"golden/case-3\.dcm: prepared pixels differ by 0.0002") as refused:
        edit(folder, change)
    assert "answers" not in str(refused.value)

    def exact(values: dict[str, Any]) -> None:
        pixels = golden._pixels(Release.open(folder, "float", "onnxruntime", 1), golden_scans(folder)[2])
        off = abs(pixels[at] - values["cases"][2]["pixels"][at])
        values["tolerance"]["pixels"] = off

    assert len(edit(folder, exact)) == 6


def test_pixels_that_are_no_number_are_no_agreement(folder: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["cases"][0]["pixels"][0] = float("nan")

    with pytest.raises(ReleaseError, match="prepared pixels differ by nan"):
        edit(folder, change)


def test_radiographs_and_volumes_are_drawn_the_same_everywhere_and_differ(tmp_path: Path) -> None:
    first, again, other = (draw_golden(tmp_path / name, FLAT, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert [path.name for path in first] == ["case-1.dcm", "case-2.dcm", "case-3.dcm"]
    arrays = [read_scan(path).array for path in (*first, *other)]
    assert {array.shape for array in arrays} == {(1, 320, 288)}
    assert len({array.tobytes() for array in arrays}) == 6
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(read_scan(one).array, read_scan(two).array)
    volumes = draw_golden(tmp_path / "d", DEEP)
    assert draw_golden(tmp_path / "d", DEEP) == volumes  # a folder that is there already
    assert [path.name for path in volumes] == ["case-1.nii.gz", "case-2.nii.gz", "case-3.nii.gz"]
    for index, path in enumerate(volumes):
        found = nibabel.load(path)
        assert found.shape == (48, 56, 52)
        assert np.array_equal(found.affine, np.eye(4))
        field = golden._blobs((48, 56, 52), np.random.default_rng((0, index)))
        assert np.array_equal(np.asarray(found.dataobj), (1000 * field).astype(np.int16))
        volume = golden._read(path, DEEP)
        assert volume.window == (500, 1000)
    scan = read_scan(first[0])
    assert scan.window and golden._read(first[0], FLAT).window == scan.window


@pytest.mark.parametrize(("size", "ending"), [([32, 32], "dcm"), ([8, 8, 8], "nii.gz")])
def test_the_images_of_a_case_of_several_are_drawn_apart(tmp_path: Path, size: list[int], ending: str) -> None:
    """Equal ones would not show that two were exchanged."""
    several = Prepare(size=size, channels=["t1", "flair"])  # type: ignore[arg-type]
    cases = draw_golden(tmp_path, several)
    assert [path.name for path in cases] == ["case-1", "case-2", "case-3"]
    names = {f"case-{at}-{name}.{ending}" for at in (1, 2, 3) for name in ("t1", "flair")}
    assert {path.name for path in tmp_path.iterdir()} == names
    found = [golden._read(path, several) for path in cases]
    assert all(volume.channels[0] is not None and volume.channels[0].window for volume in found)
    assert len({channel.tobytes() for volume in found for channel in volume.array}) == 6


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_the_drawn_field_by_its_formula(shape: tuple[int, ...]) -> None:
    """A gradient along the last axis, grain, and six blobs; then scaled to 0 and 1."""
    random = np.random.default_rng(5)
    grain = random.standard_normal(shape)
    blobs = [
        (random.uniform(-0.7, 0.7, len(shape)), random.uniform(0.05, 0.4), random.uniform(0.1, 0.5)) for _ in range(6)
    ]
    expected = np.empty(shape)
    for index in np.ndindex(*shape):
        at = [-1 + 2 * step / (side - 1) for step, side in zip(index, shape, strict=True)]
        value = 0.2 * at[-1] + 0.02 * grain[index]
        for center, radius, height in blobs:
            value += height * np.exp(-sum((a - c) ** 2 for a, c in zip(at, center, strict=True)) / radius**2)
        expected[index] = value
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(golden._blobs(shape, np.random.default_rng(5)), expected, atol=1e-6)


def test_the_list_of_sums_is_what_sha256sum_writes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in {"z.txt": b"z", "b/a.txt": b"a", "a.txt": b""}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    write_sums(tmp_path)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in
             (("a.txt", b""), ("b/a.txt", b"a"), ("z.txt", b"z"))]  # fmt: skip
    assert (tmp_path / SUMS).read_text() == "".join(lines)
    write_sums(tmp_path)  # the list itself is not in it
    assert (tmp_path / SUMS).read_text() == "".join(lines)
    check_sums(tmp_path)
    for broken in ("".join(lines) + lines[0], "".join(lines).rstrip("\n"), "\n".join(lines)):
        (tmp_path / SUMS).write_text(broken)
        with pytest.raises(ReleaseError, match=r"SHA256SUMS was changed|not a list of checksums"):
            check_sums(tmp_path)
    write_sums(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"x")
    (tmp_path / "z.txt").unlink()
    (tmp_path / "new").write_bytes(b"x")
    with pytest.raises(
        ReleaseError, match=r"is refused: z.txt is missing.*new does not belong to it.*a.txt was changed"
    ):
        check_sums(tmp_path)
    (tmp_path / SUMS).unlink()
    with pytest.raises(ReleaseError, match=r"is not a release: .*SHA256SUMS: No such file"):
        check_sums(tmp_path)


@pytest.mark.parametrize(
    ("task", "labels", "reported"),
    [
        ("binary", ["no", "yes"], ["yes"]),
        ("multiclass", ["a", "b", "c"], ["a", "b", "c"]),
        ("multilabel", LABELS, LABELS),
    ],
)
def test_each_task_reports_its_labels(task: str, labels: list[str], reported: list[str]) -> None:
    info = release_info(task=task, labels=labels)
    assert info.reported_labels == reported
    assert info.models["int8"].operating_point == OperatingPoint((0.5, 0.4, 0.6), "youden", band=None)


def test_a_release_of_another_format_or_chain_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"is not a release: there is no release\.json"):
        read_info(tmp_path)
    values = json.loads(release_info().model_dump_json())
    (tmp_path / "release.json").write_text(json.dumps(values | {"format": 3}))
    with pytest.raises(ReleaseError, match="is not a release of format 2: format: "):
        read_info(tmp_path)
    values["models"]["int8"]["engines"] = "onnxruntime"
    (tmp_path / "release.json").write_text(json.dumps(values))
    with pytest.raises(ReleaseError, match=r"models\.int8\.engines: "):
        read_info(tmp_path)
    info = release_info()
    assert check_chain(info).fingerprint == info.chain_fingerprint
    with pytest.raises(
        ReleaseError, match=f"chain is {'0' * 16}, and .* builds {info.chain_fingerprint[:16]} .*Use medopt 0.0.1,"
    ):
        check_chain(info.model_copy(update={"chain_fingerprint": "0" * 64}))


def test_a_release_of_several_images_a_case_is_refused_where_only_one_is_taken() -> None:
    refuse_channels(release_info(), "the server takes one image")
    several = release_info(prepare=Prepare(size=[32, 32], channels=["t1", "flair"]))  # type: ignore[arg-type]
    with pytest.raises(
        ReleaseError, match=r"A case of the release hand has 2 images \(t1, flair\): the server takes one"
    ):
        refuse_channels(several, "the server takes one image")


def test_a_volume_without_a_window_gets_that_of_its_drawing_alone(tmp_path: Path) -> None:
    (path, *_) = draw_golden(tmp_path, DEEP)
    volume = read_scan(path)
    assert volume.window is None
    assert golden._read(path, DEEP).window == replace(volume, window=(500, 1000)).window


def test_one_model_alone_is_recorded_and_replayed(folder: Path) -> None:
    alone = Release.open(folder, "float", "onnxruntime", 1)
    scans = draw_golden(folder / "more" / "golden", FLAT)
    record_answers(folder, [alone], scans)
    rows = replay(folder, read_info(folder), [alone]).cases
    assert [(row.case, row.model) for row in rows] == [
        (f"more/golden/case-{number}.dcm", "float/onnxruntime") for number in (1, 2, 3)
    ]


def test_sums_are_looked_at_before_anything_is_read(folder: Path) -> None:
    (folder / "release.json").write_text("{}")
    with pytest.raises(ReleaseError, match=r"is refused: release\.json was changed"):
        verify_release(folder, 1)


def test_faults_of_a_release_are_named_in_order(tmp_path: Path) -> None:
    names = ["e  two spaces.txt", "b", "d", "c", "a"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    write_sums(tmp_path)
    check_sums(tmp_path)
    for name in ("b", "d", "c"):
        (tmp_path / name).unlink()
    with pytest.raises(ReleaseError, match=r"is refused: b is missing.*c is missing.*d is missing"):
        check_sums(tmp_path)
    for name in ("b", "d", "c"):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("z", "x", "y"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ReleaseError, match=r"is refused: x does not belong.*y does not belong.*z does not belong"):
        check_sums(tmp_path)


def test_a_release_that_was_read_cannot_be_changed_by_hand() -> None:
    info = release_info()
    for record, name in ((info, "study"), (info.models["int8"], "rule"), (info.provenance, "manifest_digest")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, "other")
