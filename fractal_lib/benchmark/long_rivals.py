"""What the latent SDE has to beat on the long Lorenz series: three rivals, judged by the path
without its noise.

A straight line between the observed rows; a local linear trend in each coordinate and an
autoregression of all three, which know nothing of the process; and a smoother that is given the
equations, the noise and the standardisation, which nobody has on real data. Each runs in a process
of its own, so that its peak of memory is its own.

The last runs twice, with one pass and with three: its Gaussian is a poor one across a long hole,
and one bad hole can be most of the mean square. Three were chosen in sight of the truth, on the
first 20 000 rows of the same path.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch

from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.peak import high_water_mb
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.rivals import (
    SHORT,
    Predicted,
    distances,
    hole_lengths,
    judge,
    left_out_mse,
    print_run,
    structural_model,
)
from fractal_lib.data.simulate import Simulation, long_lorenz
from fractal_lib.inference.autoregression import fit_autoregression, smooth_autoregression
from fractal_lib.inference.extended import gaussian_smoother, lorenz_moments
from fractal_lib.progress import progress_bar

__all__ = ["RIVALS", "long_rivals"]

NOISE, INNER = 0.3, 25  # what long_lorenz takes
FITTED = 5000  # rows the variances of the trend are fitted on
ORDER = 4  # of the autoregression


def linear(values: np.ndarray, observed: np.ndarray, simulation: Simulation) -> Predicted:
    """A line between neighbours; standard deviation: rms error against the noiseless path at
    observed rows, the rows as near as the nearest left out.

    What is seen at an observed row is that error and the row's own noise, whose variance is taken
    away. What is left is taken to be no less than what the mean of two noisy rows has.
    """
    rows, known = np.arange(len(values)), np.flatnonzero(observed)
    mean = np.stack([np.interp(rows, known, column[known]) for column in values.T], 1)
    distance = distances(known, len(values))
    # an observed row is its own prediction
    variances = [np.full(values.shape[1], NOISE**2)]
    for d in range(1, distance.max() + 1):
        left = left_out_mse(values, known, d) - NOISE**2
        variances.append(np.maximum(left, NOISE**2 / 2))
    std = np.sqrt(variances)
    return mean, std[distance], {"spread_by_distance": std.round(4).tolist()}


def trend(values: np.ndarray, observed: np.ndarray, simulation: Simulation) -> Predicted:
    """A local linear trend and noise in each coordinate, variances by maximum likelihood on the
    first rows.
    """
    means, stds, estimates = [], [], []
    for column in np.where(observed[:, None], values, np.nan).T:
        some = structural_model(column[:FITTED], "local linear trend")
        level = (
            structural_model(column[:FITTED], "local level").fit(disp=False, cov_type="none").params
        )
        # from statsmodels' own start it may end below a trend that never changes
        starts = None, [*level, 1e-6]
        fits = [some.fit(start, disp=False, maxiter=500, cov_type="none") for start in starts]
        fit = max(fits, key=lambda one: one.llf)
        smoothed = structural_model(column, "local linear trend").smooth(
            fit.params, cov_type="none"
        )
        means.append(smoothed.smoothed_state[0])
        stds.append(np.sqrt(smoothed.smoothed_state_cov[0, 0]))
        estimates.append(dict(zip(some.param_names, fit.params.tolist(), strict=True)))
        estimates[-1] |= {
            "converged": bool(fit.mle_retvals["converged"]),
            "log_likelihood": float(fit.llf),
        }
    return (
        np.stack(means, 1),
        np.stack(stds, 1),
        {"rows_fitted_on": FITTED, "estimates": estimates},
    )


def autoregression(values: np.ndarray, observed: np.ndarray, simulation: Simulation) -> Predicted:
    """Each row a linear function of the last `ORDER` and process noise, observed with noise: about
    the best linear smoother. Matrices and noise by maximum likelihood on all rows.
    """
    model = fit_autoregression(values, observed, ORDER)
    smooth = smooth_autoregression(model, values, observed)
    more = {
        "order": ORDER,
        "rows_fitted_on": len(values),
        "converged": model.converged,
        "passes": len(model.log_likelihoods),
        "log_likelihoods": model.log_likelihoods,
        "noise_std": np.sqrt(model.noise).tolist(),
    }
    return smooth.mean[0], smooth.std[0], more


def equations(
    values: np.ndarray, observed: np.ndarray, simulation: Simulation, passes: int = 1
) -> Predicted:
    """`gaussian_smoother` with all that the simulator knew but the path and its noise."""
    centre, scale = simulation.mean.numpy(), simulation.std.numpy()
    dt = float(simulation.times[-1]) / (len(values) - 1)
    raw = values * scale + centre
    start = centre, np.diag(scale**2)
    mean, cov = gaussian_smoother(
        lorenz_moments, raw, observed, NOISE * scale, dt, INNER, *start, passes
    )
    std = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    return (mean - centre) / scale, std / scale, {"inner": INNER, "passes": passes}


RIVALS: dict[str, Callable[[np.ndarray, np.ndarray, Simulation], Predicted]] = {
    "linear interpolation": linear,
    "local linear trend": trend,
    "vector autoregression": autoregression,
    "the true equations": equations,
    "the true equations, three passes": partial(equations, passes=3),
}


def _run(name: str, n: int, isolated: bool) -> dict:
    """One rival; its peak of memory only where it has the process to itself."""
    if isolated:
        torch.set_num_threads(1)
    simulation, observed = long_lorenz(n, NOISE)
    there, truth = observed.numpy(), simulation.latent[0].numpy()
    values = np.where(there[:, None], simulation.observed[0].numpy(), np.nan)
    holes = hole_lengths(there)
    parts = {"missing": ~there, "observed": there}
    parts |= {"short holes": (holes > 0) & (holes <= SHORT), "long holes": holes > SHORT}
    before = high_water_mb() if isolated else None
    found = judge(partial(RIVALS[name], values, there, simulation), truth, parts)
    after = high_water_mb() if isolated else None
    report = {part: {"rows": int(parts[part].sum())} | s for part, s in found["report"].items()}
    run = {"rival": name, "memory_before_mb": before, "peak_memory_mb": after}
    return run | found | {"report": report}


@case(
    "long-rivals",
    records="long-rivals",
    choices={"only": list(RIVALS)},
    packages=("statsmodels",),
)
def long_rivals(
    n: int = 100_000,
    only: Sequence[str] | None = None,
    isolated: bool = True,
    progress: bool = True,
) -> Iterator[dict]:
    """Find the missing rows of a long Lorenz series by a line, two linear models and the equations.

    Args:
        n: rows of the series.
        only: these rivals alone.
        isolated: each in a process of its own, so that its peak of memory is its own; else it is
            not recorded.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs`` so far, in standard deviations of a coordinate: for each rival a ``report`` of
        `scores` by part, seconds by the wall and CPU seconds, peak memory in MB, and what the rival
        says of itself.

    Raises:
        ImportError: if statsmodels is missing.

    Source: chapter ``posterior/long_series``.
    """
    positive(n=n)
    runs, todo = [], list(only or RIVALS)
    with progress_bar(len(todo), "long-rivals", progress) as step:
        for name in todo:
            if isolated:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    run = pool.submit(_run, name, n, True).result()
            else:
                run = _run(name, n, False)
            print_run(name, run)
            if isolated:
                print(f"    peak {run['peak_memory_mb']} MB ({run['memory_before_mb']} before)")
            runs.append(run)
            step(name)
            yield {"n": n, "unit": "sd of a coordinate", "runs": runs}
