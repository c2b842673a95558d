"""What all readers of a data set share: series, times, channels that are read by themselves."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention.base import position
from fractal_lib.checks import as_int
from fractal_lib.posterior.base import as_times
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["Features", "Reader"]


class Features(NamedTuple):
    """What is read at t, and its derivative in t: (B, Q, F) both."""

    value: Tensor
    slope: Tensor


class Reader:
    """A data set, prepared once, to be read at any times.

    A subclass defines ``_read(series, x) -> Features``, slopes per row, and ``_out_features``.

    Args:
        data: `Observations`.
        n: rows of the grid; for times of their own any number, default the rows of ``data``.
        gaps: whether what is missing is told; default whether ``data`` has a mask or times of its
            own.
        per_channel: whether each channel is read as a series of its own; default whether single
            channels are missing.

    Attributes:
        data: what it was made from.
        n: rows of the grid.
        groups: of channels that are read by themselves: 1, or X.
        out_features: F, numbers in a feature vector.

    Raises:
        TypeError: for data that are not `Observations`. ValueError: for an even grid of another n,
            or single channels missing that are to be read together.
    """

    def __init__(
        self,
        data: Observations,
        n: int | None,
        gaps: bool | None,
        per_channel: bool | None,
    ):
        self.data = as_observations(data)
        self.n = data.n if n is None else as_int(n, "n", least=1)
        if data.t is None and self.n != data.n:
            raise ValueError(f"expected n = {data.n}, the rows of an even grid, got {n}")
        masked = data.observed is not None and data.observed.dim() == 3
        if masked and per_channel is False:
            raise ValueError("single channels are missing: expected per_channel=True, got False")
        self.groups = data.channels if masked or per_channel else 1
        known = data.observed is not None or data.t is not None
        self.gaps = known if gaps is None else bool(gaps)
        self.out_features = 0

    def tables(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Values (S, N, X), mask and times (S, N); with groups each channel is a series."""
        data, groups = self.data, self.groups
        values, observed, times = data.values, data.observed, data.t
        if groups == 1:
            return values, observed, times
        if observed is not None and observed.dim() == 2:
            observed = observed.unsqueeze(-1).expand_as(values)
        values, observed = (
            None if part is None else part.transpose(1, 2).flatten(0, 1)
            for part in (values, observed)
        )
        times = None if times is None else times.repeat_interleave(groups, 0)
        assert values is not None
        return values.unsqueeze(-1), observed, times

    def read(self, series: Any, t: Any) -> Features:
        """What there is at t (B, Q) of series (B,), and its derivative in t.

        Raises:
            TypeError, ValueError: for series or times that do not fit.
        """
        series, x = self._grouped(series, t)
        value, slope = self._read(series, x)
        if self.groups > 1:
            value, slope = (
                part.unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(-2)
                for part in (value, slope)
            )
        return Features(value, slope * (self.n - 1))  # from rows to t

    def _read(self, series: Tensor, x: Tensor) -> Features:
        raise NotImplementedError

    def _grouped(self, series: Any, t: Any) -> tuple[Tensor, Tensor]:
        """Series and positions of every group of channels, (B G,) and (B G, Q)."""
        index, groups = self.data.series_index(series), self.groups
        x = position(as_times(t, index), self.n)
        if groups == 1:
            return index, x
        every = torch.arange(groups, device=index.device)
        return (index.unsqueeze(1) * groups + every).flatten(), x.repeat_interleave(groups, 0)
