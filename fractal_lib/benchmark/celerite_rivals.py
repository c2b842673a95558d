"""A Gaussian process whose cost grows with n and not with n^3, by the package celerite2: a rival
from outside on carbon dioxide and on glucose, tuned by its marginal likelihood.

Its kernels are sums of damped oscillators, so that Cholesky's factors have a few columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fractal_lib.benchmark.rivals import Predicted
from fractal_lib.checks import optional
from fractal_lib.data.glucose import IrregularSeries

__all__ = ["carbon_dioxide", "celerite_process", "glucose"]

SMOOTH = 2**-0.5  # the quality of an oscillator that does not oscillate: a trend
ENTRIES = 2**24  # of a covariance between what is known and what is asked, at a time
Kernel = Callable[[Any, Sequence[float]], Any]


def celerite_process(
    times: np.ndarray,
    values: np.ndarray,
    asked: np.ndarray,
    kernel: Kernel,
    start: Sequence[float],
    least_noise: float = 1e-3,
) -> Predicted:
    """Tuned from one start, without restarts, on all that is known, and conditioned on it.

    Args:
        times, values: (M,), what is known; times ascend.
        asked: (K,), times to be predicted.
        kernel: from the package's terms and P - 1 positive parameters to a term.
        start: (P,) positive, where the search starts; the last is the noise of a reading.
        least_noise: what the noise is at least, in the unit of the values.

    Returns:
        mean and standard deviation of a reading, noise included, (K,) each; and the parameters.

    Raises:
        ImportError: if celerite2 is not installed.

    Complexity: O(P M J^2) a step of the search for a kernel of J columns, O(M J) for each time
    asked. Source: Foreman-Mackey, Agol, Ambikasaran and Angus (2017) for the algorithm.
    """
    celerite2 = optional("celerite2", "this rival")
    minimize = optional("scipy.optimize", "this rival").minimize
    centre, first = values.mean(), np.log(np.asarray(start))

    def process(logs: np.ndarray) -> Any:
        *parameters, noise = np.exp(logs)
        found = celerite2.GaussianProcess(kernel(celerite2.terms, parameters), mean=centre)
        noises = np.full(len(times), noise**2 + least_noise**2)
        found.compute(times, diag=noises, quiet=True)  # what has no factor has no likelihood
        return found

    def cost(logs: np.ndarray) -> float:
        found = -process(logs).log_likelihood(values) / len(values)
        return found if np.isfinite(found) else 1e3

    bounds = list(zip(first - 8, first + 8, strict=True))
    best = minimize(cost, first, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
    fitted, size = process(best.x), max(1, ENTRIES // len(times))
    parts = [
        fitted.predict(values, t=asked[i : i + size], return_var=True)
        for i in range(0, len(asked), size)
    ]
    mean, variance = (np.concatenate(part) for part in zip(*parts, strict=True))
    variance = np.maximum(variance, 0.0) + np.exp(2 * best.x[-1]) + least_noise**2
    found = np.exp(best.x).round(6).tolist()
    more = {"converged": bool(best.success), "parameters": found, "nll_a_row": float(best.fun)}
    return mean, np.sqrt(variance), more


def carbon_dioxide(values: np.ndarray, train: np.ndarray) -> Predicted:
    """A trend, four waves of the year that drift together, and two Matern terms, in years."""

    def kernel(terms: Any, p: Sequence[float]) -> Any:
        waves = (terms.SHOTerm(sigma=p[k], rho=1 / k, tau=p[5]) for k in range(1, 5))
        trend = terms.SHOTerm(sigma=p[0], rho=p[6], Q=SMOOTH)
        rest = (terms.Matern32Term(sigma=p[k], rho=p[k + 1]) for k in (7, 9))
        return sum(rest, sum(waves, trend))

    years = np.arange(len(values)) * 7 / 365.25
    start = [50.0, 2.0, 1.0, 0.3, 0.1, 100.0, 100.0, 0.5, 1.0, 0.1, 0.1, 0.1]
    return celerite_process(years[train], values[train], years, kernel, start)


def glucose(record: IrregularSeries, train: np.ndarray) -> Predicted:
    """An oscillator, a slower Matern term and a wave of the day that drifts, at the exact times, in
    hours; asked at what is not trained on alone.
    """

    def kernel(terms: Any, p: Sequence[float]) -> Any:
        meal = terms.SHOTerm(sigma=p[0], rho=p[1], tau=p[2])
        day = terms.SHOTerm(sigma=p[5], rho=24.0, tau=p[6])
        return meal + terms.Matern32Term(sigma=p[3], rho=p[4]) + day

    mean, std = np.full((2, len(train)), np.nan)
    times, values = record.times[train], record.values[train]
    start = [30.0, 4.0, 1.0, 20.0, 5.0, 10.0, 100.0, 1.0]
    asked = record.times[~train]
    # readings are whole numbers
    mean[~train], std[~train], more = celerite_process(times, values, asked, kernel, start, 0.1)
    return mean, std, more
