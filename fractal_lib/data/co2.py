"""The weekly carbon dioxide record of Mauna Loa, and how the book holds parts of a series out."""

from typing import Any, NamedTuple

import numpy as np

from fractal_lib.checks import as_int, optional
from fractal_lib.inference.series import as_array, as_flags

__all__ = ["HIDDEN_YEARS", "Series", "co2", "co2_split", "holdout"]

HIDDEN_YEARS = 1965, 1968, 1976, 1980, 1985, 1992, 1996, 1999
"""Of the carbon dioxide record: one at a time is held out, so that no single year decides."""


class Series(NamedTuple):
    """A series on an even grid of times, with gaps.

    Attributes:
        values: (n,) float64, NaN where nothing was observed.
        observed: (n,) bool.
        dates: (n,) datetime64, of days or of seconds.
        t: (n,) float64, the same times scaled to [0, 1]: row j at j / (n - 1).
        unit: what ``values`` counts.
    """

    values: np.ndarray
    observed: np.ndarray
    dates: np.ndarray
    t: np.ndarray
    unit: str


def co2() -> Series:
    """Carbon dioxide in the air at Mauna Loa, Hawaii, every week from 29 March 1958 to 29 December
    2001.

    Returns:
        `Series` of 2284 weeks in ppmv, parts per million by volume; 59 of them are missing.

    Raises:
        ImportError: if statsmodels, which carries the data, is not installed.

    Source: C. D. Keeling and T. P. Whorf (2004), Atmospheric CO2 concentrations derived from flask
    air samples at sites in the SIO network, in Trends: A Compendium of Data on Global Change,
    Carbon Dioxide Information Analysis Center, Oak Ridge National Laboratory. Public domain, as
    kept by ``statsmodels.datasets.co2``. Complexity: O(n).

    >>> series = co2()
    >>> series.values.shape, int((~series.observed).sum())
    ((2284,), 59)
    >>> print(series.dates[0], series.values[0], series.unit)
    1958-03-29 316.1 ppmv
    """
    source = optional("statsmodels.datasets.co2", "co2()")
    frame = source.load_pandas().data
    values = frame["co2"].to_numpy(dtype=np.float64)
    dates = frame.index.to_numpy().astype("datetime64[D]")
    return Series(values, ~np.isnan(values), dates, np.linspace(0.0, 1.0, len(values)), "ppmv")


def holdout(
    observed: Any, fraction: float, seed: int, gap: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out scattered rows and, if asked, one whole stretch: two tests of different difficulty.

    Arrays, tensors, lists and pandas series are taken alike.

    Args:
        observed: (n,) bool, True for the rows that have a value.
        fraction: of the observed rows outside the gap to scatter, in [0, 1); rounded to whole rows.
        seed: of numpy's generator.
        gap: a slice, or (n,) bool: the stretch that is held out as a whole.

    Returns:
        (n,) bool each: ``scattered``, and ``stretch``, all false without a gap. The two never
        overlap and hold observed rows only; what is left to learn from is
        ``observed & ~scattered & ~stretch``.

    Raises:
        TypeError: if ``observed`` or ``gap`` is not bool.
        ValueError: if ``fraction`` is outside [0, 1) or a shape is not (n,).

    Complexity: O(n).

    >>> series = co2()
    >>> year = series.dates.astype("datetime64[Y]") == np.datetime64("1985")
    >>> scattered, stretch = holdout(series.observed, fraction=0.1, seed=0, gap=year)
    >>> int(scattered.sum()), int(stretch.sum())
    (217, 51)
    """
    observed, seed = as_flags(observed), as_int(seed, "seed", least=0)
    if observed.ndim != 1:
        raise ValueError(f"expected observed as (n,) bool, got shape {observed.shape}")
    fraction = float(as_array(fraction, "fraction"))
    if not 0 <= fraction < 1:
        raise ValueError(f"expected fraction in [0, 1), got {fraction}")
    inside = np.zeros_like(observed)
    if isinstance(gap, slice):
        inside[gap] = True
    elif gap is not None:
        inside = as_flags(gap, "gap")
        if inside.shape != observed.shape:
            raise ValueError(f"expected gap as {observed.shape} bool, got shape {inside.shape}")
    stretch = observed & inside
    candidates = np.flatnonzero(observed & ~inside)
    scattered = np.zeros_like(observed)
    count = round(fraction * len(candidates))
    chosen = np.random.default_rng(seed).choice(candidates, count, replace=False)
    scattered[chosen] = True
    return scattered, stretch


def co2_split(seed: int = 0, year: int = 1985) -> tuple[Series, np.ndarray, np.ndarray, np.ndarray]:
    """Mauna Loa's weeks: the series, and which are trained on, held out one by one, and held out
    as a whole year.

    Everything that is compared on this record uses this split: 30 % of the weeks, and one year, of
    `HIDDEN_YEARS` in turn where an average is reported.

    Args:
        seed: of numpy's generator.
        year: from 1958 to 2001.

    Returns:
        the series, and three masks (n,) bool, of observed weeks; no week is in two of them.

    Raises:
        ImportError: as `co2`. ValueError: for a year that the record does not have.

    >>> series, train, scattered, year = co2_split()
    >>> int(train.sum()), int(scattered.sum()), int(year.sum())
    (1522, 652, 51)
    """
    series, year = co2(), as_int(year, "year", least=1958, most=2001)
    inside = series.dates.astype("datetime64[Y]") == np.datetime64(str(year))
    scattered, stretch = holdout(series.observed, 0.3, seed, inside)
    return series, series.observed & ~scattered & ~stretch, scattered, stretch
