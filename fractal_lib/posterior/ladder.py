"""A posterior without recurrence: it reads the observations' own pyramid (chapter ``posterior/latent_sde``)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention.cells import Cells, all_levels, strides
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import position
from fractal_lib.curves.cantor import bspline_weights, ladder
from fractal_lib.posterior.context import Observations
from fractal_lib.posterior.heads import Paths, affine_net, push_forward
from fractal_lib.posterior.posteriors import Clock, Posterior

FILL = 0.05  # how much a missing row counts, with the value of the level above


class Features(NamedTuple):
    """What is read at t, and its derivative in t: (B, Q, F) both."""

    value: Tensor
    slope: Tensor


class DataPyramid:
    """The pyramid of a data set, built once, and what is read from it.

    Args:
        data: `Observations`.
        levels: number of levels; default all.

    Attributes:
        size: F, numbers in a feature vector: 2 X a level, 2 X + 1 if there are gaps.

    Source: chapters ``attention/fractal`` and ``posterior/latent_sde``. Complexity: O(S N X) once, then O(log N) a
    time.
    """

    def __init__(self, data: Observations, levels: int | None = None):
        levels = all_levels(data.n) if levels is None else min(levels, all_levels(data.n))
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        pyramid = Pyramid(data.values, data.observed, levels=levels)
        self.cells = Cells(data.n, levels)  # as if complete: tells what is missing
        self.rows = pyramid.rows.flatten(0, 1)  # (S P, X)
        self.counts = None if pyramid.cells.counts is None else pyramid.cells.counts.flatten()  # (S P,)
        self.packed = pyramid.rows.shape[1]
        self.size = _size(data, levels)

    def read(self, series: Tensor, t: Tensor) -> Features:
        """Value and slope of every level at t (B, Q) of series (B,), and how much of it was observed.

        On level k the value is a mean under the B-spline of width 2^k, and the slope its derivative in units of that
        width. Where rows are missing, the level above stands in for them with a small weight, so that a gap is
        filled smoothly.
        """
        levels = self.cells.levels
        stride = strides(levels, t.device)  # (L,)
        x = position(t, self.cells.n)
        rung, fraction = ladder(x.unsqueeze(-1) + (1 - stride) / 2.0, stride)  # (B, Q, L, 4), (B, Q, L)
        weight = torch.stack([bspline_weights(fraction, order) for order in (0, 1, 2)], -2)  # (B, Q, L, 3, 4)
        level = torch.arange(levels, device=t.device).unsqueeze(-1).expand(-1, 4).flatten()
        index, full = self.cells.look(level, rung.flatten(-2))  # (B, Q, 4 L)
        index = index + (series * self.packed)[:, None, None]
        share = (full / stride[level]).unflatten(-1, (levels, 4))
        dtype = self.rows.dtype
        rows = self.rows[index].unflatten(-2, (levels, 4))  # (B, Q, L, 4, X)
        if self.counts is None:
            value, slope = _ratio((weight * share.unsqueeze(-2)).to(dtype), rows)
            features = [value, slope[0]], slope
        else:
            there = (self.counts[index].double() * (full > 0) / stride[level]).unflatten(-1, (levels, 4))
            features = _filled(
                (weight * there.unsqueeze(-2)).to(dtype), (weight * (share - there).unsqueeze(-2)).to(dtype), rows
            )
        per_t = ((self.cells.n - 1) / stride).to(dtype).unsqueeze(-1)  # from a cell's width to t
        value, slope = (torch.cat(part, -1) for part in features)  # (B, Q, L, 2 X [+ 1])
        return Features(value.flatten(-2), (slope * per_t).flatten(-2))


def _size(data: Observations, levels: int | None) -> int:
    has = all_levels(data.n)
    return min(has, levels or has) * (2 * data.channels + (data.observed is not None))


def _ratio(weight: Tensor, rows: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean of the rows under the weights and its first two derivatives, each (B, Q, L, X)."""
    a = (weight @ rows).unbind(-2)  # each (B, Q, L, X)
    b = weight.sum(-1, keepdim=True).unbind(-2)  # each (B, Q, L, 1)
    return _quotient(a, b)


