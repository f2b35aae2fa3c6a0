"""What only serves does not wait for the import of what only training needs, and may import it afterwards."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from medopt.core.fast_monai_import import import_lean_monai
import_lean_monai()
import medopt.release.predictor, medopt.serving.batch
early = [name for name in ("mlflow", "pandas", "ignite", "sklearn", "matplotlib") if name in sys.modules]
assert not early, early
import pandas, mlflow, matplotlib
assert pandas.DataFrame and mlflow.__version__ and matplotlib.__version__
import_lean_monai()
"""


def test_serving_imports_no_more_than_it_needs_and_the_rest_can_follow() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
