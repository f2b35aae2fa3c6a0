"""`medopt tune runtime`: measure the settings of a release on this machine, and check the chosen ones' answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medopt.core.errors import ReleaseError
from medopt.core.provenance import physical_cores
from medopt.inference.runtime import BATCHES, Setting, Tuned, candidates, run_trial
from medopt.release.golden import golden_batch, replay
from medopt.release.layout import Kind, check_chain, check_sums, read_info
from medopt.release.predictor import Release
from medopt.release.runtime import write_runtime

# In a batch float32 may be summed in another order than for one image; nothing else may differ.
BATCH_TOLERANCE = 1e-4


def tune_runtime(
    folder: Path, kind: Kind, seconds: float, sizes: Sequence[int] = BATCHES, cores: int = 0
) -> tuple[Tuned, Path]:
    """Measure the engines that passed the gate, choose, check the choice on the golden cases, and write it down.

    `cores` 0 takes all physical ones. Returns the measurements and the file, which lies beside the release. Raises
    ReleaseError where the release was changed, or where a chosen setting does not answer as the release did.
    """
    check_sums(folder)
    info = read_info(folder)
    model = info.models[kind]
    image = golden_batch(folder, check_chain(info))[0]
    settings = candidates(model.engines, cores or physical_cores(), sizes)
    tuned = run_trial(folder / model.file, settings, image, seconds)
    for setting in (tuned.latency, tuned.throughput):
        prove(folder, kind, setting)
    return tuned, write_runtime(folder, kind, tuned)


def prove(folder: Path, kind: Kind, setting: Setting) -> float:
    """Replay the golden cases with a setting; returns the largest logit difference between a batch and single images.

    Raises ReleaseError where answers are not those of the build, or depend on the other images of a batch.
    """
    release = Release.open(folder, kind, setting=setting)
    replay(folder, release.info, [release])
    images = golden_batch(folder, release.chain)
    images = images[np.arange(max(setting.batch, len(images))) % len(images)][: setting.batch]
    alone = np.concatenate([release.engine.run(image[None]) for image in images])
    difference = float(np.abs(release.engine.run(images) - alone).max())
    if not difference <= BATCH_TOLERANCE * max(1.0, float(np.abs(alone).max())):
        raise ReleaseError(
            f"{setting.engine} gives other logits for a batch of {setting.batch} than for its images one by one (by "
            f"{difference:.2g}), so the setting is not written. Predict with another engine (--engine), or report this."
        )
    return difference
