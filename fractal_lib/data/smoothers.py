"""What is known exactly of a hidden path: linear Gaussian processes, and any process on a line with additive noise."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import expm
from scipy.special import exprel, softmax


class Smoothed(NamedTuple):
    """What is known of hidden paths once all of their series has been seen.

    Attributes:
        mean, sd: (B, n, Z) float64, of the marginal posterior at every row.
        log_likelihood: (B,) float64, log density of the observed rows, in nats.
        cov: (B, n, Z, Z) float64, of the marginal posterior at every row; read only, as series may share it.
        weights: (B, n, K) float64, posterior mass at each point of the grid; only from `grid_smoother`.
    """

    mean: np.ndarray
    sd: np.ndarray
    log_likelihood: np.ndarray
    cov: np.ndarray
    weights: np.ndarray | None = None


def kalman_smoother(
    values: np.ndarray,
    observed: np.ndarray,
    transition: np.ndarray,
    shocks: np.ndarray,
    reading: np.ndarray,
    noise: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
) -> Smoothed:
    """The exact posterior and likelihood of z_j = A z_(j-1) + N(0, Q), x_j = C z_j + N(0, R), z_0 ~ N(mean, cov).

    Args:
        values: (B, n, X), the series; whatever stands in a missing row is not read.
        observed: (n,) bool for all series alike, or (B, n) bool.
        transition, shocks: A and Q, (Z, Z); Q may be singular.
        reading, noise: C (X, Z) and R (X, X), symmetric and positive definite.
        mean, cov: (Z,) and (Z, Z), what is known at the first row before any observation.

    Returns:
        `Smoothed`, without weights.

    Raises:
        ValueError: for shapes that do not fit, an observed row that is not finite, or an R that is not symmetric and
            positive definite.

    Complexity: O(n B (Z + X)^3), with one mask for all series O(n (Z + X)^3 + n B (Z + X)^2); a Python loop over n.
    Source: Kalman (1960) forward, de Jong (1989) backward.

    An Ornstein-Uhlenbeck path, seen with noise at every second row:

    >>> from fractal_lib.data import ornstein_uhlenbeck
    >>> sample = ornstein_uhlenbeck(batch=3, n=41, end=4.0, rate=2.0, spread=1.0, noise=0.5)
    >>> one, kept = np.eye(1), np.exp(-2.0 * 0.1)
    >>> model = kept * one, (1 - kept**2) * one, one, 0.5**2 * one, np.zeros(1), one
    >>> exact = kalman_smoother(sample.observed, np.arange(41) % 2 == 0, *model)
    >>> exact.mean.shape, exact.log_likelihood.shape, exact.sd[0, 19:22, 0].round(3).tolist()
    ((3, 41, 1), (3,), [0.539, 0.403, 0.539])
    """
    values, observed = _series(values, observed)
    parts = [np.asarray(part, dtype=np.float64) for part in (transition, shocks, reading, noise, mean, cov)]
    _check_linear(values.shape[2], *parts)
    transition, shocks, reading, noise, m, p = parts
    batch, n, channels = values.shape
    log_likelihood, trail = np.zeros(batch), []
    for j in range(n):
        if j:
            m, p = m @ transition.T, transition @ p @ transition.T + shocks  # (B, Z), (G, Z, Z)
        total, here = reading @ p @ reading.T + noise, observed[:, j]  # (G, X, X), (G,)
        precision, error = np.linalg.inv(total), values[:, j] - m @ reading.T  # (G, X, X), (B, X)
        squares = ((error[:, None] @ precision)[:, 0] * error).sum(1)
        log_likelihood -= here * (squares + np.linalg.slogdet(total)[1] + channels * math.log(2 * math.pi)) / 2
        pull = here[:, None, None] * (reading.T @ precision)  # (G, Z, X), none where nothing was observed
        gain = p @ pull
        m, left = m + (gain @ error[..., None])[..., 0], np.eye(len(shocks)) - gain @ reading
        p = left @ p @ left.swapaxes(1, 2) + gain @ noise @ gain.swapaxes(1, 2)  # Joseph's form stays positive
        trail.append((m, p, left.swapaxes(1, 2), pull, error))
    mean, cov = _backward(trail, transition, reading)
    sd = np.sqrt(np.maximum(np.diagonal(cov, axis1=2, axis2=3), 0))  # (G, n, Z)
    spread = np.broadcast_to(cov, (*mean.shape, len(shocks)))
    return Smoothed(mean, np.broadcast_to(sd, mean.shape).copy(), log_likelihood, spread)


def _backward(trail, transition, reading):
    """Means (B, n, Z) and covariances (G, n, Z, Z) with the later rows' pull on both, ``late`` and ``sure``."""
    late, sure = np.zeros(transition.shape[0]), np.zeros(transition.shape)
    means, covs = [], []
    for m, p, left, pull, error in reversed(trail):  # it inverts nothing
        means.append(m + (p @ late[..., None])[..., 0])
        covs.append(p - p @ sure @ p)
        late = (left @ late[..., None] + pull @ error[..., None])[..., 0] @ transition  # (B, Z)
        sure = transition.T @ (left @ sure @ left.swapaxes(1, 2) + pull @ reading) @ transition  # (G, Z, Z)
    return np.stack(means[::-1], 1), np.stack(covs[::-1], 1)


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
    """The posterior and likelihood of dz = f(z) dt + g dw on the line, seen with noise, on a fine grid of its values.

    Time is not discretised. The process is replaced by one that jumps to the next points of the grid at rates that
    keep its stationary density; from row to row its probabilities move by the exponential of those rates. A grid of
    spacing h errs by a share of the order of (f h / g^2)^2: halve h to divide the error by 4.

    Args:
        drift: f, of an array, value by value.
        diffusion: g, positive.
        values: (B, n, 1), the paths with noise; whatever stands in a missing row is not read.
        observed: (n,) bool for all series alike, or (B, n) bool.
        noise: sd of the observations' noise, at least the spacing of the grid.
        dt: time between two rows.
        grid: (K,), even and rising; wide enough to hold the posterior.
        start: (K,), probabilities of the first row before any observation; the stationary ones by default.

    Returns:
        `Smoothed` with Z = 1, and with weights, which say more than mean and sd where there are several modes.

    Raises:
        ValueError: for shapes that do not fit, a number that is not positive, an uneven grid or one too coarse for the
            noise, a start that is no distribution, or a posterior that leans on an end of the grid.

    Complexity: O(K^3 + B n K^2), O(B n K) memory. Source: Scharfetter and Gummel (1969) for the rates; Rabiner (1989),
    section III, for the passes.

    >>> from fractal_lib.data import double_well
    >>> sample = double_well(batch=2, n=41, end=4.0, steepness=4.0, diffusion=1.0, noise=0.5)
    >>> grid = np.linspace(-2.5, 2.5, 251)
    >>> exact = grid_smoother(lambda z: 4 * z * (1 - z**2), 1.0, sample.observed, np.ones(41, bool), 0.5, 0.1, grid)
    >>> exact.weights.shape, bool((np.sign(exact.mean) == np.sign(sample.latent.numpy())).mean() > 0.9)
    ((2, 41, 251), True)
    """
    values, observed = _series(values, observed)
    grid = np.asarray(grid, dtype=np.float64)
    _check_grid(values.shape[2], diffusion, noise, dt, grid)
    rates, stationary = _jumps(drift, diffusion, grid)
    start = stationary if start is None else np.asarray(start, dtype=np.float64)
    if start.shape != grid.shape or not (start >= 0).all() or abs(start.sum() - 1) > 1e-9:
        raise ValueError(f"expected start as {grid.shape} probabilities, got {start.shape} of sum {start.sum()}")
    move = np.maximum(expm(rates * dt), 0)  # (K, K), from row to column; rounding leaves -1e-18
    fit = np.where(observed[..., None], -(((values - grid) / noise) ** 2) / 2, 0.0)  # (B, n, K)
    top = fit.max(2)
    fit = np.exp(fit - top[..., None])
    scale = -np.log(noise * math.sqrt(2 * math.pi))
    weights, log_likelihood = _forward_backward(start, move, fit)
    log_likelihood += (top + observed * scale).sum(1)
    if weights[..., [0, -1]].max() > 1e-6:
        raise ValueError(f"the grid from {grid[0]} to {grid[-1]} is too narrow: the posterior leans on its end")
    mean = weights @ grid  # (B, n)
    variance = (weights * (grid - mean[..., None]) ** 2).sum(2)[..., None]  # (B, n, 1)
    return Smoothed(mean[..., None], np.sqrt(variance), log_likelihood, variance[..., None], weights)


