"""How good a Gaussian prediction was."""

import math

import numpy as np
import torch

__all__ = ["scores"]


def scores(mean: np.ndarray, sd: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Error and honesty of Gaussian predictions, averaged over all of them.

    Args:
        mean, sd, truth: of one shape, in one unit; sd > 0.

    Returns:
        "rmse", root mean square error of the mean, and "crps", continuous ranked probability score,
        in that unit; "nll", negative log density of the truth, in nats (log of the unit);
        "coverage", the share of truths inside the central interval that should hold 0.9 of them.

    Raises:
        ValueError: for shapes that differ, nothing at all, or a spread that is not positive.

    Source: Gneiting and Raftery (2007), equation 21 for the CRPS of a Gaussian. Complexity: O(n).

    >>> perfect = scores(np.zeros(4), np.ones(4), np.array([-1.0, 0.0, 1.0, 2.0]))
    >>> {name: round(value, 3) for name, value in perfect.items()}
    {'rmse': 1.225, 'nll': 1.669, 'crps': 0.723, 'coverage': 0.75}
    """
    mean, sd, truth = (np.asarray(part, dtype=np.float64) for part in (mean, sd, truth))
    if not mean.shape == sd.shape == truth.shape or not mean.size or not (sd > 0).all():
        raise ValueError(
            f"expected three arrays of one shape, sd > 0; got {mean.shape}, {sd.shape}, {truth.shape}"
        )
    z = (truth - mean) / sd
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    crps = sd * (
        z * torch.special.erf(torch.as_tensor(z / math.sqrt(2))).numpy()
        + 2 * density
        - 1 / math.sqrt(math.pi)
    )
    return {
        "rmse": float(np.sqrt(np.mean((truth - mean) ** 2))),
        "nll": float(np.mean(z**2 / 2 + np.log(sd) + math.log(2 * math.pi) / 2)),
        "crps": float(crps.mean()),
        "coverage": float(np.mean(np.abs(z) < 1.6448536269514722)),  # the normal quantile at 0.95
    }
