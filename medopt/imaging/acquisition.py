"""How a scan was acquired, as far as its file says: the basis of subgroups and of the out-of-domain check."""

from __future__ import annotations

from dataclasses import dataclass

from medopt.core.records import Volume

AGE_BANDS = ((18, "below 18"), (40, "18 to 39"), (65, "40 to 64"), (200, "65 and older"))
"""(first age in years above the band, name of the band)."""
SIZE_BANDS = (
    (128, "below 128"),
    (256, "128 to 255"),
    (512, "256 to 511"),
    (1024, "512 to 1023"),
    (2048, "1024 to 2047"),
)
SEX_NAMES = {"m": "male", "male": "male", "f": "female", "female": "female", "o": "other", "other": "other"}


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Facts that identify nobody and may change a score. A text that the file does not give is empty.

    `spacing_mm` and `shape` (pixels) follow the spatial axes of the scan, (H, W) or (D, H, W); `spacing_mm` is empty
    where the file gives no spacing. `age` is in whole years; `scanner` is manufacturer and model.
    """

    modality: str
    scanner: str
    view: str
    sex: str
    age: str
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]

    @classmethod
    def from_volume(cls, volume: Volume) -> Acquisition:
        """The facts of a scan that was read."""
        source = volume.source
        return cls(
            modality=volume.modality,
            scanner=" ".join(filter(None, (source.get("manufacturer", ""), source.get("model", "")))),
            view=source.get("view", ""),
            sex=source.get("sex", ""),
            age=source.get("age", ""),
            spacing_mm=tuple(round(float(step), 4) for step in volume.spacing_mm) if volume.has_spacing else (),
            shape=volume.array.shape[1:],
        )

    def subgroups(self) -> dict[str, str]:
        """The subgroup of the scan for each variable; empty where it is unknown.

        >>> Acquisition("DX", "Acme X1", "PA", "F", "71", (0.2, 0.2), (2048, 1792)).subgroups()["age"]
        '65 and older'
        """
        return {
            "sex": sex_name(self.sex),
            "age": age_band(self.age),
            "scanner": self.scanner,
            "view": self.view,
            "image size": _size_band(self.shape),
        }


def sex_name(text: str) -> str:
    """`male`, `female` or `other` for what a header or a table says; empty for anything else."""
    return SEX_NAMES.get(text.strip().lower(), "")


def age_band(text: str) -> str:
    """The band of an age in years ("45", "045Y"); empty where the text is no age."""
    try:
        years = float(text.strip().upper().removesuffix("Y"))
    except ValueError:
        return ""
    return next((name for end, name in AGE_BANDS if 0 <= years < end), "")


def _size_band(shape: tuple[int, ...]) -> str:
    """By the shorter side of an image (in a volume: of a slice), in pixels."""
    side = min(shape[-2:], default=0)
    return next((f"{name} px" for end, name in SIZE_BANDS if side < end), "2048 px and more")
