"""The posterior of any process on a line with additive noise, on a fine grid of its values."""

import math
from collections.abc import Callable

import numpy as np

from fractal_lib.checks import optional
from fractal_lib.inference.linear import Smoothed, checked_series

__all__ = ["grid_smoother"]


def grid_smoother(
    drift: Callable[[np.ndarray], np.ndarray],
    diffusion: float,
    values: np.ndarray,
    observed: np.ndarray,
    noise: float,
    dt: float,
    grid: np.ndarray,
    start: np.ndarray | None = None,
) -> Smoothed:
    """The posterior and likelihood of dz = f(z) dt + g dw on the line, seen with noise, on a fine
    grid of its values.

    Time is not discretised. The process is replaced by one that jumps to the next points of the
    grid at rates that keep its stationary density; from row to row its probabilities move by the
    exponential of those rates. A grid of spacing h errs by a share of the order of (f h / g^2)^2:
    halve h to divide the error by 4.

    Args:
        drift: f, of an array, value by value.
        diffusion: g, positive.
        values: (B, n, 1), the paths with noise; whatever stands in a missing row is not read.
        observed: (n,) bool for all series alike, or (B, n) bool.
        noise: sd of the observations' noise, at least the spacing of the grid.
        dt: time between two rows.
        grid: (K,), even and rising; wide enough to hold the posterior.
        start: (K,), probabilities of the first row before any observation; the stationary ones by
            default.

    Returns:
        `Smoothed` with Z = 1, and with weights, which say more than mean and sd where there are
        several modes.

    Raises:
        ValueError: for shapes that do not fit, a number that is not positive, an uneven grid or one
            too coarse for the noise, a start that is no distribution, or a posterior that leans on
            an end of the grid.

    Complexity: O(K^3 + B n K^2), O(B n K) memory. Source: Scharfetter and Gummel (1969) for the
    rates; Rabiner (1989), section III, for the passes.

    >>> from fractal_lib.data import double_well
    >>> sample = double_well(batch=2, n=41, end=4.0, steepness=4.0, diffusion=1.0, noise=0.5)
    >>> grid = np.linspace(-2.5, 2.5, 251)
    >>> exact = grid_smoother(lambda z: 4 * z * (1 - z**2), 1.0, sample.observed, np.ones(41, bool), 0.5, 0.1, grid)
    >>> exact.weights.shape, bool((np.sign(exact.mean) == np.sign(sample.latent.numpy())).mean() > 0.9)
    ((2, 41, 251), True)
    """
    values, observed = checked_series(values, observed)
    grid = np.asarray(grid, dtype=np.float64)
    _check_grid(values.shape[2], diffusion, noise, dt, grid)
    expm = optional("scipy.linalg", "grid_smoother").expm
    rates, stationary = _jumps(drift, diffusion, grid)
    start = stationary if start is None else np.asarray(start, dtype=np.float64)
    if start.shape != grid.shape or not (start >= 0).all() or abs(start.sum() - 1) > 1e-9:
        raise ValueError(
            f"expected start as {grid.shape} probabilities, got {start.shape} of sum {start.sum()}"
        )
    move = np.maximum(expm(rates * dt), 0)  # (K, K), from row to column; rounding leaves -1e-18
    fit = np.where(observed[..., None], -(((values - grid) / noise) ** 2) / 2, 0.0)  # (B, n, K)
    top = fit.max(2)
    fit = np.exp(fit - top[..., None])
    scale = -np.log(noise * math.sqrt(2 * math.pi))
    weights, log_likelihood = _forward_backward(start, move, fit)
    log_likelihood += (top + observed * scale).sum(1)
    if weights[..., [0, -1]].max() > 1e-6:
        raise ValueError(
            f"the grid from {grid[0]} to {grid[-1]} is too narrow: the posterior leans on its end"
        )
    mean = weights @ grid  # (B, n)
    variance = (weights * (grid - mean[..., None]) ** 2).sum(2)[..., None]  # (B, n, 1)
    return Smoothed(
        mean[..., None], np.sqrt(variance), log_likelihood, variance[..., None], weights
    )


def _forward_backward(start, move, fit):
    """Posterior weights (B, n, K) and log likelihood (B,) of a chain whose states fit the rows so
    well: (B, n, K).
    """
    weights, log_likelihood = np.empty_like(fit), np.zeros(len(fit))
    now = np.broadcast_to(start, fit[:, 0].shape)
    for j in range(fit.shape[1]):
        now = (now @ move if j else now) * fit[:, j]
        total = now.sum(1, keepdims=True)
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
    spacing = grid[1] - grid[0]
    slow = diffusion**2 / 2
    # (K - 1,), fall of the potential
    pushed = np.asarray(drift((grid[1:] + grid[:-1]) / 2)) * spacing / slow
    if pushed.shape != (len(grid) - 1,) or not np.isfinite(pushed).all():
        raise ValueError(
            f"expected {len(grid) - 1} finite numbers from the drift of as many, got {pushed.shape}"
        )
    up, down = (
        slow / spacing**2 / special.exprel(-pushed),
        slow / spacing**2 / special.exprel(pushed),
    )
    rates = np.diag(up, 1) + np.diag(down, -1)
    energy = np.concatenate([[0.0], pushed.cumsum()])
    return rates - np.diag(rates.sum(1)), special.softmax(energy)


def _check_grid(channels, diffusion, noise, dt, grid) -> None:
    if channels != 1:
        raise ValueError(f"expected values (B, n, 1), got {channels} channels")
    if not (diffusion > 0 and noise > 0 and dt > 0):
        raise ValueError(
            f"diffusion, noise and dt must be positive, got {diffusion}, {noise} and {dt}"
        )
    steps = np.diff(grid) if grid.ndim == 1 else np.empty(0)
    if len(steps) < 2 or not steps[0] > 0 or not np.allclose(steps, steps[0]):
        raise ValueError(
            f"expected an even, rising grid (K,) of 3 points or more, got shape {grid.shape}"
        )
    if steps[0] > noise:
        raise ValueError(f"the grid's spacing {steps[0]} is too coarse for a noise of {noise}")
