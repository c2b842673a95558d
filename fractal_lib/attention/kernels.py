"""Kernels k(d): how much a row at distance d counts; and the smooth step that cuts them into pieces."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """A kernel that falls with distance, k(0) = 1: the base of those below.

    Args:
        width: length scale, positive, in ``unit``.
        unit: ``"samples"`` (1 is the distance of two neighbouring rows) or ``"time"`` (1 is the whole
            of [0, 1], that is n - 1 samples).

    Raises:
        ValueError: for a width that is not positive and finite, or an unknown unit.

    A kernel is called with distances in *samples* and the number of rows: ``kernel(d, n)``.
    ``kernel.log(d, n)`` is its logarithm and ``kernel.dlog(d, n)`` the derivative of that in d.
    """

    width: float = 1.0
    unit: str = "samples"

    def __post_init__(self):
        if self.unit not in ("samples", "time"):
            raise ValueError(f'unit must be "samples" or "time", got {self.unit!r}')
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"width must be positive and finite, got {self.width}")

    def samples(self, n: int) -> float:
        """The width in samples, for n rows."""
        return self.width * (max(n - 1, 1) if self.unit == "time" else 1)

    def log(self, d: Tensor, n: int) -> Tensor:
        """Log k at distance d (samples, any shape), for n rows."""
        return self._log(d / self.samples(n))

    def dlog(self, d: Tensor, n: int) -> Tensor:
        """Derivative of log k with respect to d, per sample."""
        return self._dlog(d / self.samples(n)) / self.samples(n)

    def __call__(self, d: Tensor, n: int) -> Tensor:
        """K at distance d (samples, any shape), for n rows."""
        return self.log(d, n).exp()


@dataclass(frozen=True)
class Gaussian(Kernel):
    """exp(-(d / width)^2 / 2).

    >>> Gaussian(2.0)(torch.tensor([0.0, 2.0]), n=100)
    tensor([1.0000, 0.6065])
    """

    def _log(self, u):
        return -u.square() / 2

    def _dlog(self, u):
        return -u


@dataclass(frozen=True)
class OriginalKernel(Gaussian):
    """The kernel of SDE Matching's posterior: exp(-(l (ts - t))^2) with l = n, ts = linspace(0, 1, n).

    In samples its standard deviation is (n - 1) / n / sqrt(2), whatever n is: it sees six rows.
    Source: Bartosh, Vetrov and Naesseth (2025), public notebook; chapter ``start/dense_attention``.

    >>> OriginalKernel()(torch.tensor([0.0, 1.0]), n=10**6)
    tensor([1.0000, 0.3679])
    """

    def samples(self, n: int) -> float:
        """(n - 1) / n / sqrt(2)."""
        return max(n - 1, 1) / n / math.sqrt(2)


@dataclass(frozen=True)
class PowerLaw(Kernel):
    """(1 + (d / width)^2)^(-exponent / 2): a heavy tail, d^-exponent far away.

    >>> PowerLaw(1.0, exponent=1.0)(torch.tensor([0.0, 100.0]), n=1000)
    tensor([1.0000, 0.0100])
    """

    exponent: float = 1.0

    def _log(self, u):
        return -self.exponent / 2 * torch.log1p(u.square())

    def _dlog(self, u):
        return -self.exponent * u / (1 + u.square())


@dataclass(frozen=True)
class Cauchy(PowerLaw):
    """1 / (1 + (d / width)^2).

    >>> Cauchy(3.0)(torch.tensor([0.0, 3.0]), n=10)
    tensor([1.0000, 0.5000])
    """

    exponent: float = 2.0


@dataclass(frozen=True)
class Exponential(Kernel):
    """exp(-|d| / width). It has a kink at 0, so m(t) is only continuous where t meets a row.

    >>> Exponential(1.0)(torch.tensor([0.0, -1.0]), n=10)
    tensor([1.0000, 0.3679])
    """

    def _log(self, u):
        return -u.abs()

    def _dlog(self, u):
        return -u.sign()


def smooth_step(u: Tensor) -> Tensor:
    """1 for |u| <= 1/2, 0 for |u| >= 1, and C^3 between (a polynomial of degree seven).

    >>> smooth_step(torch.tensor([0.5, 0.75, 1.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    s = (2 * u.abs() - 1).clamp(0, 1)
    return 1 - s**4 * (35 + s * (-84 + s * (70 - 20 * s)))


def smooth_step_slope(u: Tensor) -> Tensor:
    """The derivative of `smooth_step`.

    >>> smooth_step_slope(torch.tensor([0.5, 0.75, 1.0]))
    tensor([-0.0000, -4.3750, -0.0000])
    """
    s = (2 * u.abs() - 1).clamp(0, 1)
    return -280 * (s * (1 - s)) ** 3 * u.sign()
