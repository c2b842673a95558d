"""Forecasts of carbon dioxide and of glucose by a latent SDE, and those that it has to beat: the
last value, an autoregression, a structural model.

Parameters are fitted to the rows before the first origin, once. From every origin on, a forecast
knows the rows up to it and no other; it is judged by the observed rows after it, at every horizon
for itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fractal_lib.benchmark.co2_rivals import YEAR
from fractal_lib.benchmark.forecast_sde import sde_forecasts
from fractal_lib.benchmark.glucose_rivals import autoregression_model
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.rivals import Predicted, judge, print_run, structural_model
from fractal_lib.checks import as_int
from fractal_lib.data.co2 import co2
from fractal_lib.data.glucose import glucose, resample
from fractal_lib.progress import progress_bar

__all__ = [
    "RIVALS",
    "TASKS",
    "ForecastTask",
    "co2_forecasts",
    "forecast_rivals",
    "glucose_forecasts",
]


@dataclass(frozen=True)
class ForecastTask:
    """A series, where forecasts of it begin, and how far they go.

    Attributes:
        values: (n,) float64 on an even grid, NaN where nothing was observed.
        origins: (O,) int64, sorted: the last row that a forecast knows; observed.
        horizon: rows to forecast after each.
        horizons: rows ahead that are scored for themselves, by name.
        season: period in rows, a year or a day.
        grows: whether it has a trend.
        unit: of the values.
    """

    values: np.ndarray
    origins: np.ndarray
    horizon: int
    horizons: dict[str, int]
    season: float
    grows: bool
    unit: str

    @property
    def truth(self) -> np.ndarray:
        """(O, horizon), NaN where nothing was observed."""
        return self.values[self.origins[:, None] + np.arange(1, self.horizon + 1)]

    def parts(self) -> dict[str, np.ndarray]:
        """By name (O, horizon) bool, what is judged: every horizon of `horizons`, and all."""
        there = np.isfinite(self.truth)
        ahead = np.arange(1, self.horizon + 1)
        parts = {name: there & (ahead == rows) for name, rows in self.horizons.items()}
        return parts | {"all": there}


def co2_forecasts(origins: int = 24) -> ForecastTask:
    """Carbon dioxide 1 to 104 weeks ahead, from origins half a year apart, the first in 1988.

    >>> task = co2_forecasts()
    >>> task.truth.shape, int(task.origins[-1] + task.horizon) < len(task.values)
    ((24, 104), True)
    """
    series, origins = co2(), as_int(origins, "origins", least=1, most=24)
    first = int(np.searchsorted(series.dates, np.datetime64("1988-01-01")))
    known = np.flatnonzero(series.observed)
    wanted = first + np.rint(np.arange(origins) * YEAR / 2).astype(int)
    at = known[np.searchsorted(known, wanted, "right") - 1]  # the last observed week before
    horizons = {f"{weeks} weeks": weeks for weeks in (1, 4, 13, 26, 52, 104)}
    return ForecastTask(series.values, at, 104, horizons, YEAR, True, series.unit)


def glucose_forecasts(origins: int = 500, seed: int = 0) -> ForecastTask:
    """Glucose up to two hours ahead, on a grid of five minutes, from random origins in the last
    two fifths of the record; the hour before an origin and the two after have no gap.

    >>> task = glucose_forecasts()
    >>> task.truth.shape, bool(np.isfinite(task.truth).all())
    ((500, 24), True)
    """
    origins, seed = as_int(origins, "origins", least=1), as_int(seed, "seed", least=0)
    series = resample(glucose(), 1 / 12)
    n, total = len(series.values), np.concatenate([[0], np.cumsum(series.observed)])
    rows = np.arange(3 * n // 5, n - 24)
    whole = total[rows + 25] - total[rows - 12] == 37
    at = np.random.default_rng(seed).choice(rows[whole], origins, replace=False)
    horizons = {f"{5 * rows} min": rows for rows in (1, 3, 6, 12, 24)}
    return ForecastTask(series.values, np.sort(at), 24, horizons, 288.0, False, series.unit)


def last_value(task: ForecastTask) -> Predicted:
    """It stays as it is; standard deviation: rms change over as many rows, before the first
    origin.
    """
    before = task.values[: task.origins[0] + 1]
    changes = [before[h:] - before[:-h] for h in range(1, task.horizon + 1)]
    std = np.sqrt([np.nanmean(change**2) for change in changes])
    mean = np.repeat(task.values[task.origins][:, None], task.horizon, 1)
    return mean, np.broadcast_to(std, mean.shape), {"spread_by_horizon": std.round(4).tolist()}


def last_season(task: ForecastTask) -> Predicted:
    """As a season before, and as much more as the last value is more than then; standard
    deviation: its rms error before the first origin.
    """
    period = round(task.season)
    filled = _filled(task.values)
    ahead = np.arange(1, task.horizon + 1)
    # the same phase, in the last whole season before the origin
    back = ahead - period * np.ceil(ahead / period).astype(int)
    seasons = np.ceil(ahead / period)

    def forecast(origins: np.ndarray) -> np.ndarray:
        now = filled[origins][:, None]
        growth = now - filled[origins - period][:, None]
        return filled[origins[:, None] + back] + seasons * growth

    trial = np.arange(period, task.origins[0] + 1 - task.horizon)
    trial = trial[np.isfinite(task.values[trial])]
    errors = task.values[trial[:, None] + ahead] - forecast(trial)
    std = np.sqrt(np.nanmean(errors**2, 0))
    mean = forecast(task.origins)
    return mean, np.broadcast_to(std, mean.shape), {"spread_by_horizon": std.round(4).tolist()}


def course_of(task: ForecastTask) -> np.ndarray:
    """(n,) a season of four harmonics, and where the series grows a parabola, fitted to the rows
    before the first origin.
    """
    n, end = len(task.values), int(task.origins[0]) + 1
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(1, 5)) / task.season
    columns = [*np.sin(angle).T, *np.cos(angle).T, np.ones(n)]
    if task.grows:
        columns += [np.arange(n) / n, (np.arange(n) / n) ** 2]
    regressors = np.stack(columns, 1)
    there = np.isfinite(task.values[:end])
    weights = np.linalg.lstsq(regressors[:end][there], task.values[:end][there], rcond=None)[0]
    return regressors @ weights


def autoregression(task: ForecastTask) -> Predicted:
    """Of order three about a season of four harmonics; where the series grows, of its differences,
    about the mean growth too.
    """
    course, end = course_of(task), int(task.origins[0]) + 1
    whole, some = (
        autoregression_model(part, differences=int(task.grows))
        for part in (task.values - course, (task.values - course)[:end])
    )
    return _state_space(task, whole, some, course)


def structural(task: ForecastTask) -> Predicted:
    """A local linear trend and noise; where the series grows, a season of four harmonics too, that
    may drift.
    """
    more: dict[str, Any] = {}
    if task.grows:
        more = {"freq_seasonal": [{"period": task.season, "harmonics": 4}]}
    whole, some = (
        structural_model(part, "local linear trend", **more)
        for part in (task.values, task.values[: task.origins[0] + 1])
    )
    return _state_space(task, whole, some, 0.0)


def latent_sde(task: ForecastTask) -> Predicted:
    """Without recurrence, `sde_forecasts`: where the series grows, of what its course leaves above
    the last value; else of its logarithm.
    """
    n = len(task.values)
    if not task.grows:
        series = np.log(task.values)
        centres = np.full(n, np.nanmean(series[: task.origins[0] + 1]))
        paths, more = sde_forecasts(series, centres, task.origins, task.horizon)
        paths = np.exp(paths)
    else:
        course = course_of(task)
        series = task.values - course
        paths, more = sde_forecasts(series, series, task.origins, task.horizon)
        ahead = task.origins[:, None] + np.arange(1, task.horizon + 1)
        paths = paths + course[ahead][:, None]
    return paths.mean(1), paths.std(1), more


def _state_space(task: ForecastTask, model: Any, fitted: Any, course: Any) -> Predicted:
    """Forecasts from the filter's states at the origins: one pass for all of them.

    Args:
        model: of the whole series; its filter at a row knows the rows up to it.
        fitted: the same of the rows before the first origin, where the parameters come from.
        course: (n,) or 0, what was taken away.
    """
    fit = fitted.fit(disp=False, maxiter=500, cov_type="none")
    found = model.filter(fit.params, cov_type="none")
    design, transition, selection = (
        np.asarray(model[name]).reshape(model[name].shape[:2])
        for name in ("design", "transition", "selection")
    )
    kicks = selection @ np.asarray(model["state_cov"]).reshape((selection.shape[1],) * 2)
    kicks = kicks @ selection.T
    estimates = dict(zip(model.param_names, fit.params.tolist(), strict=True))
    noise = estimates.get("sigma2.irregular", estimates.get("var.measurement_error", 0.0))
    state = found.filtered_state[:, task.origins].T  # (O, K)
    cov = found.filtered_state_cov[:, :, task.origins].transpose(2, 0, 1)  # (O, K, K)
    means, variances = [], []
    for _ in range(task.horizon):
        state, cov = state @ transition.T, transition @ cov @ transition.T + kicks
        means.append((state @ design.T)[:, 0])
        variances.append((design @ cov @ design.T)[:, 0, 0] + noise)
    ahead = task.origins[:, None] + np.arange(1, task.horizon + 1)
    mean = np.stack(means, 1) + np.broadcast_to(course, len(task.values))[ahead]
    more = {"converged": bool(fit.mle_retvals["converged"]), "estimates": estimates}
    return mean, np.sqrt(np.maximum(np.stack(variances, 1), 1e-12)), more


def _filled(values: np.ndarray) -> np.ndarray:
    """Gaps by the last value before them: no forecast may know what comes after."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), 0))
    return values[last]


