"""Real series and pictures that ship inside installed packages, and simulators: nothing here
downloads anything.
"""

from fractal_lib.data.co2 import Series, co2, holdout
from fractal_lib.data.images import digits, elevation, mri
from fractal_lib.data.simulate import (
    Simulation,
    bursts,
    double_well,
    long_lorenz,
    lorenz,
    ornstein_uhlenbeck,
)
from fractal_lib.inference.metrics import scores

__all__ = [
    "Series",
    "Simulation",
    "bursts",
    "co2",
    "digits",
    "double_well",
    "elevation",
    "holdout",
    "long_lorenz",
    "lorenz",
    "mri",
    "ornstein_uhlenbeck",
    "scores",
]
