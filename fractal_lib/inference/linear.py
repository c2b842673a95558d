"""Linear Gaussian state space models, exactly: Kalman filter and smoother."""

from typing import Any, NamedTuple

import numpy as np

from fractal_lib.inference.gaussian import Updated, push_forward, update
from fractal_lib.inference.series import as_array, as_covariance, as_series

__all__ = ["Smoothed", "kalman_smoother"]


class Smoothed(NamedTuple):
    """What is known of hidden paths once all of their series has been seen.

    Attributes:
        mean, std: (B, n, Z) float64, of the marginal posterior at every row.
        log_likelihood: (B,) float64, log density of the observed rows, in nats.
        cov: (B, n, Z, Z) float64, of the marginal posterior at every row; read only, as series may
            share it.
        weights: (B, n, K) float64, posterior mass at each point of the grid; only from
            `grid_smoother`.
    """

    mean: np.ndarray
    std: np.ndarray
    log_likelihood: np.ndarray
    cov: np.ndarray
    weights: np.ndarray | None = None


def kalman_smoother(
    values: Any,
    observed: Any,
    transition: Any,
    process_noise: Any,
    emission: Any,
    noise: Any,
    mean: Any,
    cov: Any,
) -> Smoothed:
    """The exact posterior and likelihood of z_j = A z_(j-1) + N(0, Q), x_j = C z_j + N(0, R), z_0 ~
    N(mean, cov).

    Arrays, tensors, lists and pandas frames are taken alike.

    Args:
        values: (B, n, X), the series; whatever stands in a missing row is not read.
        observed: (n,) bool for all series alike, or (B, n) bool; True where a row is there.
        transition, process_noise: A and Q, (Z, Z); Q may be singular.
        emission, noise: C (X, Z) and R (X, X), symmetric and positive definite.
        mean, cov: (Z,) and (Z, Z), what is known at the first row before any observation.

    Returns:
        `Smoothed`, without weights.

    Raises:
        TypeError: for what is not made of numbers, or a mask that is not bool.
        ValueError: for shapes that do not fit, an observed row that is not finite or so far off
            that its density is not a float64, a Q or cov that is no covariance, or an R that is not
            symmetric and positive definite.

    Complexity: O(n B (Z + X)^3), with one mask for all series O(n (Z + X)^3 + n B (Z + X)^2); a
    Python loop over n. Source: Kalman (1960) forward, de Jong (1989) backward.

    An Ornstein-Uhlenbeck path, seen with noise at every second row:

    >>> from fractal_lib.data import ornstein_uhlenbeck
    >>> sample = ornstein_uhlenbeck(batch=3, n=41, end=4.0, rate=2.0, std=1.0, noise=0.5)
    >>> one, kept = np.eye(1), np.exp(-2.0 * 0.1)
    >>> model = kept * one, (1 - kept**2) * one, one, 0.5**2 * one, np.zeros(1), one
    >>> exact = kalman_smoother(sample.observed, np.arange(41) % 2 == 0, *model)
    >>> exact.mean.shape, exact.log_likelihood.shape, exact.std[0, 19:22, 0].round(3).tolist()
    ((3, 41, 1), (3,), [0.539, 0.403, 0.539])
    """
    values, observed = as_series(values, observed)
    names = "A", "Q", "C", "R", "mean", "cov"
    given = transition, process_noise, emission, noise, mean, cov
    parts = [as_array(part, name) for part, name in zip(given, names, strict=True)]
    _check_linear(values.shape[2], *parts)
    transition, process_noise, emission, noise, m, p = parts
    log_likelihood, steps = np.zeros(len(values)), []
    m = np.broadcast_to(m, (len(values), len(m)))  # (B, Z)
    for j in range(values.shape[1]):
        if j:
            m, p = push_forward(m, p, transition, process_noise)
        steps.append(update(m, p, values[:, j], observed[:, j], emission, noise))
        m, p = steps[-1].mean, steps[-1].cov
        log_likelihood += steps[-1].log_density
    if not np.isfinite(log_likelihood).all():
        raise ValueError(
            "expected log densities within float64, got an observed value of "
            f"{np.abs(values).max()}, too far from what the model predicts"
        )
    mean, cov = _backward(steps, transition, emission)
    std = np.sqrt(np.maximum(np.diagonal(cov, axis1=2, axis2=3), 0))  # (G, n, Z)
    shared = np.broadcast_to(cov, (*mean.shape, mean.shape[2]))
    return Smoothed(mean, np.broadcast_to(std, mean.shape).copy(), log_likelihood, shared)


def _backward(steps: list[Updated], transition, emission) -> tuple[np.ndarray, np.ndarray]:
    """Means (B, n, Z) and covariances (G, n, Z, Z), given the later rows too.

    ``score`` (B, Z) and ``information`` (G, Z, Z) are the gradient and the negative Hessian of the
    later rows' log density in the state, at the filter's mean; nothing is inverted.
    """
    score, information = np.zeros(transition.shape[0]), np.zeros(transition.shape)
    means, covs = [], []
    for now in reversed(steps):
        means.append(now.mean + (now.cov @ score[..., None])[..., 0])
        covs.append(now.cov - now.cov @ information @ now.cov)
        kept = now.kept.swapaxes(1, 2)
        score = (kept @ score[..., None] + now.weighted @ now.error[..., None])[..., 0] @ transition
        seen = kept @ information @ now.kept + now.weighted @ emission
        information = transition.T @ seen @ transition
    return np.stack(means[::-1], 1), np.stack(covs[::-1], 1)


def _check_linear(channels, transition, process_noise, emission, noise, mean, cov) -> None:
    parts = transition, process_noise, emission, noise, mean, cov
    shapes, size = [part.shape for part in parts], mean.size
    square, errors = (size, size), (channels, channels)
    if not size or shapes != [square, square, (channels, size), errors, (size,), square]:
        raise ValueError(
            "expected A (Z, Z), Q (Z, Z), C (X, Z), R (X, X), mean (Z,), cov (Z, Z) with "
            f"X = {channels}; got {', '.join(map(str, shapes))}"
        )
    for part, name in ((transition, "A"), (emission, "C"), (mean, "mean")):
        if not np.isfinite(part).all():
            raise ValueError(f"expected {name} finite, got {part.tolist()}")
    as_covariance(process_noise, "Q", size)
    as_covariance(cov, "cov", size)
    positive = np.isfinite(noise).all() and np.allclose(noise, noise.T)
    if not positive or not np.linalg.eigvalsh(noise).min() > 0:
        raise ValueError(f"expected R symmetric and positive definite, got {noise.tolist()}")
