"""Kernels k(d): how much a row at distance d counts; and the smooth step that cuts them into
pieces.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fractal_lib.checks import as_positive

__all__ = [
    "RBF",
    "Kernel",
    "Matern12",
    "OriginalKernel",
    "RationalQuadratic",
    "as_kernel",
    "smooth_step",
    "smooth_step_slope",
]


class Kernel(nn.Module):
    """A kernel that falls with distance, k(0) = 1: the base of those below.

    Args:
        lengthscale: positive, in ``unit``.
        unit: ``"samples"`` (1 is the distance of two neighbouring rows) or ``"time"`` (1 is the
            whole of [0, 1], that is n - 1 samples).
        learnable: whether the length scale (and alpha, if there is one) is trained: then it is the
            softplus of the parameter ``raw_lengthscale`` (``raw_alpha``), a float32 scalar. Every
            attention sees the kernel as it is now.

    Raises:
        ValueError: for a length scale that is not positive and finite, or an unknown unit.

    A kernel is called with distances in *samples* and the number of rows: ``kernel(d, n)``.
    ``kernel.log(d, n)`` is its logarithm and ``kernel.dlog(d, n)`` the derivative of that in d.
    Names, forms and raw parameters are those of GPyTorch. Source: Rasmussen and Williams (2006),
    chapter 4.

    >>> RBF(2.0)
    RBF(lengthscale=2)
    >>> [name for name, _ in RBF(2.0, learnable=True).named_parameters()]
    ['raw_lengthscale']
    """

    def __init__(self, lengthscale: float = 1.0, unit: str = "samples", *, learnable: bool = False):
        super().__init__()
        self._start: dict[str, float] = {}
        if unit not in ("samples", "time"):
            raise ValueError(f'unit must be "samples" or "time", got {unit!r}')
        self.unit, self.learnable = unit, learnable
        self._keep("lengthscale", lengthscale)

    def _keep(self, name: str, value: float) -> None:
        """A positive number: a constant in full precision, or a parameter."""
        value = as_positive(value, name)
        if self.learnable:
            self._start[name] = value = float(value)
            raw = torch.tensor(_inverse_softplus(value), dtype=torch.float32)
            setattr(self, f"raw_{name}", nn.Parameter(raw))
        else:
            setattr(self, f"_{name}", float(value))

    def reset_parameters(self) -> None:
        """The values that it was made with, where they are parameters."""
        with torch.no_grad():
            for name, value in self._start.items():
                getattr(self, f"raw_{name}").fill_(_inverse_softplus(value))

    def _kept(self, name: str) -> float | Tensor:
        if self.learnable:
            return softplus(getattr(self, f"raw_{name}").double())
        return getattr(self, f"_{name}")

    def _now(self, name: str) -> float:
        value = self._kept(name)
        return float(value.detach() if isinstance(value, Tensor) else value)

    @property
    def lengthscale(self) -> float | Tensor:
        """The length scale as it is now, in ``unit``: a float, or () float64 if it is learnable."""
        return self._kept("lengthscale")

    def samples(self, n: int) -> float | Tensor:
        """The length scale in samples, for n rows."""
        return self.lengthscale * (max(n - 1, 1) if self.unit == "time" else 1)

    def log(self, d: Tensor, n: int) -> Tensor:
        """Log k at distance d (samples, any shape), for n rows."""
        return self._log(d / self.samples(n))

    def dlog(self, d: Tensor, n: int) -> Tensor:
        """Derivative of log k with respect to d, per sample."""
        return self._dlog(d / self.samples(n)) / self.samples(n)

    def forward(self, d: Tensor, n: int) -> Tensor:
        """K at distance d (samples, any shape), for n rows."""
        return self.log(d, n).exp()

    def state(self) -> tuple:
        """All that decides its values, as numbers: equal states are equal kernels."""
        return type(self), self.unit, *(self._now(name) for name in self._names())

    def _names(self) -> tuple[str, ...]:
        return ("lengthscale",)

    def _log(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _log(u)")

    def _dlog(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _dlog(u)")

    def extra_repr(self) -> str:
        """The numbers that decide it."""
        words = [f"{name}={self._now(name):.6g}" for name in self._names()]
        words += [f"unit={self.unit!r}"] * (self.unit != "samples")
        return ", ".join(words + ["learnable=True"] * self.learnable)


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def as_kernel(kernel: Kernel | None) -> Kernel:
    """The kernel, or the original one for None.

    Raises:
        TypeError: for anything else.

    >>> as_kernel(None)
    OriginalKernel()
    """
    if kernel is None:
        return OriginalKernel()
    if not isinstance(kernel, Kernel):
        got = kernel.__name__ + " itself" if isinstance(kernel, type) else type(kernel).__name__
        raise TypeError(f"kernel must be a Kernel, RBF(2.0) for instance, got {got}")
    return kernel


class RBF(Kernel):
    """exp(-(d / lengthscale)^2 / 2): the Gaussian, or squared exponential, kernel.

    >>> RBF(2.0)(torch.tensor([0.0, 2.0]), n=100)
    tensor([1.0000, 0.6065])
    """

    def _log(self, u):
        return -u.square() / 2

    def _dlog(self, u):
        return -u


class OriginalKernel(RBF):
    """The kernel of SDE Matching's posterior: exp(-(l (ts - t))^2), l = n, ts = linspace(0, 1, n).

    In samples its standard deviation is (n - 1) / n / sqrt(2), whatever n is: it sees six rows.
    Source: Bartosh, Vetrov and Naesseth (2025), public notebook; chapter ``start/dense_attention``.

    >>> OriginalKernel()(torch.tensor([0.0, 1.0]), n=10**6)
    tensor([1.0000, 0.3679])
    """

    def __init__(self):
        super().__init__()

    def samples(self, n: int) -> float:
        """(n - 1) / n / sqrt(2)."""
        return max(n - 1, 1) / n / math.sqrt(2)

    def _names(self) -> tuple[str, ...]:
        return ()


class RationalQuadratic(Kernel):
    """(1 + (d / lengthscale)^2 / (2 alpha))^-alpha: a power law, d^(-2 alpha) far away.

    With alpha = 1 it is the Cauchy kernel, with alpha = 1/2 it falls as 1 / d.

    Args:
        alpha: positive; the smaller, the heavier the tail.
        lengthscale, unit, learnable: as in `Kernel`.

    >>> RationalQuadratic(1.0, alpha=0.5)(torch.tensor([0.0, 100.0]), n=1000)
    tensor([1.0000, 0.0100])
    """

    def __init__(
        self,
        lengthscale: float = 1.0,
        alpha: float = 1.0,
        unit: str = "samples",
        *,
        learnable: bool = False,
    ):
        super().__init__(lengthscale, unit, learnable=learnable)
        self._keep("alpha", alpha)

    @property
    def alpha(self) -> float | Tensor:
        """Half the power of the tail, as it is now: a float, or () float64 if it is learnable."""
        return self._kept("alpha")

    def _names(self) -> tuple[str, ...]:
        return ("lengthscale", "alpha")

    def _log(self, u):
        return -self.alpha * torch.log1p(u.square() / (2 * self.alpha))

    def _dlog(self, u):
        return -u / (1 + u.square() / (2 * self.alpha))


class Matern12(Kernel):
    """exp(-|d| / lengthscale): the exponential kernel, Matern with nu = 1/2.

    It has a kink at 0, so m(t) is only continuous where t meets a row.

    >>> Matern12(1.0)(torch.tensor([0.0, -1.0]), n=10)
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
