"""How fast does ResNet-50 answer? torch, torch.compile, TorchScript, the engines, and what medopt makes of it.

    python benchmarks/inference.py [--json] [--out TABLE] [--quick] [--only 2d_224 ...]

Scenes: 2-D at 224 and 512 pixels, 3-D at 64 cubed; width 1, the stem that `auto` takes. "ours" are what medopt makes
of the network: exported, pruned (30 and 50 % of the channels: multiply-adds / 2.14 and / 3.9), quantized to int8, each
in the engine that a short trial before chose, as `medopt tune runtime` does; torch, too, may choose between one thread
and all. Latency is one image, throughput batches of 8. All of a scene are measured in turn in one process; times are
medians. The weights are drawn at random and the BatchNorms have seen a few batches of drawn images: time does not
depend on what a network has learned, and what compression costs in accuracy is another question (`medopt run` judges
that). Run it on a machine that does nothing else: where threads wait for a core, torch suffers most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import zoom
from torch import nn

from medopt.compression.export import export_onnx
from medopt.compression.prune import multiply_adds, prune_network
from medopt.compression.quantize import quantize_int8
from medopt.config import Data, Model, Prepare, Study
from medopt.core.provenance import machine, package_versions, physical_cores
from medopt.core.records import FloatArray
from medopt.inference.engines import ENGINES, Engine, open_engine
from medopt.inference.latency import measure_latency
from medopt.models import build_model
from medopt.models.geometry import choose_stem

EAGER, BATCH, PAUSE = "torch eager float32", 8, 0.02
SHARES = {"30": 1 - 1 / 2.14, "50": 1 - 1 / 3.9}  # of the multiply-adds, for that percentage of the channels
TARGETS = {
    "2d_224_int8": 3.3, "2d_512_int8": 3.9, "3d_64_int8": 3.2,
    "2d_224_pruned30_int8": 5.0, "2d_224_pruned50_int8": 9.0,
}  # fmt: skip
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16")
CALIBRATION, MOST_MEMORY = 16, 4e9


@dataclass(frozen=True)
class Scene:
    """A network and the size of its images; `pruned` says whether narrower ones are compared, too."""

    name: str
    size: list[int]
    pruned: bool = False


SCENES = (Scene("2d_224", [224, 224], pruned=True), Scene("2d_512", [512, 512]), Scene("3d_64", [64, 64, 64]))


@dataclass
class Contest:
    """All that compete in a scene: calls by name for one image and for a batch, and who may not, with the reason."""

    alone: dict[str, Callable[[], Any]] = field(default_factory=dict)
    many: dict[str, Callable[[], Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def make_network(scene: Scene, quick: bool) -> tuple[Study, nn.Module, FloatArray]:
    """The network after its BatchNorms have seen drawn images (N, 1, *size), which calibrate int8, too."""
    study = Study(
        name="inference",
        question="How fast?",
        data=Data(manifest="none.csv", labels=["no", "yes"]),
        prepare=Prepare(size=scene.size, fit="stretch"),
        model=Model(depth=50, width=0.25 if quick else 1.0, zero_init_residual=False),
    )
    random = np.random.default_rng(7)
    coarse = [random.random([max(2, n // 16) for n in scene.size]) for _ in range(CALIBRATION)]
    fine = [zoom(one, np.divide(scene.size, one.shape), order=1) for one in coarse]
    grain = 0.05 * random.standard_normal((CALIBRATION, *scene.size))
    images = np.clip(np.stack(fine) + grain, 0, 1).astype(np.float32)[:, None]
    model = build_model(study)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = None  # the plain mean over the batches
    settle(model, images)
    return study, model, images


def settle(model: nn.Module, images: FloatArray) -> nn.Module:
    """Give the BatchNorms the statistics of these images."""
    model.train()
    with torch.no_grad():
        for start in (0, 4):
            model(torch.from_numpy(images[start : start + 4]))
    return model.eval()


def torch_runs(contest: Contest, model: nn.Module, image: FloatArray, batch: FloatArray, compile_too: bool) -> None:
    """Eager, compiled and TorchScript; what cannot be made is a note. As many threads as make eager fastest."""

    def timed(threads: int) -> float:
        torch.set_num_threads(threads)
        return measure_latency({"": call(model, image)}, rounds=5, warmup=2, seconds=5, min_rounds=3)[""]

    def call(network: Callable[[torch.Tensor], torch.Tensor], array: FloatArray) -> Callable[[], Any]:
        tensor = torch.from_numpy(array)

        def run() -> Any:
            with torch.inference_mode():
                return network(tensor)

        return run

    fastest = min({1, physical_cores()}, key=timed)
    torch.set_num_threads(fastest)
    contest.notes[EAGER] = f"{fastest} thread{'s' * (fastest > 1)}"
    contest.alone[EAGER], contest.many[EAGER] = call(model, image), call(model, batch)
    name = "torch.compile"
    if compile_too:
        try:
            begun = time.perf_counter()
            compiled = call(torch.compile(model, dynamic=False), image)
            compiled()
            contest.alone[name] = compiled
            contest.notes[name] = f"compiled in {time.perf_counter() - begun:.0f} s, for one image only"
        except Exception as error:  # whatever the compiler or its absence raises is the row's reason
            contest.notes[name] = f"failed: {' '.join(str(error).split())[:120]}"
    else:
        contest.notes[name] = "left out of a quick try"
    name = "TorchScript"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(model, torch.from_numpy(image))
        contest.alone[name], contest.many[name] = call(traced, image), call(traced, batch)
    except Exception as error:
        contest.notes[name] = f"failed: {' '.join(str(error).split())[:120]}"


def engine_runs(contest: Contest, name: str, path: Path, image: FloatArray, batch: FloatArray) -> None:
    """One of ours: the engine for one image and the engine for a batch, each chosen by a short trial."""

    def calls(engines: dict[str, Engine], array: FloatArray) -> dict[str, Callable[[], Any]]:
        return {label: lambda e=engine: e.run(array) for label, engine in engines.items()}

    alone = calls({engine: open_engine(engine, path) for engine in ENGINES}, image)
    many = calls(
        {
            "onnxruntime": open_engine("onnxruntime", path, 0, "throughput"),
            "openvino": open_engine("openvino", path),
            "openvino streams": open_engine("openvino", path, 0, "throughput"),
        },
        batch,
    )
    chosen = []
    for into, found in ((contest.alone, alone), (contest.many, many)):
        times = measure_latency(found, rounds=7, warmup=1, seconds=2, min_rounds=2, pause=PAUSE)
        chosen.append(min(times, key=times.__getitem__))
        into[name] = found[chosen[-1]]
    contest.notes[name] = chosen[0] if chosen[0] == chosen[1] else f"{chosen[0]}; batches: {chosen[1]}"
    contest.facts[name] = {"megabytes": path.stat().st_size / 1e6}


def export_and_quantize(model: nn.Module, images: FloatArray, folder: Path, name: str, opset: int) -> tuple[Path, Path]:
    """The float and the int8 file of a network. int8 is made in a process of its own, whose memory is measured."""
    float_path, int8_path = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    export_onnx(model, images[:1], float_path, opset)
    np.save(folder / "images.npy", images)
    words = ["--calibrate", str(float_path), str(int8_path), str(folder / "images.npy")]
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    peaks[name] = int(done.stdout.split()[-1])
    return float_path, int8_path


peaks: dict[str, int] = {}


def calibrate(source: Path, target: Path, images: Path) -> None:
    """A child's work: quantize, and print the most memory this process held."""
    quantize_int8(source, target, list(np.load(images, mmap_mode="r")))
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def prepare(scene: Scene, folder: Path, quick: bool) -> Contest:
    """Make all networks of a scene, and open them."""
    study, model, images = make_network(scene, quick)
    contest, opset = Contest(), study.compression.opset
    image, batch = images[:1], images[:BATCH]
    whole = multiply_adds(model, 1, scene.size)
    contest.facts["network"] = {"stem": choose_stem(study.prepare.size), "giga_multiply_adds": whole / 1e9}
    torch_runs(contest, model, image, batch, not quick)
    paths = export_and_quantize(model, images, folder, scene.name, opset)
    for engine in ENGINES:
        alone = open_engine(engine, paths[0])
        many = open_engine(engine, paths[0], 0, "throughput")
        contest.alone[f"{engine} float32"] = lambda e=alone: e.run(image)
        contest.many[f"{engine} float32"] = lambda e=many: e.run(batch)
    engine_runs(contest, "ours: float", paths[0], image, batch)
    engine_runs(contest, "ours: int8", paths[1], image, batch)
    for percent, share in SHARES.items() if scene.pruned else ():
        narrow = settle(prune_network(model, scene.size, share), images)
        paths = export_and_quantize(narrow, images, folder, f"{scene.name}_pruned{percent}", opset)
        less = whole / multiply_adds(narrow, 1, scene.size)
        for kind, path in zip((f"pruned {percent} %", f"pruned {percent} % + int8"), paths, strict=True):
            engine_runs(contest, f"ours: {kind}", path, image, batch)
            contest.notes[f"ours: {kind}"] += f"; multiply-adds / {less:.2f}"
    return contest


