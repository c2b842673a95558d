"""How good a prediction was: a Gaussian, or an ensemble of samples."""

import math
from typing import Any

import numpy as np
import torch

from fractal_lib.inference.series import as_array

__all__ = ["crps_samples", "sample_scores", "scores"]


def scores(mean: Any, std: Any, truth: Any) -> dict[str, float]:
    """Error and calibration of Gaussian predictions, averaged over all of them.

    Args:
        mean, std, truth: arrays, tensors, lists or numbers of one shape, in one unit; std > 0.

    Returns:
        "rmse", root mean square error of the mean, and "crps", continuous ranked probability score,
        in that unit; "nll", negative log density of the truth, in nats (log of the unit);
        "coverage", the fraction of truths inside the central interval of probability 0.9.

    Raises:
        TypeError: for what is not made of numbers.
        ValueError: for shapes that differ, nothing at all, a mean or truth that is not finite, or a
            std that is not positive and finite.

    Source: Gneiting and Raftery (2007), section 4.2 for the CRPS of a Gaussian. Complexity: O(n).

    >>> perfect = scores([0.0, 0.0, 0.0, 0.0], np.ones(4), np.array([-1.0, 0.0, 1.0, 2.0]))
    >>> {name: round(value, 3) for name, value in perfect.items()}
    {'rmse': 1.225, 'nll': 1.669, 'crps': 0.723, 'coverage': 0.75}
    """
    mean, std, truth = (
        as_array(part, name) for part, name in ((mean, "mean"), (std, "std"), (truth, "truth"))
    )
    if not mean.shape == std.shape == truth.shape or not mean.size or not (std > 0).all():
        raise ValueError(
            "expected three arrays of one shape, std > 0; got "
            f"{mean.shape}, {std.shape}, {truth.shape}"
        )
    if not all(np.isfinite(part).all() for part in (mean, std, truth)):
        raise ValueError("expected finite numbers, got NaN or infinity: choose the rows first")
    z = (truth - mean) / std
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    crps = std * (
        z * torch.special.erf(torch.from_numpy(np.atleast_1d(z / math.sqrt(2)))).numpy()
        + 2 * density
        - 1 / math.sqrt(math.pi)
    )
    return {
        "rmse": float(np.sqrt(np.mean((truth - mean) ** 2))),
        "nll": float(np.mean(z**2 / 2 + np.log(std) + math.log(2 * math.pi) / 2)),
        "crps": float(crps.mean()),
        "coverage": float(np.mean(np.abs(z) < 1.6448536269514722)),  # the normal quantile at 0.95
    }


def crps_samples(samples: Any, truth: Any) -> np.ndarray:
    """The continuous ranked probability score of an ensemble: E|X - y| - E|X - X'| / 2.

    The fair estimator: pairs of one member with itself are left out, so that in expectation it is
    the score of the distribution the members are drawn from, whatever their number.

    Args:
        samples: (M, ...), M members, at least 2, independent draws of one predictive distribution.
        truth: (...), in one unit with them.

    Returns:
        (...) float64, in that unit; a single one may be negative.

    Raises:
        TypeError: for what is not made of numbers.
        ValueError: for fewer than two members, shapes that do not fit, or what is not finite.

    Source: Ferro (2014), Fair scores for ensemble forecasts; the sum over pairs from the sorted
    members, Hersbach (2000). Complexity: O(M log M) a truth.

    >>> crps_samples([[0.0], [1.0], [2.0]], [1.0])
    array([0.])
    >>> float(crps_samples(np.random.default_rng(0).standard_normal(100_000), 0.0).round(3))
    0.234
    """
    samples, truth = _ensemble(samples, truth)
    members = len(samples)
    samples = np.sort(samples, axis=0)
    # of all pairs i < j the sum of x_j - x_i: the k-th is the larger of k pairs, the smaller of the
    # others
    rank = np.arange(members).reshape(-1, *[1] * truth.ndim)
    pairs = ((2 * rank - members + 1) * samples).sum(0)
    return np.abs(samples - truth).mean(0) - pairs / (members * (members - 1))


def sample_scores(samples: Any, truth: Any) -> dict[str, float]:
    """Error and calibration of an ensemble, averaged over all truths: `scores` for samples.

    Args:
        samples: (M, ...), M members, at least 19: with fewer no interval holds 0.9.
        truth: (...), at least one number.

    Returns:
        "rmse" of the ensemble's mean, "crps" by `crps_samples`, and "coverage", the fraction of
        truths between the quantiles 0.05 and 0.95, taken at (M + 1) p, so that 0.9 is expected of a
        right ensemble of any size.

    Raises:
        TypeError, ValueError: as `crps_samples`.

    Complexity: O(M log M) a truth.

    >>> draws = np.random.default_rng(0).standard_normal((101, 2000))
    >>> {name: round(value, 2) for name, value in sample_scores(draws[1:], draws[0]).items()}
    {'rmse': 1.01, 'crps': 0.57, 'coverage': 0.9}
    """
    samples, truth = _ensemble(samples, truth)
    if len(samples) < 19 or not truth.size:
        raise ValueError(
            f"expected at least 19 members and one truth, got {len(samples)} and {truth.size}"
        )
    low, high = np.quantile(samples, [0.05, 0.95], axis=0, method="weibull")
    return {
        "rmse": float(np.sqrt(np.mean((samples.mean(0) - truth) ** 2))),
        "crps": float(crps_samples(samples, truth).mean()),
        "coverage": float(np.mean((low < truth) & (truth < high))),
    }


def _ensemble(samples: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    samples, truth = as_array(samples, "samples"), as_array(truth, "truth")
    if samples.shape[1:] != truth.shape or samples.ndim == 0 or len(samples) < 2:
        raise ValueError(
            f"expected samples (M, ...), M >= 2, and truth (...); got {samples.shape} and "
            f"{truth.shape}"
        )
    if not (np.isfinite(samples).all() and np.isfinite(truth).all()):
        raise ValueError("expected finite numbers, got NaN or infinity: choose the rows first")
    return samples, truth