TASKS: dict[str, Callable[[], ForecastTask]] = {"co2": co2_forecasts, "glucose": glucose_forecasts}
RIVALS: dict[str, Callable[[ForecastTask], Predicted]] = {
    "last value": last_value,
    "last season": last_season,
    "autoregression": autoregression,
    "structural model": structural,
    "latent SDE": latent_sde,
}


@case(
    "forecast-rivals",
    records="forecast-rivals",
    choices={"tasks": list(TASKS), "only": list(RIVALS)},
    packages=("statsmodels", "bokeh_sampledata"),
)
def forecast_rivals(
    tasks: Sequence[str] = tuple(TASKS),
    only: Sequence[str] | None = None,
    origins: int | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Forecast carbon dioxide and glucose by the last value, a season, an autoregression, a
    structural model and a latent SDE.

    Args:
        tasks: names in `TASKS`.
        only: these rivals alone.
        origins: of the forecasts, instead of the task's own number.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs`` so far, in each task's unit: for each task and rival a ``report`` of `scores` by
        horizon and of all, seconds by the wall and CPU seconds, and what the rival says of itself.

    Raises:
        ImportError: if statsmodels or bokeh_sampledata is missing.

    Source: chapter ``posterior/irregular``.
    """
    runs, todo = [], [(task, name) for task in tasks for name in only or RIVALS]
    with progress_bar(len(todo), "forecast-rivals", progress) as step:
        for name, rival in todo:
            make: Callable[..., ForecastTask] = TASKS[name]
            task = make() if origins is None else make(origins)
            run = {"task": name, "rival": rival, "unit": task.unit, "origins": len(task.origins)}
            run |= judge(partial(RIVALS[rival], task), task.truth, task.parts())
            print_run(f"{name}, {rival}", run)
            runs.append(run)
            step(f"{name}, {rival}")
            yield {"tasks": list(tasks), "runs": runs}
