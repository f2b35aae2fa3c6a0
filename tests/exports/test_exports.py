"""`medopt export`: each format read with its own tool, and the release's decisions out of what travels with it."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from clinic_fixtures import Finished, call
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from medopt.core.errors import ConfigError, ReleaseError
from medopt.core.files import file_digest
from medopt.exports import openvino_ir, triton
from medopt.exports.decisions import Decider
from medopt.exports.folder import FACTS, ExportSource, compare, whole_folder
from medopt.exports.monai_bundle import bundle_metadata, check_metadata, open_bundle
from medopt.inference.engines import openvino_core
from medopt.release.layout import INFO, write_sums
from medopt.release.predictor import UNDECIDED, Release


@pytest.fixture(scope="module")
def source(finished: Finished) -> ExportSource:
    return ExportSource.read(finished.release)


def without_engine(finished: Finished, folder: Path, engine: str, kind: str = "int8") -> Path:
    """The release as one whose gate passed other engines only."""
    folder = Path(shutil.copytree(finished.release, folder))
    info = json.loads((folder / INFO).read_text())
    info["models"][kind]["engines"] = [one for one in ("onnxruntime", "openvino") if one != engine]
    (folder / INFO).write_text(json.dumps(info))
    write_sums(folder)
    return folder


def facts_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return found


def check_facts(folder: Path, source: ExportSource) -> None:
    """Every file's hash, and what turns logits into decisions; nothing of this machine."""
    facts = facts_of(folder)
    there = {path.relative_to(folder).as_posix(): file_digest(path) for path in folder.rglob("*") if path.is_file()}
    there.pop(FACTS)
    assert facts["files"] == there
    assert facts["release"]["verdicts"][0].startswith("the model is better than chance: ")
    assert facts["labels"] == source.info.labels and facts["input"]["chain_fingerprint"] == source.chain.fingerprint
    assert any("out-of-domain check" in one for one in facts["not_carried"]) == (source.info.domain is not None)
    places = [str(folder.parent), str(source.folder), str(Path(__file__).parents[2])]
    for path in folder.rglob("*"):
        assert path.is_dir() or not any(place.encode() in path.read_bytes() for place in places), path


def check_decisions(folder: Path, kind: Any, logits: np.ndarray, source: ExportSource) -> None:
    """Logits of the export come to the release's own answers."""
    opened = Release.open(source.folder, kind, source.info.models[kind].engines[0], 1)
    answers = replace(opened, domain=None).predict_batch(source.golden)
    decider = Decider.read(folder, kind)
    wanted = [[answer.probabilities[label] for label in source.info.labels] for answer in answers]
    np.testing.assert_allclose(decider.probabilities(logits), wanted, atol=1e-4)
    assert decider.decisions(logits) == [answer.decision for answer in answers]


def test_triton_repository_serves_the_release(finished: Finished, source: ExportSource, tmp_path: Path) -> None:
    out = tmp_path / "models"
    done = call("export", finished.folder, "--format", "triton", "--out", out, "--json")
    assert done.code == 0, done.stderr
    kind, name = done.summary["model"], done.summary["name"]
    assert done.summary["largest_logit_difference"] == {kind: pytest.approx(0, abs=1e-5)}
    assert name == "clinic" and "differs by at most" in done.stdout
    check_facts(out, source)
    session = onnxruntime.InferenceSession(out / name / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    config = configuration_of(out, name)
    assert config.backend in source.info.models[kind].engines and config.max_batch_size == 16
    assert [tensor.name for tensor in config.input] == [tensor.name for tensor in session.get_inputs()]
    assert list(config.input[0].dims) == [1, 32, 32]
    assert {tensor.name: list(tensor.dims) for tensor in config.output} == {
        tensor.name: tensor.shape[1:] for tensor in session.get_outputs()
    }
    assert {tensor.data_type for tensor in (*config.input, *config.output)} == {model_config_pb2.TYPE_FP32}
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8, 16]
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    assert config.version_policy.latest.num_versions == 1
    assert config.parameters["medopt_chain"].string_value == source.chain.fingerprint
    labels = (out / name / "labels.txt").read_text().splitlines()
    assert labels == ["blob"] and config.output[0].label_filename == "labels.txt"
    if config.backend == "onnxruntime":
        check_decisions(out, kind, session.run(["logits"], {"image": source.golden})[0], source)


