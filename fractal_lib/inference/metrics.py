"""How good a Gaussian prediction was."""

import math
from typing import Any

import numpy as np
import torch

from fractal_lib.inference.series import as_array

__all__ = ["scores"]


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

    Source: Gneiting and Raftery (2007), equation 21 for the CRPS of a Gaussian. Complexity: O(n).

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
