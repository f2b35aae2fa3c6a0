"""The settings of a study file, one section each."""

from medopt.config.compression import Compression, EngineName, Gate, Profile, Pruning
from medopt.config.covariates import Covariate
from medopt.config.data import Data, Intensity, Prepare, SeriesFilter, SeriesRules
from medopt.config.evaluation import Domain, Evaluation, ShiftFamily
from medopt.config.model import FineTune, Model
from medopt.config.section import Section
from medopt.config.study import Study
from medopt.config.training import Augment, Optimizer, Schedule, Switch, Training

__all__ = [
    "Augment",
    "Compression",
    "Covariate",
    "Data",
    "Domain",
    "EngineName",
    "Evaluation",
    "FineTune",
    "Gate",
    "Intensity",
    "Model",
    "Optimizer",
    "Prepare",
    "Profile",
    "Pruning",
    "Schedule",
    "Section",
    "SeriesFilter",
    "SeriesRules",
    "ShiftFamily",
    "Study",
    "Switch",
    "Training",
]
