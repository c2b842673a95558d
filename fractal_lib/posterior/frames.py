"""A pandas frame as `Observations`."""

from typing import Any

import numpy as np

from fractal_lib.checks import as_positive
from fractal_lib.posterior.observations import Observations

__all__ = ["observations_from_frame"]

UNITS = {"D": "D", "h": "h", "min": "m", "s": "s"}  # pandas' names, and numpy's


def observations_from_frame(
    frame: Any,
    *,
    by: str | None = None,
    unit: str = "D",
    duration: float | None = None,
) -> Observations:
    """One frame with a time index as observations: a column is a channel, NaN is missing.

    Args:
        frame: pandas DataFrame or Series; its index holds the times, dates or numbers, in any
            order, with any gaps.
        by: name of a column that says which series a row belongs to; default one series. Each
            series begins at its own first row.
        unit: of the time that the prior counts in, as pandas has it: "D", "h", "min", "s". Numbers
            are taken as they are.
        duration: T in that unit; default that of the longest series.

    Returns:
        `Observations` with times of their own, float64, the series in the order of ``by``.

    Raises:
        TypeError: for what is no frame of numbers. ValueError: for a column that is not there, a
            unit that pandas does not know, or what `Observations` refuses.

    Complexity: O(rows log rows). Source: chapter ``posterior/irregular``.

    >>> from fractal_lib.checks import optional
    >>> pd = optional("pandas", "this example")
    >>> days = pd.to_datetime(["2001-01-01", "2001-01-02", "2001-01-05"])
    >>> frame = pd.DataFrame({"a": [1.0, 2.0, float("nan")], "b": [0.5, 0.25, 0.0]}, index=days)
    >>> data = observations_from_frame(frame)
    >>> data.times.tolist(), data.observed.tolist()
    ([[0.0, 1.0, 4.0]], [[[True, True], [True, True], [False, True]]])
    """
    if not hasattr(frame, "index") or not hasattr(frame, "to_numpy"):
        raise TypeError(f"expected a pandas frame, got {type(frame).__name__}")
    frame = frame.to_frame() if frame.ndim == 1 else frame
    if by is not None and by not in frame.columns:
        raise ValueError(f"expected by as one of the columns {[*frame.columns]}, got {by!r}")
    groups = [frame] if by is None else [part for _, part in frame.groupby(by, sort=False)]
    values, times = [], []
    for part in groups:
        part = part if by is None else part.drop(columns=by)
        try:
            values.append(part.to_numpy(dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise TypeError(f"expected columns of numbers, got {error}") from error
        times.append(_elapsed(part.index, unit))
    observed = [~np.isnan(part) for part in values]
    # a duration of 0 has no meaning: one row alone stands at 0 of 1
    longest = max(float(part.max()) for part in times) or 1.0
    duration = longest if duration is None else as_positive(duration, "duration")
    return Observations(values, times, observed, duration)


def _elapsed(index: Any, unit: str) -> np.ndarray:
    """Time since the first row, float64."""
    if getattr(index, "tz", None) is not None:  # of a time zone: all in one
        index = index.tz_convert("UTC").tz_localize(None)
    stamps = index.to_numpy()
    if not len(stamps):
        raise ValueError("expected a series with rows, got an empty frame")
    if stamps.dtype.kind == "M":
        if unit not in UNITS:
            raise ValueError(f"expected unit as one of {[*UNITS]}, got {unit!r}")
        elapsed = (stamps - stamps.min()) / np.timedelta64(1, UNITS[unit])
    elif stamps.dtype.kind in "iuf":
        elapsed = stamps.astype(np.float64) - stamps.min()
    else:
        raise TypeError(f"expected an index of dates or numbers, got {stamps.dtype}")
    if not np.isfinite(elapsed).all():
        raise ValueError("expected a time for every row, got an index where some are missing")
    return elapsed
