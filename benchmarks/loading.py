"""How fast are scans read and prepared? Against pydicom's own decode and MONAI's chains, interleaved, medians.

    python benchmarks/loading.py [--json] [--repeats 15] [--images 48]

Three questions: what a 2-megapixel 16-bit CR costs from file to a 512 x 512 tensor; what a first and a second epoch
over DICOM files cost with medopt's cache and with MONAI's CacheDataset and PersistentDataset; and which share of its
second epoch a ResNet-50 at 224 waits for data. The file is RG1_UNCR of pydicom-data; the radiographs are the phantom's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    EnsureType,
    LoadImage,
    Resize,
    ScaleIntensityRangePercentiles,
)
from pydicom import dcmread
from pydicom.data import get_testdata_file
from rich.console import Console
from rich.table import Table

from medopt.config import Data, Model, Prepare, Study, Training
from medopt.core.provenance import machine
from medopt.core.records import Case
from medopt.data.cache import PreparedCache
from medopt.data.loaders import predict_loader
from medopt.imaging import read_scan
from medopt.phantom import draw_study
from medopt.training.job import PreparedSplit, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.transforms.prepare import ClipIntensity, PrepareChain, ToUnitRange

SIDE = 512


def monai_chain(side: int) -> Compose:
    """The usual chain, as MONAI's own examples write it."""
    return Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True),
            Resize((side, side), anti_aliasing=True),
            EnsureType(track_meta=False),
        ]
    )