def configuration_of(folder: Path, name: str) -> Any:
    """config.pbtxt, read with Triton's own schema."""
    return text_format.Parse((folder / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_triton_takes_the_engine_that_passed(finished: Finished, tmp_path: Path) -> None:
    for engine, backend in (("openvino", "onnxruntime"), ("onnxruntime", "openvino")):
        release = without_engine(finished, tmp_path / f"without-{engine}", engine, "float")
        found = triton.export_triton(ExportSource.read(release), tmp_path / f"for-{backend}", "float")
        assert configuration_of(tmp_path / f"for-{backend}", found.name).backend == found.backend == backend


def test_name_of_a_study_is_one_that_triton_takes() -> None:
    assert triton.model_name("chest x-ray/2026") == "chest_x-ray_2026"


def test_openvino_ir_holds_float32_and_gives_the_releases_answers(
    finished: Finished, source: ExportSource, tmp_path: Path
) -> None:
    out = tmp_path / "ir"
    done = call("export", finished.release, "--format", "openvino", "--out", out, "--json")
    assert done.code == 0, done.stderr
    check_facts(out, source)
    for kind in done.summary["models"]:
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino_core().read_model(out / f"model.{kind}.xml")
        compiled = openvino_core().compile_model(model, "CPU", options)
        logits = compiled({"image": source.golden})["logits"]
        if source.info.models[kind].engines[0] == "openvino":
            check_decisions(out, kind, logits, source)
        np.testing.assert_allclose(logits, source.answers(kind, "openvino")[0], atol=1e-5)
        constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        assert openvino.Type.f16 not in {op.get_element_type() for op in constants}
    assert "float" in done.summary["models"]


def test_model_whose_engine_did_not_pass_is_left_out_or_refused(finished: Finished, tmp_path: Path) -> None:
    source = ExportSource.read(without_engine(finished, tmp_path / "release", "openvino"))
    found = openvino_ir.export_openvino(source, tmp_path / "ir")
    assert found.models == ["float"] and found.not_exported == ["int8"]
    assert not (tmp_path / "ir" / "model.int8.xml").exists()
    with pytest.raises(ReleaseError, match="openvino did not pass the gate for the int8 model"):
        openvino_ir.export_openvino(source, tmp_path / "other", "int8")
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def bundle(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("monai") / "clinic"
    done = call("export", finished.folder, "--format", "monai", "--out", out, "--json")
    assert done.code == 0, done.stderr
    assert done.summary["file"] == "models/model.pt2" and done.summary["engine"] == "torch"
    assert 0 <= done.summary["largest_logit_difference"]["float"] < 1e-4
    return out


def test_monai_runs_the_bundle_as_the_release_answers(bundle: Path, source: ExportSource, tmp_path: Path) -> None:
    pytest.importorskip("ignite", reason="MONAI's evaluator needs pytorch-ignite")
    from monai.bundle import run

    run(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        output_dir=str(tmp_path),
    )
    rows = [line.split(",") for line in (tmp_path / "predictions.csv").read_text().split()]
    assert [Path(row[0]).name for row in rows] == [f"case-{number}.dcm" for number in (1, 2, 3)]
    opened = Release.open(source.folder, "float", threads=1)
    for row in rows:
        told = opened.predict(row[0])
        assert [float(one) for one in row[1:]] == pytest.approx(list(told.probabilities.values()), abs=1e-4)


def test_bundle_has_what_monai_asks_of_an_inference_workflow(bundle: Path, source: ExportSource) -> None:
    pytest.importorskip("ignite", reason="MONAI's evaluator needs pytorch-ignite")
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        workflow_type="inference",
        bundle_root=str(bundle),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.spatial_shape == [32, 32] and workflow.channel_def == {"0": "logit of blob"}
    check_facts(bundle, source)


def test_program_is_no_pickle_and_takes_any_batch(bundle: Path, source: ExportSource) -> None:
    import torch

    with zipfile.ZipFile(bundle / "models" / "model.pt2") as archive:
        for entry in archive.infolist():
            assert archive.read(entry)[:2] not in (b"\x80\x02", b"\x80\x04", b"PK"), entry.filename
    network = open_bundle(bundle).get_parsed_content("network_def")
    assert network.eval() is network
    for count in (1, 3):
        logits = network(torch.from_numpy(source.golden[:count])).detach().numpy()
        np.testing.assert_allclose(logits, source.answers("float", "onnxruntime")[0][:count], atol=1e-4)
    check_decisions(bundle, "float", network(torch.from_numpy(source.golden)).detach().numpy(), source)


def test_bundle_of_a_release_alone_runs_its_onnx_file(finished: Finished, source: ExportSource, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = call("export", finished.release, "--format", "monai", "--model", "int8", "--out", out, "--json")
    assert done.code == 0, done.stderr
    assert done.summary["file"] == "models/model.onnx"
    assert done.summary["engine"] == source.info.models["int8"].engines[0]
    assert not (out / "models" / "model.pt2").exists()
    check_facts(out, source)


def test_metadata_without_what_the_specification_demands_is_refused(source: ExportSource) -> None:
    found = bundle_metadata(source)
    check_metadata(found)
    del found["authors"], found["network_data_format"]["inputs"]["image"]["dtype"]
    with pytest.raises(ReleaseError, match=r"lacks authors, inputs\.image\.dtype"):
        check_metadata(found)


def test_changed_release_and_existing_folder_and_unknown_model_are_refused(finished: Finished, tmp_path: Path) -> None:
    release = Path(shutil.copytree(finished.release, tmp_path / "release"))
    (tmp_path / "there").mkdir()
    words = ["export", release, "--format", "openvino", "--out"]
    call(*words, tmp_path / "there").refused(2, "exists", "choose another --out")
    call(*words, tmp_path / "new", "--model", "int4").refused(2, "Invalid value for '--model'")
    (release / "CARD.md").write_text("other")
    (tmp_path / "study.yaml").touch()  # the folder of a run
    call(*words, tmp_path / "new").refused(6, "CARD.md was changed")
    call("export", tmp_path, "--format", "triton", "--out", tmp_path / "new").refused(6, "CARD.md was changed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release", "study.yaml", "there"]


def test_export_that_answers_otherwise_leaves_nothing(
    source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written file is another model's."""
    other = Path(source.model("int8"))
    monkeypatch.setattr(ExportSource, "model", lambda self, kind: other)
    monkeypatch.setattr(ExportSource, "answers", lambda self, kind, engine: (np.full((3, 1), 7.0), None))
    for write in (triton.export_triton, openvino_ir.export_openvino):
        with pytest.raises(ReleaseError, match="read back, differs from the release"):
            write(source, tmp_path / "out", "float")
    assert list(tmp_path.iterdir()) == []


def test_difference_is_judged_by_the_largest_logit() -> None:
    wanted = np.array([[100.0], [-3.0]])
    assert compare("it", wanted + 0.05, wanted) == pytest.approx(0.05)
    for found in (wanted + 0.2, wanted * np.nan):
        with pytest.raises(ReleaseError, match="not exported"):
            compare("it", found, wanted)
    with pytest.raises(ReleaseError, match=r"answers \(1, 1\) where"):
        compare("it", wanted[:1], wanted)


def test_folder_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out") as part:
        (part / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "out") as part:
        (part / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ConfigError, match="exists"), whole_folder(tmp_path / "out"):
        pass


def test_decisions_of_several_labels_and_of_the_band(source: ExportSource, tmp_path: Path) -> None:
    model = source.info.models["float"].model_dump(mode="json")
    model |= {"calibration": {"method": "temperature", "temperature": 2.0}, "threshold": [0.5, 0.9], "file": "x"}
    facts = {"labels": ["a", "b"], "task": "multilabel", "models": {"float": model}}
    (tmp_path / FACTS).write_text(json.dumps(facts))
    decider = Decider.read(tmp_path, "float")
    logits = np.array([[1.0, 1.0], [-1.0, 9.0], [1.0, 9.0], [-1.0, -1.0]])
    assert decider.decisions(logits) == ["a", "b", "a;b", ""]
    np.testing.assert_allclose(decider.probabilities(logits), 1 / (1 + np.exp(-logits / 2)))
    model |= {"threshold": 0.5, "band": [0.4, 0.6]}
    (tmp_path / FACTS).write_text(json.dumps(facts | {"task": "binary", "models": {"float": model}}))
    decider = Decider.read(tmp_path, "float")
    assert decider.decisions([[0.0], [9.0], [-9.0]]) == [UNDECIDED, "b", "a"]
    np.testing.assert_allclose(decider.probabilities([[0.0]]), [[0.5, 0.5]])
    with pytest.raises(ReleaseError, match="holds no export with a int8 model"):
        Decider.read(tmp_path, "int8")


def test_text_form_is_protobufs() -> None:
    values = {"k": 'a "quoted"\nname\\', "empty": "", "accent": "Größe"}
    message = {
        "name": "x",
        "parameters": [{"key": key, "value": {"string_value": text}} for key, text in values.items()],
    }
    config = text_format.Parse(triton.text_form(message), model_config_pb2.ModelConfig())
    assert {key: value.string_value for key, value in config.parameters.items()} == values
