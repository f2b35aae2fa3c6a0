"""Large images: what training and an answer take, and what shrinking loses, on a drawn study whose truth is known.

    python benchmarks/tiles.py memory [--json]           # a training step and an answer, each in a process of its own
    python benchmarks/tiles.py study [--seeds 3] [--json]  # shrunk, mean, attention, top_k: test AUC

memory: real steps of `Stepper` (augmentation, gradients, clipping, AdamW) and answers of ONNX Runtime; the peak is that
of the process (ru_maxrss), with Python and torch themselves, some 0.6 GB. study: half of the images hold one disc of a
few pixels on a texture that hides it once the image is shrunk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from medopt.compression.export import export_onnx
from medopt.compression.quantize import quantize_int8
from medopt.config import Study
from medopt.core.records import Case, EpochRecord, Volume
from medopt.inference.engines import file_batches, load_batch, open_engine
from medopt.inference.evidence_map import Evidence
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.models import build_model
from medopt.models.cost import study_cost
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.loop import load_best
from medopt.training.step_bench import StepBench
from medopt.transforms.prepare import PrepareChain
from medopt.transforms.resize import resize

GIB = 2**30
MAMMOGRAM, CT = [3000, 2500], [300, 512, 512]
TILES = {"pooling": "attention", "tile": [512, 512], "global_view": True}
STEPS: dict[str, tuple[list[int], dict[str, Any], int]] = {
    "3000 x 2500, tiles of 512, batch 2": (MAMMOGRAM, TILES, 2),
    "3000 x 2500, tiles of 512, batch 8": (MAMMOGRAM, TILES, 8),
    "3000 x 2500, tiles of 512, batch 2, ResNet-50 of full width": (MAMMOGRAM, TILES | {"depth": 50, "width": 1.0}, 2),
    "512 x 512 x 300, slices by 3, batch 2": (CT, {"pooling": "attention", "slices": 3}, 2),
    "512 x 512 x 300, each slice, batch 2": (CT, {"pooling": "attention"}, 2),
}
ANSWERS = {
    "3000 x 2500, tiles of 512": (MAMMOGRAM, TILES),
    "3000 x 2500, tiles of 512, ResNet-50 of full width": (MAMMOGRAM, TILES | {"depth": 50, "width": 1.0}),
    "512 x 512 x 300, each slice": (CT, {"pooling": "attention"}),
}


def study_of(size: list[int], model: dict[str, Any], **training: Any) -> Study:
    """A study of one finding on images of this size."""
    return Study.model_validate(
        {
            "name": "tiles",
            "question": "Is there a lesion?",
            "data": {"manifest": "manifest.csv", "labels": ["no", "lesion"]},
            "prepare": {"size": size},
            "model": model,
            "training": {"mixup": 0, "ema_decay": 0, "accelerator": "cpu", "workers": 0} | training,
        }
    )


def noise_files(folder: Path, size: list[int], count: int) -> PreparedSplit:
    """Prepared images of noise, as the cache stores them."""
    cases, files = [], []
    for index in range(count):
        levels = np.random.default_rng(index).integers(1, 65536, (1, *size), dtype=np.uint16)
        files.append(folder / f"{index}.npy")
        np.save(files[-1], levels)
        cases.append(Case(str(index), str(index), files[-1].name, (index % 2,), "train"))
    return PreparedSplit(cases, files)


def peak_gib() -> float:
    """The peak of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def step_of(name: str) -> dict[str, Any]:
    """Two steps: seconds of the processor of the second one, and the peak."""
    size, model, batch = STEPS[name]
    study = study_of(size, model, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        split = noise_files(Path(folder), size, batch)
        bench = StepBench(study, split.cases, split.files)
        steps = bench.times(batch, warm_up=0)
        next(steps)
        before = time.process_time()  # other programs on the machine do not count
        next(steps)
        seconds = time.process_time() - before
    cost = study_cost(study)
    return {"seconds": seconds, "peak_gib": peak_gib(), "gmac": cost.multiply_adds / 1e9, "images": batch}


def answer_of(name: str) -> dict[str, Any]:
    """Export, int8, and the peaks of one answer of each engine and of one map, each in a process of its own."""
    size, model = ANSWERS[name]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        found["peak of exporting and int8"] = alone(write_models, folder, size, model)["peak_gib"]
        found["int8 megabytes"] = (folder / "int8.onnx").stat().st_size / 1e6
        for kind in ("float", "int8"):
            for engine in ("onnxruntime", "openvino"):
                found[f"{kind}, {engine}"] = alone(answer_once, folder / f"{kind}.onnx", engine, size)
        found["map, openvino"] = alone(map_once, folder / "int8.onnx", size)
    return found


def write_models(folder: Path, size: list[int], model: dict[str, Any]) -> dict[str, Any]:
    """The float and the int8 file, int8 calibrated on two images."""
    network = build_model(study_of(size, model | {"zero_init_residual": False}))
    images = np.random.default_rng(0).random((2, 1, *size), dtype=np.float32)
    export_onnx(network, images[:1], folder / "float.onnx", 18)
    quantize_int8(folder / "float.onnx", folder / "int8.onnx", list(images))
    return {"peak_gib": peak_gib()}


def answer_once(path: Path, engine: str, size: list[int]) -> dict[str, Any]:
    """Seconds of the processor and peak of one image."""
    image, opened = np.random.default_rng(0).random((1, 1, *size), dtype=np.float32), open_engine(engine, path, 1)
    started = time.process_time()
    opened.run(image)
    return {"seconds": time.process_time() - started, "peak_gib": peak_gib()}


def map_once(path: Path, size: list[int]) -> dict[str, Any]:
    """Seconds of the processor and peak of one evidence map."""
    evidence = Evidence.open(path)
    assert evidence is not None
    started = time.process_time()
    places = evidence.places(np.random.default_rng(0).random((1, *size), dtype=np.float32))
    assert places is not None
    return {"seconds": time.process_time() - started, "peak_gib": peak_gib(), "positions": list(places.shape[1:])}


def prepare_once(size: list[int]) -> dict[str, Any]:
    """Seconds of the processor and peak of preparing one scan of 16 bits that is as large as the study's images."""
    array = np.random.default_rng(0).integers(0, 4096, (1, *size)).astype(np.float32)
    chain, started = PrepareChain(study_of(size, {}).prepare), time.process_time()
    chain.consume(Volume(array, np.eye(4), (1.0,) * len(size)))
    return {"seconds": time.process_time() - started, "peak_gib": peak_gib()}


def alone(work: Callable[..., dict[str, Any]], *words: Any) -> dict[str, Any]:
    """What `work` gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, words)


def measure_memory() -> dict[str, Any]:
    """All cases."""
    prepared = {f"prepare {' x '.join(map(str, size))}": alone(prepare_once, size) for size in (MAMMOGRAM, CT)}
    return prepared | {name: alone(step_of, name) for name in STEPS} | {name: answer_of(name) for name in ANSWERS}


def draw(index: int, size: list[int], radius: float, contrast: float) -> tuple[NDArray[np.float32], int]:
    """An image (H, W) in 0..1 and its label: a disc of this radius, or none."""
    random, label = np.random.default_rng((7, index)), index % 2
    image = 0.3 + 0.03 * _texture(random, size, 24) + 0.08 * _texture(random, size, 3)
    image += 0.01 * random.standard_normal(size)
    if label:
        middle = [random.uniform(8, side - 8) for side in size]
        down, across = (np.arange(side) - place for side, place in zip(size, middle, strict=True))
        image += contrast * (np.hypot(down[:, None], across[None]) <= radius)
    return np.clip(image, 0.01, 1).astype(np.float32), label


def _texture(random: np.random.Generator, size: list[int], scale: float) -> NDArray[np.float64]:
    smooth = gaussian_filter(random.standard_normal(size), scale)
    return np.asarray(smooth / smooth.std())


def drawn_split(folder: Path, split: str, first: int, count: int, full: list[int], shrunk: list[int], args: Any) -> Any:
    """The images of a split at full size and shrunk: two prepared splits."""
    parts: list[PreparedSplit] = []
    for name in ("full", "shrunk"):
        (folder / name).mkdir(exist_ok=True)
        parts.append(PreparedSplit([], []))
    for index in range(first, first + count):
        image, label = draw(index, full, args.pixels / 2, args.contrast)
        whole = torch.from_numpy(image)[None]
        for part, name, tensor in zip(parts, ("full", "shrunk"), (whole, resize(whole, shrunk)), strict=True):
            file = folder / name / f"{index}.npy"
            np.save(file, np.rint(tensor.numpy() * 65535).astype(np.uint16))
            part.files.append(file)  # type: ignore[attr-defined]
            part.cases.append(Case(str(index), str(index), file.name, (label,), split))  # type: ignore[attr-defined, arg-type]
    return parts


def area(model: torch.nn.Module, split: PreparedSplit) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (N, 1) and truth (N, 1) of a split."""
    with torch.inference_mode():
        rows = [model(torch.from_numpy(load_batch(split.files[part]))).numpy() for part in file_batches(split.files)]
    return np.concatenate(rows).astype(np.float64), np.array([case.label for case in split.cases], np.float64)


def one_training(name: str, seed: int, splits: dict[str, Any], folder: Path, args: Any) -> dict[str, Any]:
    """Train one kind of network, and its test AUC."""
    tile = {"tile": [args.tile, args.tile]}
    models: dict[str, dict[str, Any]] = {
        "shrunk": {},
        "mean": {"pooling": "mean"} | tile,
        "attention": {"pooling": "attention"} | tile,
        "attention and the whole": {"pooling": "attention", "global_view": True} | tile,
        "top_k": {"pooling": "top_k", "top_k": args.top_k} | tile,
    }
    place, size = (1, args.shrunk) if name == "shrunk" else (0, args.full)
    epochs = args.epochs * (args.shrunk_epochs if name == "shrunk" else 1)
    network = (
        {"depth": 14, "width": 0.25, "stem": "medium"}
        if name == "shrunk"
        else {"depth": 14, "width": args.width, "stem": "large"}
    )
    study = study_of(
        size,
        network | models[name],
        batch_size=8,
        epochs=epochs,
        keep="last",
        patience=epochs,
        optimizer={"lr": args.lr},
    )
    flat = {"probability": 0, "flip": ["left_right", "up_down"], "shift": "none"}
    study = Study.model_validate(study.model_dump() | {"seed": seed, "augment": flat})
    started = time.perf_counter()

    def score(logits: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        return float(auc_with_covariance(logits, truth, np.arange(len(truth))).value[0])

    def say(history: Sequence[EpochRecord]) -> None:
        if history:
            print(name, seed, len(history), f"{history[-1].train_loss:.3f} {history[-1].val_metric:.3f}", flush=True)

    job = TrainingJob(study, splits["train"][place], splits["val"][place], folder / f"{name}-{seed}", {})
    trained = train(job, TrainingCallbacks(score, say if args.epochs_shown else lambda history: None))
    logits, truth = area(load_best(study, trained.weights), splits["test"][place])
    auc = mean_auc(auc_with_covariance(logits, truth, np.arange(len(truth))), len(truth), 0.95)
    return {
        "kind": name, "seed": seed, "auc": auc.value, "low": auc.low, "high": auc.high,
        "train_loss": trained.history[-1].train_loss, "seconds": time.perf_counter() - started,
        "gmac": study_cost(study).multiply_adds / 1e9,
    }  # fmt: skip


def run_study(args: Any) -> list[dict[str, Any]]:
    """All kinds, seed by seed."""
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder, first, splits = Path(text), 0, {}
        for split, count in (("train", args.images), ("val", 100), ("test", args.test)):
            splits[split] = drawn_split(folder, split, first, count, args.full, args.shrunk, args)
            first += count
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for name in args.kinds:
                rows.append(one_training(name, seed, splits, folder, args))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def show_study(rows: list[dict[str, Any]], console: Console) -> None:
    """The AUCs by kind."""
    table = Table("network", "test AUC of each seed (95 % interval)", "mean", "minutes")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        each = ", ".join(f"{row['auc']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in own)
        minutes = statistics.mean(row["seconds"] for row in own) / 60
        table.add_row(kind, each, f"{statistics.mean(row['auc'] for row in own):.3f}", f"{minutes:.1f}")
    console.print(table)


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "study"])
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["shrunk", "mean", "attention", "top_k"])
    parser.add_argument("--full", type=int, nargs=2, default=[192, 160], help="size of the images")
    parser.add_argument("--shrunk", type=int, nargs=2, default=[32, 27], help="size that the shrinking one sees")
    parser.add_argument("--tile", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--width", type=float, default=0.125, help="of the networks of tiles; of the shrunk 0.25")
    parser.add_argument("--pixels", type=float, default=3, help="diameter of the lesion")
    parser.add_argument("--contrast", type=float, default=0.6)
    parser.add_argument("--images", type=int, default=400, help="training images")
    parser.add_argument("--test", type=int, default=300, help="test images")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--shrunk-epochs", type=int, default=4, help="so many times as many epochs for the shrunk")
    parser.add_argument("--epochs-shown", action="store_true", help="print each epoch's loss and validation AUC")
    parser.add_argument("--lr", type=float, default=3e-3)
    args, console = parser.parse_args(), Console()
    if args.what == "study":
        rows = run_study(args)
        show_study(rows, console)
        result: dict[str, Any] = {"rows": rows}
    else:
        result = measure_memory()
        console.print_json(json.dumps(result))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
