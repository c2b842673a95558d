"""What the latent SDE has to beat on the record of glucose: five rivals on one split, in mg/dl.

A straight line between the readings of training, at their exact times; a local linear trend, and an
autoregression about a mean, both smoothed by Kalman's equations on a grid of five minutes and read
between its rows; and a Gaussian process at the exact times, whose cost is linear in the rows. Each
is fitted to all readings that `glucose_split` leaves, and is judged on the others: those held out
one by one, and stretches of 1, 3 and 12 hours.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fractal_lib.benchmark import celerite_rivals
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.rivals import (
    Predicted,
    distances,
    judge,
    left_out_mse,
    missing,
    outside_versions,
    print_run,
    structural_model,
)
from fractal_lib.checks import optional
from fractal_lib.data.glucose import IrregularSeries, glucose_split, resample
from fractal_lib.progress import progress_bar

__all__ = ["RIVALS", "STEP", "autoregression_model", "glucose_rivals", "on_grid"]

STEP = 1 / 12  # hours between two rows of the grid
DAY = 288  # in rows
ORDER, HARMONICS = 3, 3  # of the autoregression, and of the day's mean course


def on_grid(record: IrregularSeries, kept: np.ndarray) -> np.ndarray:
    """(n,) the readings that are kept, on a grid that all of them decide; NaN where none is."""
    n = len(resample(record, STEP).values)
    parts = [part[kept] for part in (record.values, record.times)]
    some = resample(record._replace(values=parts[0], times=parts[1], dates=None), STEP).values
    return np.pad(some, (0, n - len(some)), constant_values=np.nan)


def linear(record: IrregularSeries, train: np.ndarray) -> Predicted:
    """A line between neighbours at their exact times; standard deviation: rms error at readings of
    training, those as near as the nearest left out, on the grid.
    """
    times, values = record.times[train], record.values[train]
    mean = np.interp(record.times, times, values)
    grid = on_grid(record, train)
    known = np.flatnonzero(np.isfinite(grid))
    rows = np.floor(record.times / STEP + 0.5).astype(int)
    distance = np.maximum(distances(known, len(grid))[rows], 1)
    every = range(1, distance.max() + 1)
    std = np.sqrt([left_out_mse(grid[:, None], known, d)[0] for d in every])
    return mean, std[distance - 1], {"spread_by_distance": std.round(4).tolist()}


def structural(record: IrregularSeries, train: np.ndarray) -> Predicted:
    """A local linear trend and noise, variances by maximum likelihood on all rows."""
    return _smoothed(structural_model(on_grid(record, train), "local linear trend"), record)


def autoregression_model(
    grid: np.ndarray, season: np.ndarray | None = None, differences: int = 0
) -> Any:
    """Of order `ORDER`, of the series or its differences, about zero or what is linear in
    ``season`` (n, K), observed with noise; by statsmodels.
    """
    sarimax = optional("statsmodels.tsa.statespace.sarimax", "this rival").SARIMAX
    return sarimax(grid, exog=season, order=(ORDER, differences, 0), measurement_error=True)


def autoregression(record: IrregularSeries, train: np.ndarray) -> Predicted:
    """An autoregression about the mean, by maximum likelihood on all rows."""
    grid = on_grid(record, train)
    centre = np.nanmean(grid)
    mean, std, more = _smoothed(autoregression_model(grid - centre), record)
    return mean + centre, std, more


def daily(record: IrregularSeries, train: np.ndarray) -> Predicted:
    """The same about a mean course of the day, `HARMONICS` waves of it."""
    grid = on_grid(record, train)
    angle = 2 * np.pi * np.outer(np.arange(len(grid)), np.arange(1, HARMONICS + 1)) / DAY
    season, centre = np.concatenate([np.sin(angle), np.cos(angle)], 1), np.nanmean(grid)
    mean, std, more = _smoothed(autoregression_model(grid - centre, season), record)
    return mean + centre, std, more


def _smoothed(model: Any, record: IrregularSeries) -> Predicted:
    """Fit, smooth, and read between the rows of the grid; with the noise of a reading."""
    fit = model.fit(disp=False, maxiter=500, cov_type="none")
    # of an autoregression about a season the design is the lags', and the season an intercept
    design = model["design"][..., 0] if model["design"].ndim == 3 else model["design"]
    design = np.asarray(design).reshape(-1)
    intercept = np.asarray(model["obs_intercept"]).reshape(-1)
    signal = design @ fit.smoothed_state + (intercept if len(intercept) > 1 else 0.0)
    variance = np.einsum("i,ijt,j->t", design, fit.smoothed_state_cov, design)
    estimates = dict(zip(model.param_names, fit.params.tolist(), strict=True))
    noise = estimates.get("sigma2.irregular", estimates.get("var.measurement_error", 0.0))
    grid = np.arange(len(signal)) * STEP
    mean, variance = (np.interp(record.times, grid, part) for part in (signal, variance))
    std = np.sqrt(np.maximum(variance, 0.0) + max(noise, 0.01))  # readings are whole numbers
    return mean, std, {"converged": bool(fit.mle_retvals["converged"]), "estimates": estimates}


RIVALS: dict[str, Callable[[IrregularSeries, np.ndarray], Predicted]] = {
    "linear interpolation": linear,
    "structural model": structural,
    "autoregression": autoregression,
    "autoregression with a daily season": daily,
    "celerite2": celerite_rivals.glucose,
}


@case(
    "glucose-rivals",
    records="glucose-rivals",
    choices={"only": list(RIVALS)},
    packages=("statsmodels", "bokeh_sampledata"),
)
def glucose_rivals(
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] | None = None,
    readings: int | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Predict the held-out glucose by a line, a structural model, an autoregression and
    a Gaussian process.

    Args:
        seeds: of the split.
        only: these rivals alone.
        readings: the first of the record alone, instead of all.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs`` so far, in mg/dl: for each rival and seed a ``report`` of `scores` by part, by the
        length of what was hidden, seconds by the wall and CPU seconds, and what the rival says of
        itself; of one from outside that is not installed, a ``note`` that says so.

    Raises:
        ImportError: if statsmodels or bokeh_sampledata is missing.

    Source: chapter ``posterior/real_series``.
    """
    names = only or RIVALS
    runs, todo = [], [(name, seed) for name in names for seed in seeds]
    with progress_bar(len(todo), "glucose-rivals", progress) as step:
        for name, seed in todo:
            record, train, parts = glucose_split(seed)
            some = slice(readings)
            truth, train = record.values[some], train[some]
            # a rival never sees what it is judged by
            seen = record._replace(
                values=np.where(train, truth, np.nan),
                times=record.times[some],
                dates=None,
            )
            predict = partial(RIVALS[name], seen, train)
            run = {"rival": name, "seed": seed}
            why_not, part = missing(name), {k: rows[some] for k, rows in parts.items()}
            run |= {"note": why_not} if why_not else judge(predict, truth, part)
            print_run(f"{name}, seed {seed}", run)
            runs.append(run)
            step(name)
            more = {"versions": outside_versions(names)}
            yield {"unit": record.unit, "seeds": list(seeds), "runs": runs} | more
