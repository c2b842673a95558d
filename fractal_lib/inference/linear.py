"""Linear Gaussian state space models, exactly: Kalman filter and smoother."""

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Smoothed", "kalman_smoother"]


class Smoothed(NamedTuple):
    """What is known of hidden paths once all of their series has been seen.

    Attributes:
        mean, sd: (B, n, Z) float64, of the marginal posterior at every row.
        log_likelihood: (B,) float64, log density of the observed rows, in nats.
        cov: (B, n, Z, Z) float64, of the marginal posterior at every row; read only, as series may
            share it.
        weights: (B, n, K) float64, posterior mass at each point of the grid; only from
            `grid_smoother`.
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
    process_noise: np.ndarray,
    emission: np.ndarray,
    noise: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
) -> Smoothed:
    """The exact posterior and likelihood of z_j = A z_(j-1) + N(0, Q), x_j = C z_j + N(0, R), z_0 ~
    N(mean, cov).

    Args:
        values: (B, n, X), the series; whatever stands in a missing row is not read.
        observed: (n,) bool for all series alike, or (B, n) bool.
        transition, process_noise: A and Q, (Z, Z); Q may be singular.
        emission, noise: C (X, Z) and R (X, X), symmetric and positive definite.
        mean, cov: (Z,) and (Z, Z), what is known at the first row before any observation.

    Returns:
        `Smoothed`, without weights.

    Raises:
        ValueError: for shapes that do not fit, an observed row that is not finite, or an R that is
            not symmetric and positive definite.

    Complexity: O(n B (Z + X)^3), with one mask for all series O(n (Z + X)^3 + n B (Z + X)^2); a
    Python loop over n. Source: Kalman (1960) forward, de Jong (1989) backward.

    An Ornstein-Uhlenbeck path, seen with noise at every second row:

    >>> from fractal_lib.data import ornstein_uhlenbeck
    >>> sample = ornstein_uhlenbeck(batch=3, n=41, end=4.0, rate=2.0, spread=1.0, noise=0.5)
    >>> one, kept = np.eye(1), np.exp(-2.0 * 0.1)
    >>> model = kept * one, (1 - kept**2) * one, one, 0.5**2 * one, np.zeros(1), one
    >>> exact = kalman_smoother(sample.observed, np.arange(41) % 2 == 0, *model)
    >>> exact.mean.shape, exact.log_likelihood.shape, exact.sd[0, 19:22, 0].round(3).tolist()
    ((3, 41, 1), (3,), [0.539, 0.403, 0.539])
    """
    values, observed = checked_series(values, observed)
    parts = [
        np.asarray(part, dtype=np.float64)
        for part in (transition, process_noise, emission, noise, mean, cov)
    ]
    _check_linear(values.shape[2], *parts)
    transition, process_noise, emission, noise, m, p = parts
    batch, n, channels = values.shape
    log_likelihood, trail = np.zeros(batch), []
    for j in range(n):
        if j:
            # (B, Z), (G, Z, Z)
            m, p = m @ transition.T, transition @ p @ transition.T + process_noise
        total, here = emission @ p @ emission.T + noise, observed[:, j]  # (G, X, X), (G,)
        precision, error = np.linalg.inv(total), values[:, j] - m @ emission.T  # (G, X, X), (B, X)
        squares = ((error[:, None] @ precision)[:, 0] * error).sum(1)
        log_likelihood -= (
            here * (squares + np.linalg.slogdet(total)[1] + channels * math.log(2 * math.pi)) / 2
        )
        # (G, Z, X), none where nothing was observed
        pull = here[:, None, None] * (emission.T @ precision)
        gain = p @ pull
        m, left = (
            m + (gain @ error[..., None])[..., 0],
            np.eye(len(process_noise)) - gain @ emission,
        )
        # Joseph's form stays positive
        p = left @ p @ left.swapaxes(1, 2) + gain @ noise @ gain.swapaxes(1, 2)
        trail.append((m, p, left.swapaxes(1, 2), pull, error))
    mean, cov = _backward(trail, transition, emission)
    sd = np.sqrt(np.maximum(np.diagonal(cov, axis1=2, axis2=3), 0))  # (G, n, Z)
    spread = np.broadcast_to(cov, (*mean.shape, len(process_noise)))
    return Smoothed(mean, np.broadcast_to(sd, mean.shape).copy(), log_likelihood, spread)


def _backward(trail, transition, emission):
    """Means (B, n, Z) and covariances (G, n, Z, Z) with the later rows' pull on both, ``late`` and
    ``sure``.
    """
    late, sure = np.zeros(transition.shape[0]), np.zeros(transition.shape)
    means, covs = [], []
    for m, p, left, pull, error in reversed(trail):  # it inverts nothing
        means.append(m + (p @ late[..., None])[..., 0])
        covs.append(p - p @ sure @ p)
        late = (left @ late[..., None] + pull @ error[..., None])[..., 0] @ transition  # (B, Z)
        # (G, Z, Z)
        sure = transition.T @ (left @ sure @ left.swapaxes(1, 2) + pull @ emission) @ transition
    return np.stack(means[::-1], 1), np.stack(covs[::-1], 1)


def checked_series(values, observed):
    """The values (B, n, X) with zeros where nothing is observed, and the mask (G, n), G = 1 if all
    share it.
    """
    values, observed = np.asarray(values, dtype=np.float64), np.asarray(observed)
    if (
        values.ndim != 3
        or not values.size
        or observed.dtype != bool
        or observed.shape
        not in (
            values.shape[1:2],
            values.shape[:2],
        )
    ):
        raise ValueError(
            "expected values (B, n, X) and observed (n,) or (B, n) bool; got "
            f"{values.shape} and {observed.dtype} of shape {observed.shape}"
        )
    observed = np.atleast_2d(observed)
    values = np.where(observed[..., None], values, 0.0)
    if not np.isfinite(values).all():
        raise ValueError("expected finite values in every observed row")
    return values, observed


def _check_linear(channels, transition, process_noise, emission, noise, mean, cov) -> None:
    shapes = [part.shape for part in (transition, process_noise, emission, noise, mean, cov)]
    size = mean.size
    square, errors = (size, size), (channels, channels)
    if shapes != [square, square, (channels, size), errors, (size,), square]:
        raise ValueError(
            f"expected A (Z, Z), Q (Z, Z), C (X, Z), R (X, X), mean (Z,), cov (Z, Z) with X = {channels}; got "
            + ", ".join(map(str, shapes))
        )
    if not np.allclose(noise, noise.T) or not np.linalg.eigvalsh(noise).min() > 0:
        raise ValueError(f"expected R symmetric and positive definite, got {noise.tolist()}")
