"""medopt: from a study's scans to a probability back in the PACS, every step measured.

The names in `__all__` are the public interface; each is documented with shapes, units, errors and an example. They are
imported when they are first used: `import medopt` itself imports nothing and changes nothing.

>>> import medopt
>>> manifest = medopt.draw_study("phantom-data/phantom", patients=30)  # radiographs of fictional patients
>>> volume = medopt.read_scan(manifest.parent / "images/site_a/phantom-a001_1.dcm")
>>> network = medopt.build_resnet(depth=50, spatial_dims=2, channels=1, outputs=2)
"""

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from medopt import metrics as metrics
    from medopt.api import run as run
    from medopt.config import Study as Study
    from medopt.config.study_file import load_study as load_study
    from medopt.core.errors import MedoptError as MedoptError
    from medopt.core.records import Case as Case
    from medopt.core.records import Volume as Volume
    from medopt.data.prepared_set import PreparedSet as PreparedSet
    from medopt.imaging import read_scan as read_scan
    from medopt.manifest.table import read_manifest as read_manifest
    from medopt.models import build_resnet as build_resnet
    from medopt.phantom import draw_study as draw_study
    from medopt.release.predictor import load_release as load_release
    from medopt.transforms.prepare import PrepareChain as PrepareChain

__version__ = "0.2.0.dev0"
__all__ = [
    "Case",
    "MedoptError",
    "PrepareChain",
    "PreparedSet",
    "Study",
    "Volume",
    "build_resnet",
    "draw_study",
    "load_release",
    "load_study",
    "metrics",
    "read_manifest",
    "read_scan",
    "run",
]
_MODULES = {
    "Case": "medopt.core.records",
    "MedoptError": "medopt.core.errors",
    "PrepareChain": "medopt.transforms.prepare",
    "PreparedSet": "medopt.data.prepared_set",
    "Study": "medopt.config",
    "Volume": "medopt.core.records",
    "build_resnet": "medopt.models",
    "draw_study": "medopt.phantom",
    "load_release": "medopt.release.predictor",
    "load_study": "medopt.config.study_file",
    "metrics": "medopt.metrics",
    "read_manifest": "medopt.manifest.table",
    "read_scan": "medopt.imaging",
    "run": "medopt.api",
}

if not TYPE_CHECKING:  # a type checker knows the names from above, and reports any other

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module 'medopt' has no attribute {name!r}")
        from importlib import import_module

        try:
            module = import_module(_MODULES[name])
        except ModuleNotFoundError as error:
            from medopt.core.extras import extra_for

            if extra := extra_for(error.name or ""):
                error.add_note(f"medopt.{name} needs {error.name}: pip install 'medopt[{extra}]'")
            raise
        value = module if module.__name__ == f"medopt.{name}" else getattr(module, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
