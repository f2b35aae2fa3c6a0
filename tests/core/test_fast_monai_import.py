"""The fast `import monai` leaves out what a command does not need, and everything can follow."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEAN = """
import sys
from medopt.core import fast_monai_import
fast_monai_import.install()
fast_monai_import.install()
import medopt.release.predictor, medopt.serving.batch
early = {"mlflow", "pandas", "ignite", "sklearn", "matplotlib", "nibabel", "monai.transforms.intensity", "scipy.signal"}
assert not early & set(sys.modules), early & set(sys.modules)
"""
# What MONAI is asked for afterwards, each as the first thing in a process.
LATER = {
    "packages it was barred from": """
import pandas, mlflow, ignite, matplotlib
assert pandas.DataFrame and mlflow.__version__ and ignite.__version__ and matplotlib.__version__
""",
    "names of transforms": """
from monai.transforms import Compose, RandAffined, Resize
from monai.transforms.compose import Compose as same
from monai.data import CacheDataset, reorient_spatial_axes
import numpy
assert reorient_spatial_axes((2, 2), numpy.eye(3), numpy.eye(3))[1].shape == (3, 3)
from monai.apps import MedNISTDataset
assert Compose is same and type(medopt.transforms.prepare.Transform) is type(Resize)
assert issubclass(Resize, medopt.transforms.prepare.Transform)
""",
    "submodules without an import": """
import monai
assert monai.networks.nets.ResNet and monai.losses.DiceLoss and monai.transforms.Spacing
""",
    "a bundle, Grad-CAM and handlers": """
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.handlers import MLFlowHandler
from monai.visualize import GradCAM
assert GradCAM and SupervisedTrainer.run and MLFlowHandler
net = ConfigParser({"net": {"_target_": "monai.networks.nets.UNet", "spatial_dims": 2, "in_channels": 1,
    "out_channels": 2, "channels": [4, 8], "strides": [2]}}).get_parsed_content("net")
assert type(net).__module__ == "monai.networks.nets.unet"
""",
    "a name that does not exist": """
import monai
for module, name in ((monai, "nosuch"), (sys.modules["monai.data"], "nosuch")):
    try:
        getattr(module, name)
    except AttributeError as error:
        assert "has no attribute 'nosuch'" in str(error)
    else:
        raise AssertionError(module)
""",
}


@pytest.mark.parametrize("what", LATER)
def test_serving_imports_no_more_than_it_needs_and_the_rest_can_follow(what: str) -> None:
    script = LEAN + LATER[what]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
