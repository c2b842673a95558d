"""The posterior of any process on a line with additive noise, on a fine grid of its values."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fractal_lib.checks import as_positive, optional
from fractal_lib.inference.linear import Smoothed
from fractal_lib.inference.series import as_array, as_series

__all__ = ["grid_smoother"]

# A transition probability is rounded by some 1e-15: one of 1e-10 is known to five digits.
LEAST = 1e-10


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
    relative to the posterior's std: halve h to divide it by 4. Arrays, tensors, lists and pandas
    frames are taken alike.

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
            too coarse for the noise, a start that is no distribution, a grid too narrow (the
            posterior has more than 1e-6 of its mass at an end), or a row so far from what comes
            before it that float64 cannot tell its probability: an outlier.

    Complexity: O(K^3 + B n K^2) time, O(B n K) memory. Source: Scharfetter and Gummel (1969) for
    the rates; Rabiner (1989), section III, for the passes.

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
    expm = optional("scipy.linalg", "grid_smoother").expm
    rates, stationary = _jumps(drift, diffusion, grid)
    start = stationary if start is None else _checked_start(start, grid)
    move = np.maximum(expm(rates * dt), 0)  # (K, K), from row to column; rounding leaves -1e-18
    fit, log_scale = _densities(values, observed, noise, grid)
    weights, log_likelihood = _forward_backward(start, move, fit)
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


def _densities(values, observed, noise, grid):
    """Densities of the rows at the grid, (B, n, K), in units of that at its nearest point; and the
    sum of the logarithms of those units, (B,).
    """
    outside = np.abs(values - np.clip(values, grid[0], grid[-1])).max()
    if outside > 10 * noise:
        raise ValueError(
            f"the grid from {grid[0]} to {grid[-1]} is too narrow: an observed value is {outside} "
            "outside of it"
        )
    squares = -(((values - grid) / noise) ** 2) / 2
    fit = np.where(observed[..., None], squares, 0.0)  # (B, n, K)
    top = fit.max(2)
    unit = top - observed * math.log(noise * math.sqrt(2 * math.pi))
    return np.exp(fit - top[..., None]), unit.sum(1)


def _forward_backward(start, move, fit):
    """Posterior weights (B, n, K) and log likelihood (B,) of a chain, from the densities of the
    rows at its states, (B, n, K).
    """
    weights, log_likelihood = np.empty_like(fit), np.zeros(len(fit))
    now = np.broadcast_to(start, fit[:, 0].shape)
    for j in range(fit.shape[1]):
        now = (now @ move if j else now) * fit[:, j]
        total = now.sum(1, keepdims=True)
        if total.min() < LEAST:
            raise ValueError(
                f"row {j} is too far from what the process, its start and the row before allow: "
                f"the probability to be near it is {total.min():.1g}, expected {LEAST} or more "
                "(an outlier? leave it out by `observed`)"
            )
        log_likelihood += np.log(total[:, 0])
        weights[:, j] = now = now / total
    later = np.ones_like(now)
    for j in range(fit.shape[1] - 2, -1, -1):
        later = (later * fit[:, j + 1]) @ move.T
        later /= later.max(1, keepdims=True)
        weights[:, j] *= later
    return weights / weights.sum(2, keepdims=True), log_likelihood


def _jumps(drift, diffusion, grid):
    """Rates (K, K) from row to column between neighbours, by exponential fitting, and the density
    (K,) they keep.
    """
    special = optional("scipy.special", "grid_smoother")
    exprel = special.exprel
    spacing = grid[1] - grid[0]
    slow = diffusion**2 / 2
    # (K - 1,), fall of the potential
    pushed = np.asarray(drift((grid[1:] + grid[:-1]) / 2), dtype=np.float64) * spacing / slow
    if pushed.shape != (len(grid) - 1,) or not np.isfinite(pushed).all():
        raise ValueError(
            f"expected {len(grid) - 1} finite numbers from the drift of as many, got {pushed.shape}"
        )
    up, down = slow / spacing**2 / exprel(-pushed), slow / spacing**2 / exprel(pushed)
    rates = np.diag(up, 1) + np.diag(down, -1)
    energy = np.concatenate([[0.0], pushed.cumsum()])
    return rates - np.diag(rates.sum(1)), special.softmax(energy)


def _checked_start(start, grid):
    start = as_array(start, "start")
    if start.shape != grid.shape or not (start >= 0).all() or abs(start.sum() - 1) > 1e-9:
        raise ValueError(
            f"expected start as {grid.shape} probabilities, got {start.shape} of sum {start.sum()}"
        )
    return start


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
