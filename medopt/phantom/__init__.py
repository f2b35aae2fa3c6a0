"""The embedded study: radiographs of fictional patients, drawn because no labelled real data may be shipped."""

from medopt.phantom.radiograph_dicom import Radiograph, write_radiograph
from medopt.phantom.study import draw_case, draw_study

__all__ = ["Radiograph", "draw_case", "draw_study", "write_radiograph"]