def _forward_backward(start, move, fit):
    """Posterior weights (B, n, K) and log likelihood (B,) of a chain whose states fit the rows so well: (B, n, K)."""
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
    """Rates (K, K) from row to column between neighbours, by exponential fitting, and the density (K,) they keep."""
    spacing = grid[1] - grid[0]
    slow = diffusion**2 / 2
    pushed = np.asarray(drift((grid[1:] + grid[:-1]) / 2)) * spacing / slow  # (K - 1,), fall of the potential
    if pushed.shape != (len(grid) - 1,) or not np.isfinite(pushed).all():
        raise ValueError(f"expected {len(grid) - 1} finite numbers from the drift of as many, got {pushed.shape}")
    up, down = slow / spacing**2 / exprel(-pushed), slow / spacing**2 / exprel(pushed)
    rates = np.diag(up, 1) + np.diag(down, -1)
    energy = np.concatenate([[0.0], pushed.cumsum()])
    return rates - np.diag(rates.sum(1)), softmax(energy)


def _series(values, observed):
    """The values (B, n, X) with zeros where nothing is observed, and the mask (G, n), G = 1 if all share it."""
    values, observed = np.asarray(values, dtype=np.float64), np.asarray(observed)
    if values.ndim != 3 or not values.size or observed.dtype != bool or observed.shape not in (
        values.shape[1:2], values.shape[:2],
    ):  # fmt: skip
        raise ValueError(
            "expected values (B, n, X) and observed (n,) or (B, n) bool; got "
            f"{values.shape} and {observed.dtype} of shape {observed.shape}"
        )
    observed = np.atleast_2d(observed)
    values = np.where(observed[..., None], values, 0.0)
    if not np.isfinite(values).all():
        raise ValueError("expected finite values in every observed row")
    return values, observed


