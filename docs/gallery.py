"""Draw docs/pictures/augmentations.png and corruptions.png: one drawn radiograph after each change, with its parameter.

python docs/gallery.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medopt.config import Augment, Prepare
from medopt.phantom import draw_study
from medopt.transforms.augment import apply, draw
from medopt.transforms.corrupt import FAMILIES, LEVELS, corrupt
from medopt.transforms.prepare import PrepareChain

SIDE, TEXT, COLUMNS = 160, 20, 5
OFF = {"flip": [], "rotate_degrees": 0, "scale": 0, "translate": 0, "gamma": 0, "contrast": 0, "brightness": 0}
OFF |= {"gaussian_noise": 0}
EFFECTS: list[dict[str, object]] = [
    {}, {"flip": ["left_right"]}, {"rotate_degrees": 20}, {"scale": 0.3}, {"shear": 0.3}, {"translate": 0.2},
    {"elastic": 0.05}, {"gamma": 0.8}, {"contrast": 0.5}, {"brightness": 0.3}, {"gaussian_noise": 0.1},
    {"rician_noise": 0.1}, {"photons": 50}, {"blur_pixels": 2}, {"low_resolution": 4}, {"bias_field": 0.6},
    {"erase": 0.4}, {"shift": "radiograph"}, {"shift": "mr"}, {"shift": "ultrasound"},
]  # fmt: skip


def name_of(effect: dict[str, object]) -> str:
    """As a study file has it."""
    return ", ".join(f"{key}: {value}" for key, value in effect.items()).replace("'", "") or "none"


def strongest(image: Tensor, effect: dict[str, object]) -> Tensor:
    """The image after the draw, of a few, that changes it most: strengths are maxima."""
    config = Augment.model_validate({**OFF, **effect, "probability": 1, "shift_probability": 1})
    drawn = [draw(config, 2, np.random.default_rng(seed)) for seed in range(12)]
    changed = apply(image[None].repeat(len(drawn), 1, 1, 1), drawn)
    return changed[int((changed - image).abs().flatten(1).mean(1).argmax())]


def sheet(tiles: list[tuple[str, Tensor]], path: Path) -> None:
    """Images (1, H, W) with their names over them, as one picture of few colours."""
    rows = -(-len(tiles) // COLUMNS)
    page = Image.new("L", (COLUMNS * (SIDE + 8), rows * (SIDE + TEXT + 8)), 255)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for at, (name, image) in enumerate(tiles):
        left, top = at % COLUMNS * (SIDE + 8), at // COLUMNS * (SIDE + TEXT + 8)
        pen.text((left + 2, top + 2), name, fill=0, font=font)
        page.paste(Image.fromarray((255 * image[0].numpy()).astype(np.uint8)), (left, top + TEXT))
    page.quantize(48).save(path, optimize=True)


def main() -> None:
    """Draw both sheets."""
    pictures = Path(__file__).parent / "pictures"
    with TemporaryDirectory() as folder:
        draw_study(Path(folder), patients=30)
        scan = sorted((Path(folder) / "images").rglob("*.dcm"))[0]
        image = torch.as_tensor(PrepareChain(Prepare(size=[SIDE, SIDE]))(scan))
    sheet([(name_of(effect), strongest(image, effect)) for effect in EFFECTS], pictures / "augmentations.png")
    tiles = [
        (f"{family}, level {level}", corrupt(image, family, level, "gallery"))
        for family in FAMILIES
        for level in range(1, LEVELS + 1)
    ]
    sheet(tiles, pictures / "corruptions.png")


if __name__ == "__main__":
    main()
