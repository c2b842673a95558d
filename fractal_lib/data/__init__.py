"""Real series that ship inside installed packages: nothing here downloads anything."""

from fractal_lib.data.co2 import Series, co2, holdout

__all__ = ["Series", "co2", "holdout"]