def _check_linear(channels, transition, shocks, reading, noise, mean, cov) -> None:
    shapes = [part.shape for part in (transition, shocks, reading, noise, mean, cov)]
    size = mean.size
    square, errors = (size, size), (channels, channels)
    if shapes != [square, square, (channels, size), errors, (size,), square]:
        raise ValueError(
            f"expected A (Z, Z), Q (Z, Z), C (X, Z), R (X, X), mean (Z,), cov (Z, Z) with X = {channels}; got "
            + ", ".join(map(str, shapes))
        )
    if not np.allclose(noise, noise.T) or not np.linalg.eigvalsh(noise).min() > 0:
        raise ValueError(f"expected R symmetric and positive definite, got {noise.tolist()}")


def _check_grid(channels, diffusion, noise, dt, grid) -> None:
    if channels != 1:
        raise ValueError(f"expected values (B, n, 1), got {channels} channels")
    if not (diffusion > 0 and noise > 0 and dt > 0):
        raise ValueError(f"diffusion, noise and dt must be positive, got {diffusion}, {noise} and {dt}")
    steps = np.diff(grid) if grid.ndim == 1 else np.empty(0)
    if len(steps) < 2 or not steps[0] > 0 or not np.allclose(steps, steps[0]):
        raise ValueError(f"expected an even, rising grid (K,) of 3 points or more, got shape {grid.shape}")
    if steps[0] > noise:
        raise ValueError(f"the grid's spacing {steps[0]} is too coarse for a noise of {noise}")
