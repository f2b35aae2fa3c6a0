from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medopt.training.epoch import predict_logits


@pytest.mark.parametrize("mode", [True, False])
def test_rows_come_in_the_order_of_the_cases_and_the_mode_is_kept(mode: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, targets = torch.rand(7, 1, 2, 2), torch.arange(7.0)[:, None]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    loader = [(images[part], targets[part], part) for part in order.split(3)]
    logits, found = predict_logits(model, loader, torch.device("cpu"))
    assert model.training is mode
    assert logits.dtype == np.float64 and torch.equal(found, targets)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    np.testing.assert_allclose(logits, model.eval()(images).detach().numpy(), atol=1e-6)
