"""A release's models in OpenVINO's own form: `model.int8.xml` and `.bin`, float32 kept as it is."""

from __future__ import annotations

from pathlib import Path

from medopt.core.errors import ReleaseError
from medopt.core.telemetry import without_telemetry
from medopt.exports.folder import ExportResult, ExportSource, compare, whole_folder, write_facts
from medopt.inference.engines import open_engine, openvino_core
from medopt.release.layout import Kind

with without_telemetry():
    import openvino

ENGINE = "openvino"


def export_openvino(source: ExportSource, target: Path, kind: Kind | None = None) -> ExportResult:
    """Write the models that OpenVINO may run: all, or the one of `kind`.

    Weights stay float32 where they are float32 (OpenVINO's default would halve them). Raises ReleaseError where
    OpenVINO did not pass the gate for the model.
    """
    kinds = [passed for passed in source.passed(ENGINE) if kind in (None, passed)]
    if not kinds:
        raise ReleaseError(f"{ENGINE} did not pass the gate for the {kind or 'int8 or float'} model of this release.")
    left_out = [other for other in source.info.models if other not in kinds and kind is None]
    differences: dict[Kind, float] = {}
    files: dict[Kind, str] = {each: f"model.{each}.xml" for each in kinds}
    with whole_folder(target) as part:
        for each, name in files.items():
            openvino.save_model(openvino_core().read_model(source.model(each)), part / name, compress_to_fp16=False)
            logits = open_engine(ENGINE, part / name, 1).run(source.golden)
            differences[each] = compare(name, logits, source.answers(each, ENGINE)[0])
        tool = f"openvino {openvino.__version__}"
        result = ExportResult(differences, tool, models=kinds, not_exported=left_out)
        write_facts(part, source, files, result)
    return result
