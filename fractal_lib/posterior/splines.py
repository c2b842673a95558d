"""Smoothing splines of the observations, as a posterior reads them (chapter
``posterior/irregular``).
"""

from typing import Any

import torch
from torch import Tensor

from fractal_lib.posterior.features import levels_of
from fractal_lib.posterior.gaps import WIDTHS, Gaps
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.posterior.reader import Features, Reader
from fractal_lib.posterior.smoothing import SplineLadder

__all__ = ["LEVELS", "DataSplines"]

LEVELS = 6  # as many are read by default: smoothing lengths from half a gap to 16


class DataSplines(Reader):
    """Smoothing splines of the data on every scale, `SplineLadder`, read at t; and how far the
    observations around t are, `Gaps`.

    Args:
        data: `Observations`.
        levels: number of levels, of those that n has; default at most 6.
        gaps, n, per_channel: as in `Reader`; with ``gaps`` the distance is told too.

    Attributes:
        out_features: F = 2 X L, with ``gaps`` 3 for each group more.

    Raises:
        TypeError, ValueError: as `Reader`; for more levels than n has.

    Complexity: O(S (N + n) X) once; then O(L X) a time, and with gaps O(log N).

    >>> data = Observations(torch.randn(5, 41, 2))
    >>> DataSplines(data).read([0, 4], torch.rand(2, 7)).value.shape
    torch.Size([2, 7, 24])
    """

    def __init__(
        self,
        data: Observations,
        levels: int | None = None,
        gaps: bool | None = None,
        *,
        n: int | None = None,
        per_channel: bool | None = None,
    ):
        super().__init__(as_observations(data), n, gaps, per_channel)
        values, observed, times = self.tables()
        rows = torch.arange(data.n, dtype=torch.float64, device=values.device)
        place = rows.expand(len(values), -1) if times is None else times * (self.n - 1)
        levels = levels_of(self.n, levels, LEVELS)
        self.splines = SplineLadder(values, observed, place, self.n, levels)
        self.distances = Gaps(place, observed)
        self.out_features = self.groups * (self.splines.out_features + self.gaps * len(WIDTHS))

    def spread(self, series: Any, t: Any) -> Tensor:
        """log(1 + h) at t (B, Q) of series (B,), see `Gaps`; one of a series or of each channel:
        (B, Q, 1 or X) float64.
        """
        h, _ = self.distances.spread(*self._grouped(series, t))  # (B G, Q, 1)
        return torch.log1p(h).unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(-2)

    def _read(self, series: Tensor, x: Tensor) -> Features:
        value, slope = self.splines.read(series, x)
        if self.gaps:
            far, far_dx = (part.to(value) for part in self.distances.read(series, x))
            value, slope = torch.cat([value, far], -1), torch.cat([slope, far_dx], -1)
        return Features(value, slope)
