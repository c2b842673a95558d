"""Real series and pictures that ship inside installed packages, and simulators: nothing here
downloads anything.
"""

from fractal_lib.data.co2 import Series, co2, co2_split, holdout
from fractal_lib.data.glucose import IrregularSeries, glucose, glucose_split, motorcycle, resample
from fractal_lib.data.images import digits, elevation, mri
from fractal_lib.data.irregular import IrregularSimulation, irregular, irregular_lorenz
from fractal_lib.data.mocap import Mocap, mocap
from fractal_lib.data.simulate import (
    Simulation,
    bursts,
    double_well,
    long_lorenz,
    lorenz,
    ornstein_uhlenbeck,
)
from fractal_lib.data.stretches import holdout_stretches
from fractal_lib.inference.metrics import scores

__all__ = [
    "IrregularSeries",
    "IrregularSimulation",
    "Mocap",
    "Series",
    "Simulation",
    "bursts",
    "co2",
    "co2_split",
    "digits",
    "double_well",
    "elevation",
    "glucose",
    "glucose_split",
    "holdout",
    "holdout_stretches",
    "irregular",
    "irregular_lorenz",
    "long_lorenz",
    "lorenz",
    "mocap",
    "motorcycle",
    "mri",
    "ornstein_uhlenbeck",
    "resample",
    "scores",
]