def _quotient(a, b) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    value = a[0] / b[0]
    first = (a[1] - value * b[1]) / b[0]
    return value, (first, (a[2] - 2 * first * b[1] - value * b[2]) / b[0])


def _filled(there: Tensor, missing: Tensor, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The same where rows are missing, from the coarsest level down; and the share observed."""
    sums = there @ rows  # (B, Q, L, 3, X)
    there, missing = there.sum(-1, keepdim=True), missing.sum(-1, keepdim=True)  # (B, Q, L, 3, 1)
    share, (dshare, _) = _quotient(there.unbind(-2), (there + missing).unbind(-2))
    levels, above = [], None
    for k in reversed(range(sums.shape[2])):
        a, n, m = sums[:, :, k].unbind(-2), there[:, :, k].unbind(-2), missing[:, :, k].unbind(-2)
        if above is None:
            a, b = a, n
        else:
            v, dv, ddv = above[0], above[1][0] / 2, above[1][1] / 4  # a cell above is twice as wide
            b = [n[i] + FILL * m[i] for i in range(3)]
            a = (
                a[0] + FILL * m[0] * v,
                a[1] + FILL * (m[1] * v + m[0] * dv),
                a[2] + FILL * (m[2] * v + 2 * m[1] * dv + m[0] * ddv),
            )
        above = _quotient(a, b)
        levels.append(above)
    value, first, second = (
        torch.stack(part[::-1], 2) for part in zip(*((v, d, dd) for v, (d, dd) in levels), strict=True)
    )
    return [value, first, share], [first, second, dshare]


class LadderPosterior(Posterior):
    """A posterior that costs the same however long the series: it reads the observations, and encodes nothing.

    The value and the slope of the data at every scale around t, `DataPyramid.read`, go through the network of
    `PosteriorAffine`. There is no recurrence and no header. (m, s) is C^1 in t, and its derivative is exact.

    Args:
        data: `Observations` to be read (of a data set alike in n, channels and gaps, others may be read later).
        latent_size: Z.
        hidden_size: H.
        levels: number of scales; default all that n has.
        clock: what the network knows of the time; default t itself.
        init_logstd: log s before training.

    Complexity: O(log(N) X + H^2) a time, after O(S N X) once for a data set. Source: chapter
    ``posterior/latent_sde``.

    >>> data = Observations(torch.randn(5, 1000, 2))
    >>> posterior = LadderPosterior(data, latent_size=3, hidden_size=16)
    >>> paths = posterior(posterior.prepare(data), torch.tensor([0, 4]), torch.rand(2, 7))
    >>> paths.m.shape, paths.ds.shape
    (torch.Size([2, 7, 3]), torch.Size([2, 7, 3]))
    """

    def __init__(
        self,
        data: Observations,
        latent_size: int,
        hidden_size: int,
        levels: int | None = None,
        clock: Clock | None = None,
        init_logstd: float = -0.5,
    ):
        super().__init__()
        self.levels, self.clock = levels, clock or Clock()
        self.size = _size(data, levels)
        self.net = affine_net(self.size + self.clock.size, hidden_size, latent_size, init_logstd)

    def prepare(self, data: Observations) -> DataPyramid:
        """The data's pyramid: once for a data set."""
        pyramid = DataPyramid(data, self.levels)
        if pyramid.size != self.size:
            raise ValueError(f"this posterior reads {self.size} numbers at a time, the data give {pyramid.size}")
        return pyramid

    def forward(self, context: DataPyramid, series: Tensor, t: Tensor) -> Paths:
        """Mean and spread, and their derivatives, at t (B, Q) of series (B,)."""
        with torch.no_grad():  # the data do not change
            value, slope = context.read(series, t)
            time, dtime = self.clock(t, value.dtype)
        y, dy = push_forward(self.net, torch.cat([value, time], -1), torch.cat([slope, dtime], -1))
        return Paths.of(y, dy)
