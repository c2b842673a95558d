"""What the latent SDE has to beat on Mauna Loa's carbon dioxide: four rivals on the same split, in
ppm.

A straight line between the weeks of training, a structural model smoothed by Kalman's equations,
and two Gaussian processes, one with a kernel made for this record and one whose cost is linear in
the rows. Each is fitted to the weeks that `co2_split` leaves, and is judged on the others; eight
years in turn are held out as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from fractal_lib.data.co2 import HIDDEN_YEARS, co2_split
from fractal_lib.progress import progress_bar

__all__ = ["RIVALS", "co2_rivals"]

YEAR = 365.25 / 7  # in weeks


def linear(values: np.ndarray, train: np.ndarray) -> Predicted:
    """A line between neighbours; standard deviation: rms error at weeks of training, the weeks as
    near as the nearest left out.
    """
    weeks, known = np.arange(len(values)), np.flatnonzero(train)
    mean = np.interp(weeks, known, values[known])
    distance = np.maximum(distances(known, len(values)), 1)
    every = range(1, distance.max() + 1)
    std = np.sqrt([left_out_mse(values[:, None], known, d)[0] for d in every])
    return mean, std[distance - 1], {"spread_by_distance_ppm": std.round(4).tolist()}


def structural(values: np.ndarray, train: np.ndarray) -> Predicted:
    """A local linear trend, a season of four harmonics that may drift, and noise; variances by
    maximum likelihood.
    """
    season = [{"period": YEAR, "harmonics": 4}]
    model = structural_model(
        np.where(train, values, np.nan), "local linear trend", freq_seasonal=season
    )
    fit = model.fit(disp=False, maxiter=500, cov_type="none")
    if not fit.mle_retvals["converged"]:  # the line search gave up: go on without gradients
        fit = model.fit(fit.params, method="powell", disp=False, maxiter=500, cov_type="none")
    design = model["design"][0]  # (K,)
    signal = design @ fit.smoothed_state
    variance = np.einsum("i,ijt,j->t", design, fit.smoothed_state_cov, design)
    estimates = dict(zip(model.param_names, fit.params.tolist(), strict=True))
    std = np.sqrt(variance + estimates["sigma2.irregular"])
    return signal, std, {"converged": bool(fit.mle_retvals["converged"]), "estimates": estimates}


def process(values: np.ndarray, train: np.ndarray) -> Predicted:
    """The kernel of Rasmussen and Williams (2006), section 5.4.3, fitted from its start alone,
    without restarts.

    It is fitted on every second week of training, for time; the predictions are conditioned on all
    of them.
    """
    gp = optional("sklearn.gaussian_process", "this rival")
    from sklearn.gaussian_process.kernels import RBF, ExpSineSquared, RationalQuadratic, WhiteKernel

    years, known = np.arange(len(values))[:, None] / YEAR, np.flatnonzero(train)
    kernel = (
        50.0**2 * RBF(50.0)
        + 2.0**2 * RBF(100.0) * ExpSineSquared(1.0, 1.0, periodicity_bounds="fixed")
        + 0.5**2 * RationalQuadratic(alpha=1.0, length_scale=1.0)
        + 0.1**2 * RBF(0.1)
        + WhiteKernel(0.1**2, (1e-5, 1e5))
    )
    centre, some = values[known].mean(), known[::2]
    fitted = gp.GaussianProcessRegressor(kernel).fit(years[some], values[some] - centre).kernel_
    regressor = gp.GaussianProcessRegressor(fitted, optimizer=None).fit(
        years[known], values[known] - centre
    )
    mean, std = regressor.predict(years, return_std=True)  # the white kernel's noise is in it
    return mean + centre, std, {"weeks_fitted_on": len(some), "kernel": str(fitted)}


RIVALS: dict[str, Callable[[np.ndarray, np.ndarray], Predicted]] = {
    "linear interpolation": linear,
    "structural model": structural,
    "Gaussian process": process,
    "celerite2": celerite_rivals.carbon_dioxide,
}


@case(
    "co2-rivals",
    records="co2-rivals",
    choices={"only": list(RIVALS)},
    packages=("statsmodels", "scikit-learn"),
)
def co2_rivals(
    seeds: Sequence[int] = (0, 1, 2),
    years: Sequence[int] = HIDDEN_YEARS,
    only: Sequence[str] | None = None,
    weeks: int | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Predict the held-out weeks of carbon dioxide by a line, a structural model and two
    Gaussian processes.

    Args:
        seeds: of the split.
        years: that are held out as a whole, one in a run.
        only: these rivals alone.
        weeks: the last of the record alone, instead of all.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs`` so far, in ppm: for each rival, year and seed a ``report`` of `scores` by part,
        seconds by the wall and CPU seconds, and what the rival says of itself; of one from outside
        that is not installed, a ``note`` that says so.

    Raises:
        ImportError: if statsmodels or scikit-learn is missing.

    Source: chapter ``posterior/real_series``.
    """
    names = only or RIVALS
    runs, todo = [], [(name, year, seed) for name in names for year in years for seed in seeds]
    with progress_bar(len(todo), "co2-rivals", progress) as step:
        for name, year, seed in todo:
            series, train, scattered, stretch = co2_split(seed, year)
            last = slice(None if weeks is None else -weeks, None)
            # a rival never sees what it is judged by
            seen = np.where(train, series.values, np.nan)[last]
            predict = partial(RIVALS[name], seen, train[last])
            parts = {"scattered": scattered[last], "year": stretch[last]}
            run = {"rival": name, "year": year, "seed": seed}
            why_not = missing(name)
            run |= {"note": why_not} if why_not else judge(predict, series.values[last], parts)
            print_run(f"{name}, {year}, seed {seed}", run)
            runs.append(run)
            step(name)
            made = {"unit": "ppm", "seeds": list(seeds), "years": list(years), "runs": runs}
            yield made | {"versions": outside_versions(names)}
