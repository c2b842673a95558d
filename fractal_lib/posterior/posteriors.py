"""Posteriors z_t = m(t) + s(t) eps: what they share, and the recurrent one."""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.posterior.context import Observations
from fractal_lib.posterior.heads import Paths, PosteriorAffine


class Clock(nn.Module):
    """What a network is told of the time t: t itself, and sines and cosines of known periods.

    Args:
        periods: in units of t, so that a year in a record of 44 years is 1 / 44.
        harmonics: how many of each period: the period itself, half of it, and so on.

    Attributes:
        size: numbers told.

    >>> value, slope = Clock(periods=[0.5])(torch.tensor([0.125], dtype=torch.float64))
    >>> [round(number, 3) for number in value[0].tolist()], [round(number, 3) for number in slope[0].tolist()]
    ([0.125, 1.0, 0.0], [1.0, 0.0, -12.566])
    """

    def __init__(self, periods: list[float] | tuple[float, ...] = (), harmonics: int = 1):
        super().__init__()
        if any(not p > 0 for p in periods) or harmonics < 1:
            raise ValueError(f"expected periods > 0 and harmonics >= 1, got {periods=}, {harmonics=}")
        rate = [2 * torch.pi * k / p for p in periods for k in range(1, harmonics + 1)]
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float64))
        self.size = 1 + 2 * len(rate)

    def forward(self, t: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Values and derivatives in t, (..., size) each, in ``dtype`` or that of t."""
        dtype, t = dtype or t.dtype, t.double().unsqueeze(-1)
        rate = self.rate.double()  # a model cast to float32 casts its buffers
        sin, cos = (rate * t).sin(), (rate * t).cos()
        value = torch.cat([t, sin, cos], -1)
        return value.to(dtype), torch.cat([torch.ones_like(t), rate * cos, -rate * sin], -1).to(dtype)


class Posterior(nn.Module):
    """Base of every posterior: prepare a data set once, then answer (series, t) with `Paths`.

    A subclass defines ``forward(context, series, t) -> Paths`` for series (B,) int64 and t (B, Q) in [0, 1], and
    ``prepare(data)``, which must not depend on parameters: it is called once for many steps.
    """

    def prepare(self, data: Observations) -> Any:
        """What `forward` takes as its context."""
        raise NotImplementedError


class RecurrentPosterior(Posterior):
    """A GRU over the whole series at every step, and a head that reads its states at t: the original.

    Args:
        head: a `PosteriorAffine` of any attention.
        channels: X.
        gaps: True if rows may be missing: a channel that says so is added.

    Complexity: O(B N H^2) a step, sequential in N, whatever the head costs. Source: Bartosh, Vetrov and Naesseth
    (2025), their public notebook; chapter ``posterior/latent_sde``.

    >>> posterior = RecurrentPosterior(PosteriorAffine(latent_size=3, hidden_size=16), channels=2)
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> posterior(posterior.prepare(data), torch.tensor([0, 4]), torch.rand(2, 7)).m.shape
    torch.Size([2, 7, 3])
    """

    def __init__(self, head: PosteriorAffine, channels: int, gaps: bool = False):
        super().__init__()
        self.head, self.gaps = head, gaps
        self.gru = nn.GRU(channels + gaps, head.hidden_size, batch_first=True)

    def prepare(self, data: Observations) -> Observations:
        """The data as they are: a recurrent encoder has nothing that outlives a step."""
        if data.observed is not None and not self.gaps:
            raise ValueError("the data have gaps: RecurrentPosterior(..., gaps=True)")
        if data.channels + self.gaps != self.gru.input_size:
            raise ValueError(f"expected {self.gru.input_size - self.gaps} channels, got {data.channels}")
        return data

    def encode(self, data: Observations, series: Tensor) -> Tensor:
        """The context (B, 1 + N, H) of some series: the last state as header, then every state."""
        x = data.values[series]
        if self.gaps:
            there = torch.ones_like(x[..., :1]) if data.observed is None else data.observed[series].unsqueeze(-1).to(x)
            x = torch.cat([x, there], -1)
        states, last = self.gru(x)
        return torch.cat([last[0].unsqueeze(1), states], 1)

    def forward(self, context: Observations, series: Tensor, t: Tensor) -> Paths:
        """Mean and spread, and their derivatives, at t (B, Q) of series (B,): one encoding and one read."""
        return self.head.get_paths(self.encode(context, series), t)
