"""What pyproject.toml cannot say: the studies and manifests at the root of a clone go into the wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"pipelines": ("*.yaml",), "data_manifests": ("*.csv", "*.yaml")}
"""Folder of the clone, which becomes medopt/_shipped/<folder> in the wheel: its files."""


class BuildWithStudies(build_py):
    """Copies the files of SHIPPED beside the modules; an editable installation reads them where they lie."""

    def _shipped(self) -> list[Path]:
        return sorted(path for folder, names in SHIPPED.items() for name in names for path in Path(folder).glob(name))

    def _target(self, source: Path) -> Path:
        return Path(self.build_lib, "medopt", "_shipped", source)

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        for source in [] if self.editable_mode else self._shipped():
            self.mkpath(str(self._target(source).parent))
            self.copy_file(str(source), str(self._target(source)), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """Also what a source distribution holds."""
        return [*super().get_source_files(), *map(str, self._shipped())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Also the copies."""
        return [*super().get_outputs(include_bytecode), *(str(self._target(path)) for path in self._shipped())]


setup(cmdclass={"build_py": BuildWithStudies})