def measure(contest: Contest, quick: bool) -> list[dict[str, Any]]:
    """A row a competitor: medians of interleaved runs, and how many times faster than torch eager."""
    rounds = 5 if quick else 25
    alone = measure_latency(contest.alone, rounds=rounds, warmup=3, seconds=30, min_rounds=5, pause=PAUSE)
    many = measure_latency(contest.many, rounds=3 if quick else 7, warmup=1, seconds=20, min_rounds=3, pause=PAUSE)
    best_alone, best_many = (min(times[f"{name} float32"] for name in ENGINES) for times in (alone, many))
    rows = []
    for name in dict.fromkeys([*alone, *many, *contest.notes]):
        one, eight = alone.get(name), many.get(name)
        rows.append(
            {
                "model": name,
                "latency_ms": one,
                "latency_speedup": alone[EAGER] / one if one else None,
                "latency_over_float": best_alone / one if one else None,
                "images_per_second": 1000 * BATCH / eight if eight else None,
                "throughput_speedup": many[EAGER] / eight if eight else None,
                "throughput_over_float": best_many / eight if eight else None,
                "megabytes": contest.facts.get(name, {}).get("megabytes"),
                "note": contest.notes.get(name, ""),
            }
        )
    return rows


KEYS = {
    "ours: float": "float", "ours: int8": "int8", "ours: pruned 30 %": "pruned30", "ours: pruned 50 %": "pruned50",
    "ours: pruned 30 % + int8": "pruned30_int8", "ours: pruned 50 % + int8": "pruned50_int8",
}  # fmt: skip


