"""Real series and pictures that ship inside installed packages: nothing here downloads anything."""

from fractal_lib.data.co2 import Series, co2, holdout
from fractal_lib.data.images import digits, elevation, mri

__all__ = ["Series", "co2", "digits", "elevation", "holdout", "mri"]
