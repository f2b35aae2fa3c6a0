"""OpenVINO's own form of a release's models: `NAME.int8.xml` and `.bin`, float32 kept as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medopt.core.errors import ReleaseError
from medopt.core.telemetry import without_telemetry
from medopt.exports.folder import ExportSource, compare, whole_folder, write_facts
from medopt.inference.engines import open_engine, openvino_core
from medopt.release.layout import Kind

with without_telemetry():
    import openvino

ENGINE = "openvino"


def export_openvino(source: ExportSource, target: Path, kind: Kind | None = None) -> dict[str, Any]:
    """Write the models that OpenVINO may run (all, or the one of `kind`), and return what was checked.

    Weights stay float32 where they are float32 (OpenVINO's default would halve them). Raises ReleaseError where
    OpenVINO did not pass the gate for the model.
    """
    kinds = [one for one in source.passed(ENGINE) if kind in (None, one)]
    if not kinds:
        raise ReleaseError(f"{ENGINE} did not pass the gate for the {kind or 'int8 or float'} model of this release.")
    core, differences, files = openvino_core(), {}, {}
    with whole_folder(target) as part:
        for one in kinds:
            files[one] = f"model.{one}.xml"
            openvino.save_model(core.read_model(source.model(one)), part / files[one], compress_to_fp16=False)
            found = open_engine(ENGINE, part / files[one], 1).run(source.golden)
            differences[one] = compare(files[one], found, source.answers(one, ENGINE)[0])
        checked = {"tool": f"openvino {openvino.__version__}", "largest_logit_difference": differences}
        write_facts(part, source, files, checked)
    refused = [one for one in source.info.models if one not in kinds and kind is None]
    return {"models": kinds, "not_exported": refused} | checked
