"""What the latent SDE has to beat on the long Lorenz series: three rivals, judged by the path
without its noise.

    python benchmarks/long_rivals.py --json benchmarks/results/long-rivals.json

A straight line between the observed rows; a local linear trend in each coordinate and an
autoregression of all three, which know nothing of the process; and a smoother that is given the
equations, the noise and the standardisation, which nobody has on real data. Each runs in a process
of its own, so that its peak of memory is its own.

The last runs twice, with one pass and with three: its Gaussian is a poor one across a long hole,
and one bad hole can be most of the mean square. Three were chosen in sight of the truth, on the
first 20 000 rows of the same path.
"""

import argparse
import json
import resource
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from statsmodels.tsa.statespace.structural import UnobservedComponents

from fractal_lib.benchmark.machine import describe, load_average
from fractal_lib.data.simulate import long_lorenz
from fractal_lib.inference.extended import gaussian_smoother, lorenz_moments
from fractal_lib.inference.linear import kalman_smoother
from fractal_lib.inference.metrics import scores

NOISE, INNER = 0.3, 25  # what long_lorenz takes
SHORT = 16  # rows in a hole at most that is called short: 0.4 units of time, twice the mean
FITTED = 5000  # rows the variances of the trend are fitted on; twice as many for the autoregression
ORDER, ROUNDS = 4, 20  # of the autoregression


def linear(values, observed, simulation):
    """A line between neighbours; spread: rms error at observed rows, the rows as near as the
    nearest left out.
    """
    rows, known = np.arange(len(values)), np.flatnonzero(observed)
    mean = np.stack([np.interp(rows, known, column[known]) for column in values.T], 1)
    after = np.searchsorted(known, rows)
    around = np.stack(
        [known[np.clip(after - 1, 0, None)], known[np.clip(after, None, len(known) - 1)]]
    )
    distance = np.abs(around - rows).min(0)
    spread = np.stack([_left_out(values, known, d) for d in range(1, distance.max() + 1)])
    # an observed row is its own prediction
    spread = np.concatenate([np.full((1, values.shape[1]), NOISE), spread])
    return mean, spread[distance], {"spread_by_distance": spread.round(4).tolist()}


def _left_out(values, known, distance):
    """(C,) sd of the error against the noiseless path when the rows nearer than ``distance`` are
    not used.

    What is seen at an observed row is that error and the row's own noise, whose variance is taken
    away. What is left is held to be no less than what the mean of two noisy rows has.
    """
    left, right = (
        np.searchsorted(known, known - distance, "right") - 1,
        np.searchsorted(known, known + distance),
    )
    inside = (left >= 0) & (right < len(known))
    here, a, b = known[inside], known[left[inside]], known[right[inside]]
    line = values[a] + (values[b] - values[a]) * ((here - a) / (b - a))[:, None]
    return np.sqrt(np.maximum(((values[here] - line) ** 2).mean(0) - NOISE**2, NOISE**2 / 2))


def trend(values, observed, simulation):
    """A local linear trend and noise in each coordinate, variances by maximum likelihood on the
    first rows.
    """
    means, spreads, estimates = [], [], []
    for column in np.where(observed[:, None], values, np.nan).T:
        some = UnobservedComponents(column[:FITTED], "local linear trend")
        level = (
            UnobservedComponents(column[:FITTED], "local level")
            .fit(disp=False, cov_type="none")
            .params
        )
        # from statsmodels' own start it may end below a trend that never changes
        starts = None, [*level, 1e-6]
        fits = [some.fit(start, disp=False, maxiter=500, cov_type="none") for start in starts]
        fit = max(fits, key=lambda one: one.llf)
        smoothed = UnobservedComponents(column, "local linear trend").smooth(
            fit.params, cov_type="none"
        )
        means.append(smoothed.smoothed_state[0])
        spreads.append(np.sqrt(smoothed.smoothed_state_cov[0, 0]))
        estimates.append(dict(zip(some.param_names, fit.params.tolist(), strict=True)))
        estimates[-1] |= {
            "converged": bool(fit.mle_retvals["converged"]),
            "log_likelihood": float(fit.llf),
        }
    return (
        np.stack(means, 1),
        np.stack(spreads, 1),
        {"rows_fitted_on": FITTED, "estimates": estimates},
    )


