"""The real I3ResNet-152 of the catalogue, where its packages or its file are here: 225 MiB of bfloat16."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from isolation import STARTED_WITH
from published_resnets import PublishedResNet
from torch import nn

from medopt.models import build_resnet
from medopt.models.starts.adapt import fit_start, scaled_channels
from medopt.models.starts.catalogue import entry_of, local_file, where_from
from medopt.models.starts.fetching import fetch_start
from medopt.models.starts.files import read_tensors
from medopt.models.starts.opening import open_start

pytestmark = pytest.mark.long
LAYERS = (3, 8, 36, 3)


def deepened(network: PublishedResNet) -> nn.Module:
    """The peer with I3ResNet-152's blocks; it has two in each stage."""
    for number, count in enumerate(LAYERS, start=1):
        stage = getattr(network, f"layer{number}")
        last = stage[1]
        planes = last.conv1.out_channels
        same = {"v1": False, "averaged": False, "bias": False, "dilation": 1, "eps": 1e-5}
        more = [type(last)(3, 4 * planes, planes, 1, first=False, **same) for _ in range(count - 2)]
        stage.extend(more)
    return network.eval()


def test_the_ct_start_gives_the_features_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("MEDOPT_WEIGHTS", "XDG_CACHE_HOME", "HOME"):
        if key in STARTED_WITH:
            monkeypatch.setenv(key, STARTED_WITH[key])
    entry = entry_of("ct-i3resnet152")
    assert entry is not None
    if local_file(entry) is None:
        try:
            fetch_start(entry)
        except Exception:
            pytest.skip(where_from(entry))
    path = local_file(entry)
    assert path is not None
    opened = open_start(entry.name, Path(os.devnull).parent)
    start = opened.start
    assert (start.depth, start.width, start.stem, start.variant) == (152, (1.0,) * 5, "slices", "v1.5")
    assert start.layout == "I3ResNet" and opened.digest == entry.sha256
    network: Any = build_resnet(
        **start.architecture(), spatial_dims=3, channels=1, head="every_depth",
        scaled_channels=scaled_channels(start, 1),
    )  # fmt: skip
    fitted = fit_start(start, network, entry.name)
    assert fitted.share == 1.0
    network.load_state_dict(fitted.state)
    with torch.device("meta"):
        original: Any = deepened(PublishedResNet(
            3, 3, planes=(64, 128, 256, 512), stem_width=64, kernel=(3, 7, 7), stride=(1, 2, 2)
        ))  # fmt: skip
    original.load_state_dict(read_tensors(path), strict=False, assign=True)
    volume = torch.rand(1, 1, 16, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = network.eval().features(volume)[-1]
        theirs = original.features(volume.repeat(1, 3, 1, 1, 1))[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert float(theirs.std()) > 0
