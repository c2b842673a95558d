"""A record of blood glucose by a sensor under the skin: 200 days, every five minutes but for the
gaps; and the motorcycle's accelerations, whose times are irregular altogether.
"""

from importlib.resources import files
from typing import NamedTuple

import numpy as np

from fractal_lib.checks import as_int, as_positive, optional
from fractal_lib.data.co2 import Series, holdout
from fractal_lib.data.stretches import holdout_stretches

__all__ = ["IrregularSeries", "glucose", "glucose_split", "motorcycle", "resample"]

STRETCHES: dict[float, int] = {12: 16, 3: 40, 1: 80}  # hours, and how many are held out
MARGIN = 1.0  # hours without a gap on either side of one
SCATTERED = 0.1


class IrregularSeries(NamedTuple):
    """A series at times of its own, every one of them observed.

    Attributes:
        values: (n,) float64.
        times: (n,) float64, from the first in the unit ``time_unit``; sorted, repeats allowed.
        dates: (n,) datetime64[s], the times as they were written down; None if none were.
        unit: what ``values`` counts.
        time_unit: what ``times`` counts.
    """

    values: np.ndarray
    times: np.ndarray
    dates: np.ndarray | None
    unit: str
    time_unit: str


def glucose() -> IrregularSeries:
    """Glucose of one person from 24 March to 10 October 2010, by a continuous glucose monitor.

    The exact times, to the minute. 51 697 of the 52 280 steps are of five minutes; 175 are longer
    than a quarter of an hour, the longest 28 hours; three times occur twice; and for some hours
    steps of one and of four minutes alternate, with values some units apart. Values are whole
    numbers from 40 to 400. `resample` puts it on a grid.

    Returns:
        `IrregularSeries` of 52 281 readings in mg/dl, times in hours.

    Raises:
        ImportError: if bokeh_sampledata, which carries the data, or pandas is not installed.

    Source: ``bokeh_sampledata.glucose``; "supplied directly to a Bokeh maintainer by a personal
    acquaintance as public-domain data". Complexity: O(n).

    >>> record = glucose()
    >>> len(record.values), record.times[-1].round(1), record.unit
    (52281, np.float64(4814.1), 'mg/dl')
    >>> int((np.diff(record.times) > 0.25).sum()), int((np.diff(record.times) == 0).sum())
    (175, 3)
    """
    frame = optional("bokeh_sampledata.glucose", "glucose()").data
    dates = frame.index.to_numpy().astype("datetime64[s]")
    order = np.argsort(dates, kind="stable")
    dates = dates[order]
    values = frame["glucose"].to_numpy(dtype=np.float64)[order]
    times = (dates - dates[0]).astype(np.int64) / 3600
    return IrregularSeries(values, times, dates, "mg/dl", "hours")


def motorcycle() -> IrregularSeries:
    """Acceleration of a dummy's head in a simulated motorcycle accident: irregular times, with
    repeats, and noise that changes.

    Returns:
        `IrregularSeries` of 133 readings in g, times in milliseconds from the first, which is 2.4
        ms after the impact; no dates.

    Raises:
        ImportError: if statsmodels, which carries the data, is not installed.
        FileNotFoundError: if that version of statsmodels came without its tests.

    Source: B. W. Silverman (1985), Some aspects of the spline smoothing approach to non-parametric
    regression curve fitting; as kept in ``statsmodels/gam/tests/results/motorcycle.csv``.
    Complexity: O(n).

    >>> record = motorcycle()
    >>> len(record.values), len(np.unique(record.times)), record.times[-1].round(1)
    (133, 94, np.float64(55.2))
    """
    optional("statsmodels", "motorcycle()")
    path = files("statsmodels") / "gam" / "tests" / "results" / "motorcycle.csv"
    if not path.is_file():
        raise FileNotFoundError(f"expected the record in statsmodels, got no file at {path}")
    lines = path.read_text().splitlines()[1:]
    times, values = np.array([line.split(",") for line in lines], dtype=np.float64).T.copy()
    return IrregularSeries(values, times - times[0], None, "g", "ms")


def resample(record: IrregularSeries, step: float, origin: float = 0.0) -> Series:
    """An irregular series on an even grid: the mean of the readings nearest to each row.

    Args:
        record: whose dates, if there are any, the grid's follow.
        step: between two rows, in the record's unit of time.
        origin: time of the first row; readings more than half a step before it are left out.

    Returns:
        `Series`, NaN in a row to which no reading is nearest; its dates are datetime64[s], without
        dates in the record NaT.

    Raises:
        TypeError, ValueError: for a step that is not a positive number.

    Complexity: O(n + rows).

    >>> grid = resample(glucose(), 1 / 12)
    >>> grid.values.shape, int(grid.observed.sum()), print(grid.dates[1])
    2010-03-24T09:56:00
    ((57770,), 52083, None)
    """
    step = as_positive(step, "step")
    rows = np.floor((record.times - origin) / step + 0.5).astype(np.int64)
    inside = rows >= 0
    rows, values = rows[inside], record.values[inside]
    if not len(rows):
        raise ValueError(f"expected an origin before the last reading, got {origin}")
    n = int(rows.max()) + 1
    counts = np.bincount(rows, minlength=n)
    sums = np.bincount(rows, values, minlength=n)
    mean = np.full(n, np.nan)
    np.divide(sums, counts, out=mean, where=counts > 0)
    dates = np.full(n, "NaT", "datetime64[s]")
    if record.dates is not None:
        span = float((record.dates[-1] - record.dates[0]).astype(np.int64))
        seconds = span / record.times[-1] if record.times[-1] else 0.0  # in a unit of time
        dates = record.dates[0] + np.rint((origin + np.arange(n) * step) * seconds).astype("m8[s]")
    return Series(mean, counts > 0, dates, np.linspace(0.0, 1.0, n), record.unit)


def glucose_split(seed: int = 0) -> tuple[IrregularSeries, np.ndarray, dict[str, np.ndarray]]:
    """The readings to train on, and those held out: one by one, and stretches of 1, 3 and 12 hours.

    Everything that is compared on this record uses this split: 80, 40 and 16 stretches, with no gap
    within an hour of them, and a tenth of the other readings.

    Returns:
        the record; (n,) bool, which to train on; and by name (n,) bool, which to be judged by. No
        reading is in two of them.

    Raises:
        ImportError: as `glucose`.

    >>> record, train, parts = glucose_split()
    >>> int(train.sum()), {name: int(part.sum()) for name, part in parts.items()}["scattered"]
    (42812, 4757)
    """
    record, seed = glucose(), as_int(seed, "seed", least=0)
    every = np.ones(len(record.times), bool)
    hidden = holdout_stretches(record.times, STRETCHES, seed, largest_step=0.25, margin=MARGIN)
    inside = np.any(list(hidden.values()), axis=0)
    scattered, _ = holdout(every, SCATTERED, seed, inside)
    named = {f"{hours} h": rows for hours, rows in sorted(hidden.items())}
    return record, ~inside & ~scattered, {"scattered": scattered, **named}