def autoregression(values, observed, simulation):
    """Each row a linear function of the last `ORDER`, and shocks, seen with noise: about the best
    linear smoother.

    Matrices and noise by expectation maximisation on the first rows (Shumway and Stoffer, 1982), a
    fixed number of rounds. The state holds one lag more than the model, so that its covariances are
    all that a round needs.
    """
    centre, channels = values[observed].mean(0), values.shape[1]
    series, size = (values - centre)[None], channels * (ORDER + 1)
    some, there = series[:, : 2 * FITTED], observed[: 2 * FITTED]
    # a start: a random walk, and the noise that second differences would have if the path were
    # straight
    lags, together = np.eye(channels, size - channels), np.eye(size)
    noise = np.nanvar(np.diff(some[0], 2, axis=0), axis=0) / 6
    process_noise, likelihoods = np.diag(noise), []
    for _ in range(ROUNDS):
        fit = kalman_smoother(some, there, *_companion(lags, process_noise, noise, together))
        likelihoods.append(float(fit.log_likelihood[0]))
        # (n, Z), (n, Z, Z); products from the first row that has all its lags
        m, p = fit.mean[0], fit.cov[0]
        together = (m[ORDER:].T @ m[ORDER:] + p[ORDER:].sum(0)) / (len(m) - ORDER)
        past = together[channels:, channels:], together[channels:, :channels]
        lags = np.linalg.solve(*past).T
        process_noise = together[:channels, :channels] - lags @ past[1]
        process_noise = (process_noise + process_noise.T) / 2
        here = slice(None), slice(channels)
        error = (some[0, there] - m[there][here]) ** 2 + np.diagonal(p, axis1=1, axis2=2)[there][
            here
        ]
        noise = error.mean(0)
    # the lag that only the rounds need is no longer carried
    together = together[:-channels, :-channels]
    fit = kalman_smoother(series, observed, *_companion(lags, process_noise, noise, together))
    more = {
        "order": ORDER,
        "rounds": ROUNDS,
        "rows_fitted_on": some.shape[1],
        "log_likelihoods": likelihoods,
    }
    more |= {"noise": np.sqrt(noise).tolist()}
    return fit.mean[0, :, :channels] + centre, fit.std[0, :, :channels], more


def _companion(lags, process_noise, noise, together):
    """The autoregression as `kalman_smoother` takes it; rows before the first are as uncertain as
    any.
    """
    channels, size = len(lags), len(together)
    transition, kicks = np.eye(size, k=-channels), np.zeros((size, size))
    transition[:channels, : lags.shape[1]] = lags
    kicks[:channels, :channels] = process_noise
    return transition, kicks, np.eye(channels, size), np.diag(noise), np.zeros(size), together


def equations(values, observed, simulation, passes=1):
    """`gaussian_smoother` with all that the simulator knew but the path and the shocks."""
    centre, scale = simulation.mean.numpy(), simulation.std.numpy()
    dt = float(simulation.times[-1]) / (len(values) - 1)
    raw = values * scale + centre
    start = centre, np.diag(scale**2)
    mean, cov = gaussian_smoother(
        lorenz_moments, raw, observed, NOISE * scale, dt, INNER, *start, passes
    )
    spread = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    return (mean - centre) / scale, spread / scale, {"inner": INNER, "passes": passes}


RIVALS = {
    "linear interpolation": linear,
    "local linear trend": trend,
    "vector autoregression": autoregression,
    "the true equations": equations,
    "the true equations, three passes": partial(equations, passes=3),
}


def hole_lengths(observed):
    """(n,) rows in the hole that a row is in; 0 where it is observed."""
    starts = np.flatnonzero(np.diff(observed, prepend=~observed[0]))
    lengths = np.diff(starts, append=len(observed))
    return np.where(observed, 0, np.repeat(lengths, lengths))


def judge(name, n):
    torch.set_num_threads(1)
    simulation, observed = long_lorenz(n, NOISE)
    there, truth = observed.numpy(), simulation.latent[0].numpy()
    values = np.where(there[:, None], simulation.observed[0].numpy(), np.nan)
    memory, wall, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mean, spread, more = RIVALS[name](values, there, simulation)
    result = {"rival": name, "memory_before_mb": memory, "peak_memory_mb": _peak_mb()}
    result |= {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }
    holes = hole_lengths(there)
    parts = {"missing": ~there, "observed": there}
    parts |= {"short holes": (holes > 0) & (holes <= SHORT), "long holes": holes > SHORT}
    report = {
        part: scores(mean[rows], spread[rows], truth[rows])
        for part, rows in parts.items()
        if rows.any()
    }
    report = {part: {"rows": int(parts[part].sum())} | result for part, result in report.items()}
    said = sorted({f"{one.category.__name__}: {one.message}" for one in caught})
    return result | {"report": report, "warnings": said} | more


def _with_kept(record, file):
    """The new runs, and those of other rivals that the file holds, in the order of `RIVALS`; each
    with its own date.
    """
    old = json.loads(file.read_text()) if file.exists() else {"n": None}
    runs = {
        run["rival"]: {"date": old["date"], "device": old["device"]} | run
        for run in (old["runs"] if old["n"] == record["n"] else [])
    }
    runs |= {run["rival"]: run for run in record["runs"]}
    return [runs[name] for name in RIVALS if name in runs]


def _peak_mb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000, help="rows of the series")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=RIVALS,
        default=list(RIVALS),
        metavar="RIVAL",
        help="these alone; what the file says of the others on as many rows is kept",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the runs there")
    settings = parser.parse_args()
    record = describe("cpu", 1) | {"n": settings.n, "unit": "sd of a coordinate", "runs": []}
    record["versions"] |= {"statsmodels": version("statsmodels")}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for run in pool.map(judge, settings.only, [settings.n] * len(settings.only)):
            record["runs"].append(run | {"date": record["date"], "device": record["device"]})
            print(
                f"{run['rival']}: {run['cpu_s']} CPU seconds, peak {run['peak_memory_mb']} MB "
                f"({run['memory_before_mb']} before); {'; '.join(run['warnings']) or 'no warnings'}"
            )
            for part, result in run["report"].items():
                print(
                    f"    {part:12}",
                    "  ".join(f"{key} {value:.4g}" for key, value in result.items()),
                    flush=True,
                )
    if settings.json:
        record["runs"] = _with_kept(record, settings.json)
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(
            json.dumps(record | {"load_average_after": load_average()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
