"""The two moves of every Gaussian smoother, written once: a linear step, and an observation."""

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Updated", "push_forward", "update"]


def push_forward(
    mean: np.ndarray,
    cov: np.ndarray,
    transition: np.ndarray,
    process_noise: np.ndarray,
    offset: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of A z + b + N(0, Q), where z has mean and covariance given.

    Two steps in a row are one: the offset and the process noise of both are what the second makes
    of those of the first, and the transitions multiply.

    Args:
        mean, cov: (..., Z) and (..., Z, Z).
        transition, process_noise: A and Q, (Z, Z).
        offset: b, (Z,).

    Complexity: O(Z^3) a covariance, O(Z^2) a mean. Source: Kalman (1960).

    >>> mean, cov = push_forward(np.ones(1), np.eye(1), 2 * np.eye(1), np.eye(1), np.ones(1))
    >>> mean.tolist(), cov.tolist()
    ([3.0], [[5.0]])
    """
    return mean @ transition.T + offset, transition @ cov @ transition.T + process_noise


class Updated(NamedTuple):
    """A Gaussian after an observation, and what the way back needs of it.

    Attributes:
        mean, cov: (B, Z) and (G, Z, Z), G = 1 if all share it.
        kept: I - K C, (G, Z, Z), the part of a deviation that the observation leaves.
        weighted: C' (C P C' + R)^-1, (G, Z, X); 0 where nothing was observed.
        error: (B, X), the observation less its prediction.
        log_density: (B,), of the observation, in nats; 0 where nothing was observed.
    """

    mean: np.ndarray
    cov: np.ndarray
    kept: np.ndarray
    weighted: np.ndarray
    error: np.ndarray
    log_density: np.ndarray


def update(
    mean: np.ndarray,
    cov: np.ndarray,
    values: np.ndarray,
    observed: np.ndarray,
    emission: np.ndarray,
    noise: np.ndarray,
) -> Updated:
    """Kalman's update by x = C z + N(0, R), in Joseph's form, which keeps covariances positive.

    Args:
        mean, cov: (B, Z) and (Z, Z) or (G, Z, Z), before the observation.
        values: (B, X), finite also where nothing was observed.
        observed: (G,) bool, G = 1 or B.
        emission, noise: C (X, Z) and R (X, X).

    Complexity: O(G (Z + X)^3 + B (Z + X)^2). Source: Kalman (1960); Bucy and Joseph (1968).

    >>> one, seen = np.eye(1), np.array([True])
    >>> after = update(np.zeros((1, 1)), one, one, seen, emission=one, noise=one)
    >>> after.mean.tolist(), after.cov.tolist(), after.log_density.round(3).tolist()
    ([[0.5]], [[[0.5]]], [-1.516])
    """
    total = emission @ cov @ emission.T + noise  # (G, X, X)
    precision, error = np.linalg.inv(total), values - mean @ emission.T
    with np.errstate(over="ignore"):  # beyond float64 it is infinite, which the caller refuses
        squares = ((error[:, None] @ precision)[:, 0] * error).sum(1)
    constant = np.linalg.slogdet(total)[1] + values.shape[1] * math.log(2 * math.pi)
    log_density = -np.where(observed, squares + constant, 0.0) / 2
    weighted = observed[:, None, None] * (emission.T @ precision)
    gain = cov @ weighted
    kept = np.eye(mean.shape[1]) - gain @ emission
    cov = kept @ cov @ kept.swapaxes(1, 2) + gain @ noise @ gain.swapaxes(1, 2)
    return Updated(
        mean + (gain @ error[..., None])[..., 0], cov, kept, weighted, error, log_density
    )
