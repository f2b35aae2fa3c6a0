"""Bottleneck ResNets, 2-D and 3-D, and their initialization."""

from medopt.models.bottleneck import BottleneckLayer
from medopt.models.initialization import initialize
from medopt.models.resnet import build_model, build_resnet

__all__ = ["BottleneckLayer", "build_model", "build_resnet", "initialize"]
