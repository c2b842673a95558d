"""What posteriors q(z_t) = N(mean(t), std(t)^2) share, and what their networks are told of time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.posterior.observations import Observations

__all__ = ["Posterior", "TimeEmbedding"]


class TimeEmbedding(nn.Module):
    """What a network reads of the time t: t itself, and sines and cosines of known periods.

    Args:
        periods: in units of t, so that a year in a record of 44 years is 1 / 44.
        harmonics: how many of each period: the period itself, half of it, and so on.

    Attributes:
        out_features: numbers told.

    >>> value, slope = TimeEmbedding(periods=[0.5])(torch.tensor([0.125], dtype=torch.float64))
    >>> [round(number, 3) for number in value[0].tolist()], [round(number, 3) for number in slope[0].tolist()]
    ([0.125, 1.0, 0.0], [1.0, 0.0, -12.566])
    """

    def __init__(self, periods: Sequence[float] = (), harmonics: int = 1):
        super().__init__()
        if any(not p > 0 for p in periods) or harmonics < 1:
            raise ValueError(
                f"expected periods > 0 and harmonics >= 1, got {periods=}, {harmonics=}"
            )
        angular = [2 * torch.pi * k / p for p in periods for k in range(1, harmonics + 1)]
        self.rate: Tensor
        self.register_buffer("rate", torch.tensor(angular, dtype=torch.float64))
        self.out_features = 1 + 2 * len(angular)

    def forward(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Values and derivatives in t, (..., out_features) each, in ``dtype`` or that of t."""
        dtype, t = dtype or t.dtype, t.double().unsqueeze(-1)
        rate = self.rate.double()  # a model cast to float32 casts its buffers
        sin, cos = (rate * t).sin(), (rate * t).cos()
        value = torch.cat([t, sin, cos], -1)
        return value.to(dtype), torch.cat([torch.ones_like(t), rate * cos, -rate * sin], -1).to(
            dtype
        )


class Posterior(nn.Module):
    """Base of every posterior: prepare a data set once, then answer (series, t) with `Marginals`.

    A subclass defines ``forward(prepared, series, t) -> Marginals`` for series (B,) int64 and t
    (B, Q) in [0, 1], and ``prepare(data)``, which must not depend on parameters: it is called once
    for many steps. What it returns is ``data`` itself, or has it as an attribute ``data``.
    """

    def prepare(self, data: Observations) -> Any:
        """What `forward` takes as its first argument."""
        raise NotImplementedError
