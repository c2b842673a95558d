"""What the ladder posterior reads: the pyramid of the observations themselves (chapter
``posterior/latent_sde``).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention.base import no_autocast, position
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree, all_levels, strides
from fractal_lib.checks import as_int
from fractal_lib.curves.splines import bspline_weights, stencil
from fractal_lib.posterior.base import as_times
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["DataPyramid", "Features", "levels_of"]

FILL = 0.05  # how much a missing row counts, with the value of the level above


class Features(NamedTuple):
    """What is read at t, and its derivative in t: (B, Q, F) both."""

    value: Tensor
    slope: Tensor


def levels_of(n: int, levels: int | None) -> int:
    """A number of levels that n rows have; default all. Raises: ValueError for more."""
    has = all_levels(n)
    return has if levels is None else as_int(levels, "levels", least=1, most=has)


class DataPyramid:
    """The pyramid of a data set, built once, and what is read from it.

    Args:
        data: `Observations`.
        levels: number of levels, of those that n has; default all.
        gaps: whether the fraction observed is among the features; default whether ``data`` has a
            mask or times of its own.
        n: bins of level 0, for times of their own; default the rows of ``data``.
        causal: whether nothing after t is read.

    Attributes:
        data: what it was made from.
        out_features: F, numbers in a feature vector: 2 X a level, with ``gaps`` 2 X + 1 (and as
            many for each channel, where single channels are missing).

    Raises:
        TypeError: for data that are not `Observations`. ValueError: for more levels than n has, or
            an even grid of another n.

    Source: chapters ``attention/fractal`` and ``posterior/latent_sde``. Complexity: O(S N X) once,
    then O(log N) a time.
    """

    def __init__(
        self,
        data: Observations,
        levels: int | None = None,
        gaps: bool | None = None,
        *,
        n: int | None = None,
        causal: bool = False,
    ):
        n = as_observations(data).n if n is None else as_int(n, "n", least=1)
        if data.t is None and n != data.n:
            raise ValueError(f"expected n = {data.n}, the rows of an even grid, got {n}")
        levels = levels_of(n, levels)
        known = data.observed is not None or data.t is not None
        self.data, self.causal = data, bool(causal)
        self.gaps = known if gaps is None else bool(gaps)
        values, observed, times = _alike(data)
        bins = None if times is None else n
        pyramid = Pyramid(values, observed, times, bins=bins, levels=levels)
        self.tree = Tree(n, levels)  # as if complete: what is missing is the difference
        self.values = pyramid.values.flatten(0, 1)  # (S G P, X / G)
        counts = pyramid.tree.counts
        counts = None if counts is None else counts.expand(len(values), -1)
        self.counts = None if counts is None else counts.flatten()  # (S G P,)
        self.packed, self.groups = pyramid.values.shape[1], len(values) // len(data)
        self.out_features = levels * (2 * data.channels + self.groups * self.gaps)

    def read(self, series: Any, t: Any) -> Features:
        """Value and slope of every level at t (B, Q) of series (B,), and the fraction observed.

        On level k the value is a mean under the B-spline of width 2^k, and the slope its derivative
        in units of that width. Where rows are missing, the level above stands in for them with a
        small weight, so that a gap is filled smoothly.
        """
        series = self.data.series_index(series)
        t, groups = as_times(t, series), self.groups
        if groups > 1:  # each channel is a series of its own
            series = (series.unsqueeze(1) * groups + _count(groups, series)).flatten()
            t = t.repeat_interleave(groups, 0)
        features = self._read(series, t)
        if groups > 1:
            parts = (part.unflatten(0, (-1, groups)).transpose(1, 2) for part in features)
            features = Features(*(part.flatten(-2) for part in parts))
        return features

    def _read(self, series: Tensor, t: Tensor) -> Features:
        levels = self.tree.levels
        stride = strides(levels, t.device)  # (L,)
        # (B, Q, L, 4), (B, Q, L)
        node, fraction = stencil(self._places(position(t, self.tree.n), stride), stride)
        # (B, Q, L, 3, 4)
        weight = torch.stack([bspline_weights(fraction, n) for n in (0, 1, 2)], -2)
        level = _count(levels, t).unsqueeze(-1).expand(-1, 4).flatten()
        index, full = self.tree.lookup(level, node.flatten(-2))  # (B, Q, 4 L)
        index = index + (series * self.packed)[:, None, None]
        full, stride_of = full.unflatten(-1, (levels, 4)), stride.unsqueeze(-1)
        dtype = self.values.dtype
        values = self.values[index].unflatten(-2, (levels, 4))  # (B, Q, L, 4, X)
        with no_autocast(values.device):
            if self.counts is None and not self.causal:
                inside = (full / stride_of).unsqueeze(-2)  # fraction of a node inside
                value, (slope, second) = _ratio((weight * inside).to(dtype), values)
                one = torch.ones_like(value[..., :1])
                parts = [value, slope, one], [slope, second, 0 * one]
            else:
                there = full if self.counts is None else self.counts[index].view_as(full)
                there = there * (full > 0)  # the nearest node stands in for one outside
                lacking = (stride_of if self.causal else full) - there
                there, lacking = (
                    (weight * (part / stride_of).unsqueeze(-2)).to(dtype)
                    for part in (there, lacking.clamp(min=0))
                )
                parts = _filled(there, lacking, values, self.causal)
        per_t = ((self.tree.n - 1) / stride).to(dtype).unsqueeze(-1)  # from a node's width to t
        # (B, Q, L, 2 X [+ 1])
        value, slope = (torch.cat(part if self.gaps else part[:2], -1) for part in parts)
        return Features(value.flatten(-2), (slope * per_t).flatten(-2))

    def _places(self, x: Tensor, stride: Tensor) -> Tensor:
        """What each level is read at, (B, Q, L), for positions x (B, Q)."""
        x = x.unsqueeze(-1)
        if not self.causal:
            return x + (1 - stride) / 2.0  # node j of level k is centred at (j + 1/2) 2^k - 1/2
        # The last of four nodes, floor(u) + 2, must end at or before x: its last row is (floor(u) +
        # 3) 2^k - 1, and a bin reaches half a row further.
        return x + (1.0 if self.data.t is None else 0.5) - 3.0 * stride


def _count(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)


def _alike(data: Observations) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values, mask and times for one pyramid; channels with masks of their own become series."""
    if data.observed is None or data.observed.dim() == 2:
        return data.values, data.observed, data.t
    channels = data.channels
    values, observed = (part.transpose(1, 2).flatten(0, 1) for part in (data.values, data.observed))
    times = None if data.t is None else data.t.repeat_interleave(channels, 0)
    return values.unsqueeze(-1), observed, times


