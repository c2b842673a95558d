"""The posterior of any process on a line with additive noise, on a fine grid of its values."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fractal_lib.checks import as_positive
from fractal_lib.inference.linear import Smoothed
from fractal_lib.inference.series import as_array, as_series

__all__ = ["grid_smoother"]

BLOCK = 32  # points of the grid whose logs share one unit
TERMS = 20  # of the exponential series, for a matrix of norm 1 at most: 1 / 20! is 4e-19
LOST = 1e-270  # below it, what float64 rounded to 0 may matter


def grid_smoother(
    drift: Callable[[np.ndarray], np.ndarray],
    diffusion: float,
    values: Any,
    observed: Any,
    noise: float,
    dt: float,
    grid: Any,
    start: Any = None,
) -> Smoothed:
    """The posterior and likelihood of dz = f(z) dt + g dw on the line, seen with noise, on a fine
    grid of its values.

    Time is not discretised. The process is replaced by one that jumps to the next points of the
    grid at rates that keep its stationary density; from row to row its probabilities move by the
    exponential of those rates. A grid of spacing h has an error of the order of (f h / g^2)^2,
    relative to the posterior's std: halve h to divide it by 4. A row far from all others asks for a
    steep path, of slope f; the grid must be fine enough for that one too.

    Probabilities are kept as logarithms, so that no outlier is too rare for them. Arrays, tensors,
    lists and pandas frames are taken alike.

    Args:
        drift: f, of an array, value by value.
        diffusion: g, positive.
        values: (B, n, 1), the paths with noise; whatever stands in a missing row is not read.
        observed: (n,) bool for all series alike, or (B, n) bool; True where a row is there.
        noise: std of the observations' noise, at least the spacing of the grid.
        dt: time between two rows.
        grid: (K,), even and rising; wide enough to hold the posterior.
        start: (K,), probabilities of the first row before any observation; the stationary ones by
            default.

    Returns:
        `Smoothed` with Z = 1, and with weights, which say more than mean and std where there are
        several modes.

    Raises:
        TypeError: for what is not made of numbers, or a mask that is not bool.
        ValueError: for shapes that do not fit, a number that is not positive, an uneven grid or one
            too coarse for the noise, a start that is no distribution, or a grid too narrow: the
            posterior has more than 1e-6 of its mass at an end.

    Complexity: O(K^3 log(rate dt) + B n K^2), one exponential function in 32 of them; O(B n K)
    memory. Source: Scharfetter and Gummel (1969) for the rates; Shao, Gao and Xue (2014) for their
    exponential; Rabiner (1989), section III, for the passes.

    >>> from fractal_lib.data import double_well
    >>> sample = double_well(batch=2, n=41, end=4.0, steepness=4.0, diffusion=1.0, noise=0.5)
    >>> seen, grid = np.ones(41, bool), np.linspace(-2.5, 2.5, 251)
    >>> drift = lambda z: 4 * z * (1 - z**2)
    >>> exact = grid_smoother(drift, 1.0, sample.observed, seen, 0.5, 0.1, grid)
    >>> right = np.sign(exact.mean) == np.sign(sample.latent.numpy())
    >>> exact.weights.shape, bool(right.mean() > 0.9)
    ((2, 41, 251), True)
    """
    values, observed = as_series(values, observed)
    diffusion, noise, dt = (
        as_positive(part, name)
        for part, name in ((diffusion, "diffusion"), (noise, "noise"), (dt, "dt"))
    )
    grid = as_array(grid, "grid")
    _check_grid(values.shape[2], noise, grid)
    rates, stationary = _jumps(drift, diffusion, grid)
    log_start = stationary if start is None else _log_start(start, grid)
    fit, log_scale = _log_densities(values, observed, noise, grid)
    log_weights, log_likelihood = _forward_backward(log_start, _log_move(rates * dt), fit)
    weights = np.exp(log_weights)
    if weights[..., [0, -1]].max() > 1e-6:
        raise ValueError(
            f"the grid from {grid[0]} to {grid[-1]} is too narrow: the posterior has "
            f"{weights[..., [0, -1]].max():.2g} of its mass at an end"
        )
    mean = weights @ grid  # (B, n)
    variance = (weights * (grid - mean[..., None]) ** 2).sum(2)[..., None]  # (B, n, 1)
    return Smoothed(
        mean[..., None],
        np.sqrt(variance),
        log_likelihood + log_scale,
        variance[..., None],
        weights,
    )


def _log_densities(values, observed, noise, grid):
    """Log densities of the rows at the grid, (B, n, K), less those at its nearest point; and the
    sum of the latter, (B,).

    The difference of two squares is taken as a product: far from the grid the squares are equal to
    rounding.
    """
    nearest = np.clip(values, grid[0], grid[-1])  # (B, n, 1)
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        fit = (grid - nearest) * (2 * values - grid - nearest) / (2 * noise**2)
        top = -(((values - nearest) / noise) ** 2)[..., 0] / 2
        top = np.where(observed, top - math.log(noise * math.sqrt(2 * math.pi)), 0.0).sum(1)
    if not np.isfinite(fit).all() or not np.isfinite(top).all():
        raise ValueError(
            f"the grid from {grid[0]} to {grid[-1]} is too narrow for an observed value of size "
            f"{np.abs(values).max()}"
        )
    return np.where(observed[..., None], fit, 0.0), top


def _forward_backward(log_start, log_move, fit):
    """Log posterior weights (B, n, K) and log likelihood (B,) of a chain, from the log densities of
    the rows at its states, (B, n, K).
    """
    log_weights, log_likelihood = np.empty_like(fit), np.zeros(len(fit))
    now = np.broadcast_to(log_start, fit[:, 0].shape)
    for j in range(fit.shape[1]):
        now = (_log_product(now, log_move) if j else now) + fit[:, j]
        total = _log_sum(now)
        log_likelihood += total[:, 0]
        log_weights[:, j] = now = now - total
    later = np.zeros_like(now)
    for j in range(fit.shape[1] - 2, -1, -1):
        later = _log_product(later + fit[:, j + 1], log_move.T)
        later -= later.max(1, keepdims=True)
        log_weights[:, j] += later
        log_weights[:, j] -= _log_sum(log_weights[:, j])
    return log_weights, log_likelihood


def _log_sum(logs):
    """Log of the sum over the last axis, which is kept."""
    top = logs.max(-1, keepdims=True)
    return top + np.log(np.exp(logs - top).sum(-1, keepdims=True))


def _log_product(left, right):
    """Logs (B, K) of exp(left) @ exp(right) for logs (B, J) and (J, K); 0 is -inf.

    A product of plain numbers for every `BLOCK` rows of ``right``, in a unit of its own; where that
    is not precise enough, a sum for each element.
    """
    cuts = range(0, left.shape[1], BLOCK)
    # a block of nothing but zeros has no unit: any will do
    tops = [np.maximum(left[:, i : i + BLOCK].max(1), -1e300)[:, None] for i in cuts]
    units = [np.maximum(right[i : i + BLOCK].max(0), -1e300) for i in cuts]
    unit = np.max([a + b for a, b in zip(tops, units, strict=True)], 0)  # (B, K)
    total = np.zeros_like(unit)
    for i, top, scale in zip(cuts, tops, units, strict=True):
        part = np.exp(left[:, i : i + BLOCK] - top) @ np.exp(right[i : i + BLOCK] - scale)
        total += part * np.exp(top + scale - unit)
    with np.errstate(divide="ignore"):
        logs = unit + np.log(total)
    lost = (total < LOST) & (unit > -1e299)  # no unit: every term is 0
    for b in np.flatnonzero(lost.any(1)):
        k = np.flatnonzero(lost[b])
        terms = left[b, :, None] + right[:, k]  # (J, k)
        top = np.maximum(terms.max(0), -1e300)
        with np.errstate(divide="ignore"):
            logs[b, k] = top + np.log(np.exp(terms - top).sum(0))
    return logs


def _log_move(rates):
    """Log of the exponential of rates (K, K), whose rows sum to 0, element by element.

    exp(R) = (e^-s exp(s + R))^(2^k), s and R scaled by 2^-k: the terms of the series are not
    negative, so that nothing cancels and small elements are as precise as large ones. A step of one
    in K squarings moves by a point or two, far below the number of terms.
    """
    size = len(rates)
    largest = -rates.diagonal().min()
    doublings = max(math.ceil(math.log2(max(largest, size))), 0)
    shift = largest / 2**doublings
    step = rates / 2**doublings + shift * np.eye(size)
    total = term = np.eye(size)
    for k in range(1, TERMS + 1):
        term = term @ step / k
        total = total + term
    with np.errstate(divide="ignore"):
        logs = np.log(total) - shift
    for _ in range(doublings):
        logs = _log_product(logs, logs)
    return logs


def _jumps(drift, diffusion, grid):
    """Rates (K, K) from row to column between neighbours, by exponential fitting, and the log of
    the density (K,) they keep.
    """
    spacing = grid[1] - grid[0]
    slow = diffusion**2 / 2
    # (K - 1,), fall of the potential
    pushed = np.asarray(drift((grid[1:] + grid[:-1]) / 2), dtype=np.float64) * spacing / slow
    if pushed.shape != (len(grid) - 1,) or not np.isfinite(pushed).all():
        raise ValueError(
            f"expected {len(grid) - 1} finite numbers from the drift of as many, got {pushed.shape}"
        )
    up, down = slow / spacing**2 * _bernoulli(-pushed), slow / spacing**2 * _bernoulli(pushed)
    rates = np.diag(up, 1) + np.diag(down, -1)
    energy = np.concatenate([[0.0], pushed.cumsum()])
    return rates - np.diag(rates.sum(1)), energy - _log_sum(energy)


def _bernoulli(x):
    """x / (e^x - 1), 1 at 0."""
    with np.errstate(over="ignore"):  # to infinity, and the quotient to 0
        return np.where(x == 0, 1.0, x / np.expm1(np.where(x == 0, 1.0, x)))


def _log_start(start, grid):
    start = as_array(start, "start")
    if start.shape != grid.shape or not (start >= 0).all() or abs(start.sum() - 1) > 1e-9:
        raise ValueError(
            f"expected start as {grid.shape} probabilities, got {start.shape} of sum {start.sum()}"
        )
    with np.errstate(divide="ignore"):
        return np.log(start)


def _check_grid(channels, noise, grid) -> None:
    if channels != 1:
        raise ValueError(f"expected values (B, n, 1), got {channels} channels")
    steps = np.diff(grid) if grid.ndim == 1 else np.empty(0)
    if len(steps) < 2 or not steps[0] > 0 or not np.allclose(steps, steps[0]):
        raise ValueError(
            f"expected an even, rising grid (K,) of 3 points or more, got shape {grid.shape}"
        )
    if steps[0] > noise:
        raise ValueError(f"the grid's spacing {steps[0]} is too coarse for a noise of {noise}")
