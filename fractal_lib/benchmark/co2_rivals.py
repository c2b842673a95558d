"""What the latent SDE has to beat on Mauna Loa's carbon dioxide: three rivals on the same split, in
ppm.

    python benchmarks/co2_rivals.py --json benchmarks/results/co2-rivals.json

A straight line between the learnt weeks, a structural model smoothed by Kalman's equations, and a
Gaussian process with a kernel made for this record. Each learns from the weeks that `co2_split`
leaves, and is judged on the others.
"""

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ExpSineSquared, RationalQuadratic, WhiteKernel
from statsmodels.tsa.statespace.structural import UnobservedComponents

from fractal_lib.benchmark.machine import describe, load_average
from fractal_lib.benchmark.tasks import co2_split
from fractal_lib.inference.metrics import scores

YEAR = 365.25 / 7  # in weeks


def linear(values, learnt):
    """A line between neighbours; spread: rms error at learnt weeks, the weeks as near as the
    nearest left out.
    """
    weeks, known = np.arange(len(values)), np.flatnonzero(learnt)
    mean = np.interp(weeks, known, values[known])
    after = np.searchsorted(known, weeks)
    around = np.stack(
        [known[np.clip(after - 1, 0, None)], known[np.clip(after, None, len(known) - 1)]]
    )
    distance = np.maximum(np.abs(around - weeks).min(0), 1)
    spread = np.array([_left_out(values, known, d) for d in range(1, distance.max() + 1)])
    return mean, spread[distance - 1], {"spread_by_distance_ppm": spread.round(4).tolist()}


def _left_out(values, known, distance):
    """Rms error at the learnt weeks when those nearer than ``distance`` weeks are not used."""
    left, right = (
        np.searchsorted(known, known - distance, "right") - 1,
        np.searchsorted(known, known + distance),
    )
    inside = (left >= 0) & (right < len(known))
    here, a, b = known[inside], known[left[inside]], known[right[inside]]
    line = values[a] + (values[b] - values[a]) * (here - a) / (b - a)
    return np.sqrt(np.mean((values[here] - line) ** 2))


def structural(values, learnt):
    """A local linear trend, a season of four harmonics that may drift, and noise; variances by
    maximum likelihood.
    """
    season = [{"period": YEAR, "harmonics": 4}]
    model = UnobservedComponents(
        np.where(learnt, values, np.nan), "local linear trend", freq_seasonal=season
    )
    fit = model.fit(disp=False, maxiter=500, cov_type="none")
    if not fit.mle_retvals["converged"]:  # the line search gave up: go on without gradients
        fit = model.fit(fit.params, method="powell", disp=False, maxiter=500, cov_type="none")
    design = model["design"][0]  # (K,)
    signal = design @ fit.smoothed_state
    variance = np.einsum("i,ijt,j->t", design, fit.smoothed_state_cov, design)
    estimates = dict(zip(model.param_names, fit.params.tolist(), strict=True))
    spread = np.sqrt(variance + estimates["sigma2.irregular"])
    return signal, spread, {"converged": bool(fit.mle_retvals["converged"]), "estimates": estimates}


def process(values, learnt):
    """The kernel of Rasmussen and Williams (2006), section 5.4.3, fitted from its start alone,
    without restarts.

    It is fitted on every second learnt week, for time; the predictions are conditioned on all of
    them.
    """
    years, known = np.arange(len(values))[:, None] / YEAR, np.flatnonzero(learnt)
    kernel = (
        50.0**2 * RBF(50.0)
        + 2.0**2 * RBF(100.0) * ExpSineSquared(1.0, 1.0, periodicity_bounds="fixed")
        + 0.5**2 * RationalQuadratic(alpha=1.0, length_scale=1.0)
        + 0.1**2 * RBF(0.1)
        + WhiteKernel(0.1**2, (1e-5, 1e5))
    )
    centre, some = values[known].mean(), known[::2]
    fitted = GaussianProcessRegressor(kernel).fit(years[some], values[some] - centre).kernel_
    regressor = GaussianProcessRegressor(fitted, optimizer=None).fit(
        years[known], values[known] - centre
    )
    mean, spread = regressor.predict(years, return_std=True)  # the white kernel's noise is in it
    return mean + centre, spread, {"weeks_fitted_on": len(some), "kernel": str(fitted)}


RIVALS = {
    "linear interpolation": linear,
    "structural model": structural,
    "Gaussian process": process,
}


def judge(name, seed):
    series, learnt, scattered, year = co2_split(seed)
    hidden = np.where(learnt, series.values, np.nan)  # a rival never sees what it is judged by
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mean, spread, more = RIVALS[name](hidden, learnt)
    result = {"rival": name, "seed": seed}
    result |= {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }
    report = {
        part: scores(mean[rows], spread[rows], series.values[rows])
        for part, rows in {"scattered": scattered, "year": year}.items()
    }
    said = sorted({f"{one.category.__name__}: {one.message}" for one in caught})
    return result | {"report": report, "warnings": said} | more


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the split")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the runs there")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    record = describe("cpu", 1) | {"unit": "ppm", "seeds": settings.seeds, "runs": []}
    record["versions"] |= {name: version(name) for name in ("statsmodels", "scikit-learn")}
    for name in RIVALS:
        for seed in settings.seeds:
            run = judge(name, seed)
            record["runs"].append(run)
            print(
                f"{name}, seed {seed}: {run['cpu_s']} CPU seconds; {'; '.join(run['warnings']) or 'no warnings'}"
            )
            for part, result in run["report"].items():
                print(
                    f"    {part:10}",
                    "  ".join(f"{key} {value:.4f}" for key, value in result.items()),
                    flush=True,
                )
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(
            json.dumps(record | {"load_average_after": load_average()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
