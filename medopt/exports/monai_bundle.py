"""A MONAI bundle of a release, for users of MONAI's own tools: our chain, the network, what its logits mean.

Exported from a run, the bundle has the float network as `models/model.pt2`: a graph in JSON and plain weights. A
release alone holds ONNX files, which cannot be turned into a torch program; its bundle runs the ONNX file in its
engine. There is no `model.pt` and no TorchScript: both are pickles, which run the code in them when they are opened,
and TorchScript is no longer developed. Source: MONAI Bundle Specification.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medopt import __version__
from medopt.core.errors import ReleaseError
from medopt.core.files import write_json, write_text
from medopt.core.records import has_one_output
from medopt.core.telemetry import without_telemetry
from medopt.exports.decisions import Decider
from medopt.exports.folder import ExportResult, ExportSource, compare, whole_folder, write_facts
from medopt.exports.torch_module import save_program
from medopt.release.golden import golden_scans
from medopt.release.layout import CARD, Kind

with without_telemetry():
    from monai.bundle import ConfigParser

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
INFERENCE, METADATA, GOLDEN = "configs/inference.json", "configs/metadata.json", "golden"
# Keys that the specification demands of the metadata, and of each tensor in it.
MANDATORY = (
    "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright",
    "network_data_format",
)  # fmt: skip
TENSOR = (
    "type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
    "channel_def",
)  # fmt: skip


def export_monai(
    source: ExportSource, target: Path, kind: Kind | None = None, network: nn.Module | None = None
) -> ExportResult:
    """Write the bundle to `target`.

    `network` is the float network of the release; without it, or for the int8 model, the ONNX file runs in the fastest
    engine that passed the gate. `kind` None takes the float model. Raises ReleaseError.
    """
    kind = kind or "float"
    engine = source.info.models[kind].engines[0]
    program = network is not None and kind == "float"
    name = "models/model.pt2" if program else "models/model.onnx"
    with whole_folder(target) as part:
        for folder in ("configs", "models", "docs"):
            (part / folder).mkdir()
        shutil.copyfile(source.model(kind), part / "models" / "model.onnx")
        if program:
            assert network is not None
            save_program(network, source.golden, part / name)
        shutil.copytree(source.folder / "golden", part / GOLDEN)
        write_json(part / METADATA, bundle_metadata(source))
        write_json(part / INFERENCE, bundle_inference(source, kind, engine, program))
        write_text(part / "docs" / "README.md", _readme(source, kind, name, engine))
        write_facts(part, source, {kind: name}, None)  # the bundle reads it
        check_metadata(ConfigParser.load_config_file(part / METADATA))
        difference = read_back(part, source, kind, engine)
        tool = f"monai {metadata.version('monai')}"
        runs_in = "torch" if program else engine
        result = ExportResult({kind: difference}, tool, model=kind, file=name, engine=runs_in)
        write_facts(part, source, {kind: name}, result)
    return result


def bundle_metadata(source: ExportSource) -> dict[str, Any]:
    """`metadata.json`; what the study does not state is given as unknown."""
    info = source.info
    channels = [info.labels[1]] if has_one_output(info.task) else info.labels
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from the release of {info.created}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"medopt": __version__, "pytorch-ignite": "0.5"},
        "name": info.study,
        "task": info.question,
        "description": f"{info.question} Classification into {', '.join(info.labels)}. docs/README.md is its card.",
        "intended_use": info.intended_use or "not stated",
        "authors": "see the release's card",
        "copyright": "see the release's card",
        "data_source": "see the release's card",
        "data_type": "DICOM, NIfTI or image files",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": info.prepare.input_channels,
                    "spatial_shape": list(info.prepare.size),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(place): "image" for place in range(info.prepare.input_channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "modality": "n/a",
                    "num_channels": len(channels),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(place): f"logit of {label}" for place, label in enumerate(channels)},
                }
            },
        },
    }


def check_metadata(content: dict[str, Any]) -> None:
    """Raises ReleaseError where a key that the specification demands is missing.

    MONAI does not ship its JSON schema: `python -m monai.bundle verify_metadata` downloads it.
    """
    missing = [key for key in MANDATORY if key not in content]
    for side in ("inputs", "outputs"):
        for name, tensor in content.get("network_data_format", {}).get(side, {}).items():
            missing += [f"{side}.{name}.{key}" for key in TENSOR if key not in tensor]
    if missing:
        raise ReleaseError(f"The bundle's metadata lacks {', '.join(missing)}; not exported.")


def bundle_inference(source: ExportSource, kind: Kind, engine: str, program: bool) -> dict[str, Any]:
    """`inference.json`: scans below dataset_dir to output_dir/predictions.csv, a probability for each label."""
    network: Any = {
        "_target_": "medopt.exports.torch_module.OnnxNetwork",
        "path": "$@bundle_root + '/models/model.onnx'",
        "engine": engine,
    }
    if program:
        network = {
            "_target_": "medopt.exports.torch_module.ProgramNetwork", "path": "$@bundle_root + '/models/model.pt2'",
        }  # fmt: skip
    return {
        "imports": ["$import os", "$import monai"],
        "bundle_root": ".",
        "dataset_dir": f"$@bundle_root + '/{GOLDEN}'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$__import__('torch').device('cpu')",
        "scans": "$sorted(os.path.join(@dataset_dir, name) for name in os.listdir(@dataset_dir))",
        "chain": {
            "_target_": "medopt.transforms.prepare.PrepareChain",
            "config": {"_target_": "medopt.config.Prepare", **source.info.prepare.model_dump(mode="json")},
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Lambdad", "keys": "image", "func": "@chain", "track_meta": False}],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan, 'scan': scan} for scan in @scans]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 4, "num_workers": 0},
        "network_def": network,
        "inferer": {"_target_": "SimpleInferer"},
        "to_probabilities": {
            "_target_": "medopt.exports.decisions.ToProbabilities", "folder": "@bundle_root", "kind": kind,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Lambdad", "keys": "pred", "func": "@to_probabilities", "track_meta": False}],
        },
        "handlers": [
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "batch_transform": "$lambda batch: [{'filename_or_obj': one['scan']} for one in batch]",
                "output_transform": "$monai.handlers.from_engine(['pred'])",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def open_bundle(folder: Path) -> ConfigParser:
    """The bundle's inference configuration, with its root set; the parser's warning that it runs code is silenced."""
    parser = ConfigParser()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.read_config(folder / INFERENCE)
        parser.read_meta(folder / METADATA)
        parser["bundle_root"] = str(folder)
        parser.parse()
    return parser


def read_back(folder: Path, source: ExportSource, kind: Kind, engine: str) -> float:
    """Predict the golden scans as a user of MONAI would; returns the largest logit difference.

    Raises ReleaseError where pixels, logits or probabilities are not the release's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = open_bundle(folder)
        prepare, network, inferer, finish = (
            parser.get_parsed_content(name) for name in ("preprocessing", "network_def", "inferer", "postprocessing")
        )
    images = torch.stack([torch.as_tensor(prepare({"image": scan})["image"]) for scan in golden_scans(source.folder)])
    if not np.array_equal(images.numpy(), source.golden):
        raise ReleaseError("The bundle prepares the golden scans otherwise than the release; not exported.")
    with torch.inference_mode():
        logits = inferer(images, network)
    expected = source.answers(kind, engine)[0]
    difference = compare(f"the bundle's {kind} model", logits.numpy(), expected)
    probabilities = np.stack([finish({"pred": row})["pred"].numpy() for row in logits])
    if not np.allclose(probabilities, Decider.read(folder, kind).probabilities(expected), atol=1e-3):
        raise ReleaseError("The bundle gives other probabilities than the release; not exported.")
    return difference