def speedups(scenes: dict[str, list[dict[str, Any]]], which: str) -> dict[str, float]:
    """Ours against torch eager, or against the best float engine, by scene and model."""
    return {
        f"{scene}_{KEYS[row['model']]}": round(row[which], 3)
        for scene, rows in scenes.items()
        for row in rows
        if row["model"] in KEYS
    }


def table_of(scene: Scene, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    """What a person reads."""
    size = " x ".join(map(str, scene.size))
    title = f"ResNet-50, {size}, {facts['stem']} stem, {facts['giga_multiply_adds']:.1f} G multiply-adds"
    table = Table(
        *("", "ms, one image", "x eager", "x float", f"images/s, batch {BATCH}", "x eager", "x float", "MB", ""),
        title=title,
        title_justify="left",
    )
    for row in rows:
        numbers = (("latency_ms", ".1f"), ("latency_speedup", ".2f"), ("latency_over_float", ".2f"))
        numbers += (("images_per_second", ".1f"), ("throughput_speedup", ".2f"), ("throughput_over_float", ".2f"))
        numbers += (("megabytes", ".1f"),)
        cells = ("" if row[key] is None else format(row[key], form) for key, form in numbers)
        table.add_row(row["model"], *cells, row["note"])
    return table


def instructions() -> list[str]:
    """Which of the instructions that matter for int8 this processor has."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []
    return [flag for flag in FLAGS if flag in words]


def main() -> None:
    """Measure all scenes, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--out", type=Path, help="write the tables to this text file, too")
    parser.add_argument("--quick", action="store_true", help="a quarter-width network and few rounds: only a try")
    parser.add_argument("--only", nargs="*", choices=[one.name for one in SCENES], help="scenes; else all")
    parser.add_argument("--calibrate", nargs=3, type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.calibrate:
        calibrate(*words.calibrate)
        return
    begun, found, facts = time.perf_counter(), {}, {}
    console = Console(width=150, record=True, highlight=False)
    here = {**asdict(machine()), "physical_cores": physical_cores(), "instructions": instructions()}
    here["load_before"] = round(os.getloadavg()[0], 2)
    console.print(f"{here['cpu']}, {here['physical_cores']} cores, {' '.join(here['instructions'])}")
    if here["load_before"] > 0.3:
        console.print(f"The machine is busy (load {here['load_before']}): these ratios are not worth quoting.")
    for scene in (one for one in SCENES if not words.only or one.name in words.only):
        with tempfile.TemporaryDirectory() as place:
            contest = prepare(scene, Path(place), words.quick)
            found[scene.name], facts[scene.name] = measure(contest, words.quick), contest.facts["network"]
        del contest
        torch.compiler.reset()
        console.print(table_of(scene, facts[scene.name], found[scene.name]))
    latency = speedups(found, "latency_speedup")
    for name, peak in peaks.items():
        console.print(f"calibrating {name} with {CALIBRATION} images: at most {peak / 1e9:.2f} GB (wanted below 4)")
    for name, target in TARGETS.items():
        if name in latency:
            told = "reached" if latency[name] >= target else "NOT reached"
            console.print(f"{name}: {latency[name]:.2f}x of torch eager, wanted {target}x: {told}")
    if words.out:
        words.out.write_text(console.export_text(), encoding="utf-8")
    if words.json:
        told = {
            "speedup_vs_torch_eager": latency,
            "throughput_vs_torch_eager": speedups(found, "throughput_speedup"),
            "speedup_vs_best_float_engine": speedups(found, "latency_over_float"),
            "throughput_vs_best_float_engine": speedups(found, "throughput_over_float"),
            "targets": TARGETS,
            "calibration_peak_bytes": peaks,
            "scenes": found,
            "networks": facts,
            "quick": words.quick,
            "machine": here,
            "packages": package_versions(),
            "seconds": round(time.perf_counter() - begun, 1),
        }
        print(json.dumps(told, allow_nan=False))


if __name__ == "__main__":
    main()
