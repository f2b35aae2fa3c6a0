"""`import monai` in a fraction of the time: its packages are loaded when a name in them is first used.

MONAI 1.6 imports all its modules at `import monai`, and with them what it finds of some thirty other packages: ignite,
mlflow, transformers, fastapi. medopt uses six names of it. Nothing is taken away: any name of MONAI can be imported
afterwards, and is then loaded by MONAI's own code.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

# Packages whose __init__ runs at the first use of a name. They import each other in a circle, which closes only when
# `monai.data` is the first; the names beside them are found without that.
_LAZY: dict[str, dict[str, str]] = {
    "monai.apps": {},
    "monai.data": {},
    "monai.transforms": {"Compose": "compose", "Randomizable": "transform", "Transform": "transform"},
}
_FIRST = "monai.data"
# What the first modules look for at their own import. monai.utils has another way where ignite is not there; the others
# come back when they are used.
_NOT_NEEDED = (
    "ignite",
    "matplotlib",
    "mlflow",
    "nibabel",
    "optuna",
    "pandas",
    "ray",
    "sklearn",
    "tensorboard",
    "transformers",
)
_lock = RLock()


def install() -> None:
    """Let the next `import monai` of this process be the fast one. Without effect where MONAI is imported already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds `monai` and the lazy packages in it, each with MONAI's own loader inside another one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "monai" and fullname not in _LAZY:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _MonaiLoader(spec.loader) if fullname == "monai" else _LazyLoader(spec.loader)
        return spec


class _MonaiLoader(Loader):
    """Runs MONAI's __init__, which then finds no modules to load; they are loaded by name, later."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def exec_module(self, module: ModuleType) -> None:
        with _barred(_NOT_NEEDED), _no_walk():
            self._loader.exec_module(module)
            importlib.import_module("monai.transforms.compose")
        utils: Any = importlib.import_module("monai.data.utils")
        utils.nib, utils.pd = _Deferred("nibabel"), _Deferred("pandas")
        module.__getattr__ = _attribute  # type: ignore[method-assign]  # PEP 562


class _LazyLoader(Loader):
    """Leaves a package empty until a name is asked for that is no module in it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LazyPackage(spec.name, self._loader)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet: `_LazyPackage` does so."""


class _LazyPackage(ModuleType):
    """A package of MONAI whose __init__ has not run yet."""

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name)
        self.__dict__["_loader"] = loader

    def __getattr__(self, name: str) -> Any:
        """Called for names that are not there yet."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        if module := _LAZY[self.__name__].get(name):
            return getattr(importlib.import_module(f"{self.__name__}.{module}"), name)
        with _lock:
            _load(_FIRST)
            _load(self.__name__)
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Deferred(ModuleType):
    """A package that is imported when a name in it is used."""

    def __getattr__(self, name: str) -> Any:
        """Called for every name, since none is kept."""
        return getattr(importlib.import_module(self.__name__), name)


def _load(name: str) -> None:
    """Run the __init__ of a lazy package, once."""
    package = importlib.import_module(name)
    loader = package.__dict__.pop("_loader", None)
    if loader is not None:
        loader.exec_module(package)


def _attribute(name: str) -> Any:
    """`monai.networks` without an import of it: who writes so needs all modules loaded, as `import monai` does it."""
    monai = sys.modules["monai"]
    if name not in monai.__all__ or "utils" not in monai.__dict__:
        raise AttributeError(f"module 'monai' has no attribute {name!r}")
    del monai.__getattr__
    with _barred(_NOT_NEEDED):
        for every_file in (False, True):
            monai.utils.module.load_submodules(monai, every_file, exclude_pattern=monai.excludes)
    return importlib.import_module(f"monai.{name}")


@contextmanager
def _barred(names: Sequence[str]) -> Iterator[None]:
    """As if these packages were not installed; those that are imported already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: there is no such module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _no_walk() -> Iterator[None]:
    """MONAI's loading of all its modules finds none."""
    walk = pkgutil.walk_packages
    pkgutil.walk_packages = lambda *_args, **_kwargs: iter(())
    try:
        yield
    finally:
        pkgutil.walk_packages = walk
        if module := sys.modules.get("monai.utils.module"):
            module.walk_packages = walk  # type: ignore[attr-defined]