def _ratio(weight: Tensor, values: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean of the rows under the weights and its first two derivatives, each (B, Q, L, X)."""
    a = (weight @ values).unbind(-2)  # each (B, Q, L, X)
    b = weight.sum(-1, keepdim=True).unbind(-2)  # each (B, Q, L, 1)
    return _quotient(a, b)


def _quotient(a, b) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    value = a[0] / b[0]
    first = (a[1] - value * b[1]) / b[0]
    return value, (first, (a[2] - 2 * first * b[1] - value * b[2]) / b[0])


def _filled(
    there: Tensor, missing: Tensor, values: Tensor, causal: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The same where rows are missing, from the coarsest level down; and the fraction observed.

    Above the coarsest there is nothing; before the first row a causal reader is given 0.
    """
    sums = there @ values  # (B, Q, L, 3, X)
    there, missing = there.sum(-1, keepdim=True), missing.sum(-1, keepdim=True)  # (B, Q, L, 3, 1)
    fraction, (fraction_dt, _) = _quotient(there.unbind(-2), (there + missing).unbind(-2))
    zero = torch.zeros_like(sums[:, :, 0, 0])
    levels, above = [], (zero, (zero, zero)) if causal else None
    for k in reversed(range(sums.shape[2])):
        a, n, m = sums[:, :, k].unbind(-2), there[:, :, k].unbind(-2), missing[:, :, k].unbind(-2)
        if above is None:
            a, b = a, n
        else:
            v, dv, ddv = above[0], above[1][0] / 2, above[1][1] / 4  # a node above is twice as wide
            b = [n[i] + FILL * m[i] for i in range(3)]
            a = (
                a[0] + FILL * m[0] * v,
                a[1] + FILL * (m[1] * v + m[0] * dv),
                a[2] + FILL * (m[2] * v + 2 * m[1] * dv + m[0] * ddv),
            )
        above = _quotient(a, b)
        levels.append(above)
    value, first, second = (
        torch.stack(part[::-1], 2)
        for part in zip(*((v, d, dd) for v, (d, dd) in levels), strict=True)
    )
    return [value, first, fraction], [first, second, fraction_dt]