def _readme(source: ExportSource, kind: Kind, name: str, engine: str) -> str:
    card = (source.folder / CARD).read_text(encoding="utf-8")
    torch_program = name.endswith("pt2")
    runs = "torch (a PT2 program)" if torch_program else f"{engine} (an ONNX file)"
    return f"""# {source.info.study}: MONAI bundle of a medopt release

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --bundle_root . --dataset_dir FOLDER_OF_SCANS --output_dir eval

writes eval/predictions.csv: each scan and the probabilities of {", ".join(source.info.labels)}. Without --dataset_dir
it predicts the drawn scans in golden/. It needs medopt (the chain that prepares a scan is the one of training) and
pytorch-ignite and fire (MONAI's evaluator and command line), and runs the {kind} model in {runs}.
Each file of FOLDER_OF_SCANS is one scan; for a study of volumes so is each folder of DICOM slices.

medopt.json says how logits become probabilities and decisions (calibration, threshold), and the SHA-256 of every file.
What a bundle does not do: decline scans that are unlike those of training. `medopt predict` does.

There is neither model.pt nor model.ts: both are pickles, which run what is in them when they are opened. MONAI Deploy's
operators for TorchScript cannot load this bundle; call network_def of configs/inference.json instead.

The release's card follows.

{card}"""
