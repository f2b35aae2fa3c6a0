"""How a scan was acquired, as far as its file says: what subgroups and the release's domain are told by."""

from __future__ import annotations

from dataclasses import dataclass

from medopt.records import Volume


@dataclass(frozen=True, slots=True)
class ScanFacts:
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
    def of(cls, volume: Volume) -> ScanFacts:
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
