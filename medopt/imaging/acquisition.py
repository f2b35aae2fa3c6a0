"""How a scan was acquired, as far as its file says: what subgroups and the release's domain are told by."""

from __future__ import annotations

from dataclasses import dataclass

from medopt.core.records import Volume

AGE_BANDS = ((18, "below 18"), (40, "18 to 39"), (65, "40 to 64"), (200, "65 and older"))
"""First age that is no longer in the band, and the band's name."""
SIZES = ((128, "below 128"), (256, "128 to 255"), (512, "256 to 511"), (1024, "512 to 1023"), (2048, "1024 to 2047"))
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "o": "other", "other": "other"}


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What identifies no one and may change a score. A text that the file does not give is empty.

    `spacing_mm` and `shape` follow the spatial axes of the scan as it was read; no spacing is said to be unknown by an
    empty tuple. `age` is in whole years, `scanner` maker and model.
    """

    modality: str
    scanner: str
    view: str
    sex: str
    age: str
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, volume: Volume) -> Acquisition:
        """The facts of a scan."""
        source = volume.source
        known = not source.get("spacing", "").startswith("unknown")
        return cls(
            modality=volume.modality,
            scanner=" ".join(filter(None, (source.get("manufacturer", ""), source.get("model", "")))),
            view=source.get("view", ""),
            sex=source.get("sex", ""),
            age=source.get("age", ""),
            spacing_mm=tuple(round(float(step), 4) for step in volume.spacing_mm) if known else (),
            shape=volume.array.shape[1:],
        )

    def groups(self) -> dict[str, str]:
        """Which groups the scan belongs to; what is not known is empty."""
        return {
            "sex": sex(self.sex),
            "age": age_band(self.age),
            "scanner": self.scanner,
            "view": self.view,
            "image size": _size_band(self.shape),
        }


def sex(text: str) -> str:
    """In a common word what a header or a table calls a sex; empty where it is none."""
    return SEXES.get(text.strip().lower(), "")


def age_band(text: str) -> str:
    """The band of an age in years; empty where it is none."""
    try:
        years = float(text.strip().upper().removesuffix("Y"))
    except ValueError:
        return ""
    return next((name for end, name in AGE_BANDS if 0 <= years < end), "")


def _size_band(shape: tuple[int, ...]) -> str:
    """By the shorter side of an image (of a slice, in a volume), in pixels."""
    side = min(shape[-2:], default=0)
    return next((f"{name} px" for end, name in SIZES if side < end), "2048 px and more")
