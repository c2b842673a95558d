"""What posteriors q(z_t) = N(mean(t), std(t)^2) share, and what their networks read of time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fractal_lib.checks import as_float, as_int, as_positive
from fractal_lib.posterior.observations import Observations

__all__ = ["Posterior", "TimeEmbedding", "as_times"]


class TimeEmbedding(nn.Module):
    """What a network reads of the time t: t itself, and sines and cosines of known periods.

    Args:
        periods: in units of t, so that a year in a record of 44 years is 1 / 44; one or many.
        harmonics: how many of each period: the period itself, half of it, and so on.

    Attributes:
        out_features: 1 + 2 harmonics a period, and t itself: 1 + 2 len(periods) harmonics.

    Raises:
        TypeError, ValueError: for a period that is not a positive number, or harmonics below 1.

    Complexity: O(out_features) a time.

    >>> value, slope = TimeEmbedding(periods=[0.5])(torch.tensor([0.125], dtype=torch.float64))
    >>> value.round(decimals=3).tolist()
    [[0.125, 1.0, 0.0]]
    >>> slope.round(decimals=3).tolist()
    [[1.0, 0.0, -12.566]]
    """

    def __init__(
        self,
        periods: Sequence[float] | float = (),
        harmonics: int = 1,
        *,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        harmonics = as_int(harmonics, "harmonics", least=1)
        many = np.ravel(np.asarray(periods))
        self.periods, self.harmonics = [as_positive(p, "periods") for p in many], harmonics
        self.out_features = 1 + 2 * len(self.periods) * harmonics
        self.rate: Tensor
        size = len(self.periods) * harmonics
        self.register_buffer("rate", torch.empty(size, dtype=torch.float64, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The angular frequencies again, after `torch.nn.Module.to_empty`."""
        angular = [2 * torch.pi * k / p for p in self.periods for k in range(1, self.harmonics + 1)]
        self.rate.copy_(torch.tensor(angular, dtype=torch.float64))

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again: what `save_model` keeps."""
        return {"periods": self.periods, "harmonics": self.harmonics}

    def extra_repr(self) -> str:
        """What it reads."""
        return f"periods={self.periods}, harmonics={self.harmonics}"

    def forward(self, t: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Values and derivatives in t, (..., out_features) each, in ``dtype`` or that of t."""
        t = as_float(t, "t")
        dtype, t = dtype or t.dtype, t.double().unsqueeze(-1)
        rate = self.rate.double()  # a model cast to float32 casts its buffers
        sin, cos = (rate * t).sin(), (rate * t).cos()
        value = torch.cat([t, sin, cos], -1)
        slope = torch.cat([torch.ones_like(t), rate * cos, -rate * sin], -1)
        return value.to(dtype), slope.to(dtype)


class Posterior(nn.Module):
    """Base of every posterior: prepare a data set once, then answer (series, t) with `Marginals`.

    A subclass defines ``forward(prepared, series, t) -> Marginals`` for series (B,) int64 and t
    (B, Q) in [0, 1], and ``prepare(data)``, which must not depend on parameters: it is called once
    for many steps. What it returns is ``data`` itself, or has it as an attribute ``data``.
    """

    def prepare(self, data: Observations) -> Any:
        """What `forward` takes as its first argument."""
        raise NotImplementedError


def as_times(t: Any, series: Tensor) -> Tensor:
    """Times (B, Q) of series (B,), floating point, on the same device.

    Raises:
        TypeError: if t is not floating point. ValueError: for another shape.
    """
    t = as_float(t, "t").to(series.device)
    if t.dim() != 2 or len(t) != len(series):
        raise ValueError(f"expected t (B, Q) with B = {len(series)}, got {tuple(t.shape)}")
    return t
