"""Settings of tiles: refused where they do not go together, and absent from every digest where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from medopt.config import Study

Make = Callable[..., Study]


@pytest.mark.parametrize(
    ("words", "size", "model", "more"),
    [
        ("model.tile is missing", [64, 64], {"pooling": "mean"}, {}),
        ("tile is read with pooling: mean, attention or top_k; here it is none", [64, 64], {"tile": [32, 32]}, {}),
        ("top_k is read with pooling: top_k", [64, 64], {"pooling": "mean", "tile": [32, 32], "top_k": 3}, {}),
        ("model.slices is of volumes", [64, 64], {"pooling": "mean", "tile": [32, 32], "slices": 3}, {}),
        ("whole slices are seen", [8, 64, 64], {"pooling": "mean", "tile": [32, 32]}, {}),
        ("whole slices are seen", [8, 64, 64], {"pooling": "mean", "global_view": True}, {}),
        ("is one; take less at once", [64, 64], {"pooling": "mean", "tile": [64, 64], "global_view": True}, {}),
        ("is one; take less at once", [8, 64, 64], {"pooling": "mean", "slices": 8}, {}),
        ("model.top_k is 5, but an image has only 4", [64, 64], {"pooling": "top_k", "tile": [32, 32], "top_k": 5}, {}),
        ("ranks by one output", [64, 64], {"pooling": "top_k", "tile": [32, 32]},
         {"data": {"labels": ["a", "b", "c"], "task": "multiclass"}}),
        ("top_k does not go with a start", [64, 64], {"pooling": "top_k", "tile": [32, 32], "start": "a.pth"}, {}),
        ("top_k does not go with a start", [64, 64], {"pooling": "top_k", "tile": [32, 32], "head": "every_depth"}, {}),
        ("attention is not trained with", [64, 64], {"pooling": "attention", "tile": [32, 32], "start": "a.pth"}, {}),
        ("training.compile does not go", [64, 64], {"pooling": "mean", "tile": [32, 32]},
         {"training": {"compile": True}}),
        ("multiple of 32", [64, 64], {"pooling": "mean", "tile": [40, 32]}, {}),
        ("3 numbers; the network has 2 axes", [8, 64, 64], {"pooling": "mean", "strides": [[1, 2, 2]] * 5}, {}),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(
    words: str, size: list[int], model: dict[str, Any], more: dict[str, Any], tiny_study: Make
) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny_study(prepare={"size": size}, model=model, **more)


def test_what_the_network_sees(tiny_study: Make) -> None:
    whole = tiny_study(prepare={"size": [64, 96]}).network_input
    assert (whole.channels, whole.size, whole.count, whole.dims) == (1, (64, 96), 1, 2)
    model = {"pooling": "attention", "tile": [64, 32], "global_view": True}
    seen = tiny_study(prepare={"size": [100, 96], "channels": 3}, model=model).network_input
    assert (seen.channels, seen.size, seen.count, seen.at_once) == (3, (64, 32), 2 * 3 + 1, 2048)
    volume = {"size": [10, 96, 80], "spacing_mm": [5, 1, 0.5]}
    seen = tiny_study(prepare=volume, model={"pooling": "mean", "slices": 3}).network_input
    assert (seen.channels, seen.size, seen.spacing_mm, seen.count) == (3, (96, 80), (1, 0.5), 4)


def test_a_network_of_whole_images_has_the_settings_and_digests_of_before(tiny_study: Make) -> None:
    plain = tiny_study()
    assert "pooling" not in plain.model_dump()["model"] and "tile" not in plain.model_dump(mode="json")["model"]
    assert plain.training_digest() == "dd5889c2ca9ea8b416e2d7e7af5107b3179d537e8c9f8320c022542e1876d9f7"
    tiled = tiny_study(prepare={"size": [64, 64]}, model={"pooling": "mean", "tile": [32, 32]})
    again = Study.model_validate(tiled.model_dump(mode="json"))
    assert again == tiled and again.model.tile == [32, 32]
    larger = tiny_study(prepare={"size": [64, 64]}, model={"pooling": "mean", "tile": [32, 64]})
    assert larger.training_digest() != tiled.training_digest()