def interleaved(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each work, taken in turn so that a busy moment meets all of them; the first turn is left out."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def one_file(repeats: int) -> dict[str, Any]:
    """From a file to a 512 x 512 tensor."""
    path = get_testdata_file("RG1_UNCR.dcm", download=False)
    if path is None:
        raise SystemExit("RG1_UNCR.dcm is not installed: pip install pydicom-data")
    ours, theirs = PrepareChain(Prepare(size=[SIDE, SIDE], fit="stretch")), monai_chain(SIDE)
    works = {
        "pydicom's decode alone": lambda: dcmread(path).pixel_array,
        "medopt, file to tensor": lambda: ours(path),
        "MONAI's chain": lambda: theirs(path),
    }
    times = interleaved(works, repeats)
    decode, medopt, monai = (times[name] for name in works)
    return {
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "ratio_to_raw_decode": statistics.median(a / b for a, b in zip(medopt, decode, strict=True)),
        "ms_over_raw_decode": statistics.median(a - b for a, b in zip(medopt, decode, strict=True)),
        "speedup_vs_monai_chain": statistics.median(a / b for a, b in zip(monai, medopt, strict=True)),
        "largest_difference_of_intensities": _difference(path),
    }


def _difference(path: str) -> float:
    """Largest difference of the mapped intensities from MONAI's at full size.

    Its images come transposed, and those of MONOCHROME1 (as this one) not inverted: both are set right here.
    """
    volume = read_scan(path)
    ours = ToUnitRange()(ClipIntensity(Prepare(size=[SIDE, SIDE]).intensity)(volume)).array
    theirs = Compose(monai_chain(SIDE).transforms[:3])(path).numpy().transpose(0, 2, 1)
    inverted = dcmread(path, stop_before_pixels=True).PhotometricInterpretation == "MONOCHROME1"
    return float(np.abs(ours - (1 - theirs if inverted else theirs)).max())


@dataclass(frozen=True)
class Radiographs:
    """Cases of the phantom and where they lie."""

    root: Path
    cases: list[Case]

    @classmethod
    def draw(cls, folder: Path, count: int) -> Radiographs:
        """At least `count` radiographs of 1 to 2 megapixels."""
        draw_study(folder, patients=count)
        names = sorted(str(path.relative_to(folder)) for path in (folder / "images").rglob("*.dcm"))[:count]
        return cls(folder, [Case(name, name, name, (k % 2,), "train") for k, name in enumerate(names)])


def epochs(radiographs: Radiographs, folder: Path) -> dict[str, Any]:
    """Seconds of a first epoch (which fills a cache) and of a second one, over the same DICOM files at 512."""
    cases = radiographs.cases
    files = [str(radiographs.root / case.image) for case in cases]
    study, chain = make_study(SIDE, epochs=1), monai_chain(SIDE)
    prepared = cache(
        lambda: PreparedCache(folder / "medopt", PrepareChain(study.prepare)).fill(cases, radiographs.root)
    )
    in_memory = cache(lambda: CacheDataset(files, chain, progress=False))
    on_disk = cache(lambda: PersistentDataset(files, chain, folder / "monai"))
    works: dict[str, Callable[[], Iterable[Any]]] = {
        "medopt": lambda: predict_loader(study, cases, prepared()),
        "MONAI CacheDataset (in memory)": lambda: DataLoader(in_memory(), batch_size=8),
        "MONAI PersistentDataset": lambda: DataLoader(on_disk(), batch_size=8),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(2):
        for name, batches in works.items():
            started = time.perf_counter()
            for _batch in batches():
                pass
            seconds[name].append(time.perf_counter() - started)
    bytes_kept = sum(path.stat().st_size for path in (folder / "medopt").rglob("*.npy"))
    monai_bytes = sum(path.stat().st_size for path in (folder / "monai").rglob("*.pt"))
    return {
        "images": len(files),
        "first_epoch_s": {name: values[0] for name, values in seconds.items()},
        "second_epoch_s": {name: values[1] for name, values in seconds.items()},
        "bytes_on_disk": {"medopt": bytes_kept, "MONAI PersistentDataset": monai_bytes},
    }


def data_wait(radiographs: Radiographs, folder: Path) -> float:
    """Share of its second epoch that a ResNet-50 at 224 waits for augmented data."""
    study = make_study(224, epochs=2)
    files = PreparedCache(folder / "wait", PrepareChain(study.prepare)).fill(radiographs.cases, radiographs.root)
    part = PreparedSplit(radiographs.cases, files)
    few = PreparedSplit(radiographs.cases[:4], files[:4])
    trained = train(TrainingJob(study, part, few, folder / "train", {}), TrainingCallbacks(lambda logits, targets: 0.5))
    return trained.history[1].data_wait


def make_study(side: int, epochs: int) -> Study:
    """A full-width ResNet-50 with the default augmentation."""
    return Study(
        name="loading",
        question="How fast?",
        data=Data(manifest="none.csv", labels=["no", "yes"]),
        prepare=Prepare(size=[side, side], fit="stretch"),
        model=Model(depth=50, width=1.0),
        training=Training(epochs=epochs, batch_size=8),
    )


def show(found: Mapping[str, Any]) -> None:
    """Tables as a person reads them."""
    console = Console()
    single, loops = found["one_file"], found["epochs"]
    table = Table(title=f"RG1_UNCR (1955 x 1841, 16 bits) to {SIDE} x {SIDE}, medians", title_justify="left")
    for heading in ("", "ms"):
        table.add_column(heading)
    for name, value in single["median_ms"].items():
        table.add_row(name, f"{value:.1f}")
    console.print(table)
    console.print(
        f"medopt: {single['ms_over_raw_decode']:.1f} ms over the decode ({single['ratio_to_raw_decode']:.1f}x), "
        f"{single['speedup_vs_monai_chain']:.1f}x as fast as MONAI's chain; intensities differ by at most "
        f"{single['largest_difference_of_intensities']:.5f} before resizing (1/255 is 0.0039)"
    )
    table = Table(title=f"an epoch over {loops['images']} radiographs at {SIDE}, seconds", title_justify="left")
    for heading in ("", "first (fills the cache)", "second", "MB on disk"):
        table.add_column(heading)
    for name in loops["first_epoch_s"]:
        size = loops["bytes_on_disk"].get(name)
        table.add_row(
            name,
            f"{loops['first_epoch_s'][name]:.2f}",
            f"{loops['second_epoch_s'][name]:.3f}",
            f"{size / 1e6:.0f}" if size else "0",
        )
    console.print(table)
    console.print(f"ResNet-50 at 224, second epoch: {found['data_wait_share']:.2%} of the time spent waiting for data")


def main() -> None:
    """Measure, show, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="last line of stdout: the result as one JSON object")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=int, default=48)
    words = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="medopt-loading-"))
    try:
        radiographs = Radiographs.draw(folder / "phantom", words.images)
        single = one_file(words.repeats)
        found = {
            "one_file": single,
            "epochs": epochs(radiographs, folder),
            "data_wait_share": data_wait(radiographs, folder),
            "speedup_vs_monai_chain": single["speedup_vs_monai_chain"],
            "ratio_to_raw_decode": single["ratio_to_raw_decode"],
            "threads": torch.get_num_threads(),
            "machine": asdict(machine()),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(found)
    if words.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
