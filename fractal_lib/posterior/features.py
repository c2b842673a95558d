"""What the ladder posterior reads: the pyramid of the observations themselves (chapter
``posterior/latent_sde``).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention.base import no_autocast, position
from fractal_lib.attention.tree import all_levels
from fractal_lib.checks import as_int
from fractal_lib.curves.splines import bspline_weights
from fractal_lib.posterior.base import as_times
from fractal_lib.posterior.bridge import WIDTHS, Bridge
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.posterior.packed import PackedPyramids
from fractal_lib.posterior.smoothing import STRENGTHS, SmoothingSplines

__all__ = ["DataPyramid", "Features", "features_of", "levels_of"]

FILL = 0.05  # how much a missing row counts, with the value of the level above


class Features(NamedTuple):
    """What is read at t, and its derivative in t: (B, Q, F) both."""

    value: Tensor
    slope: Tensor


def levels_of(n: int, levels: int | None) -> int:
    """A number of levels that n rows have; default all. Raises: ValueError for more."""
    has = all_levels(n)
    return has if levels is None else as_int(levels, "levels", least=1, most=has)


def features_of(channels: int, levels: int, gaps: bool, bridge: bool, groups: int = 1) -> int:
    """How many numbers are read at t: value and slope of each channel and level; with ``gaps`` the
    fraction observed of each level and group of channels; with ``bridge`` what `Bridge` and
    `SmoothingSplines` read.

    >>> features_of(channels=3, levels=6, gaps=True, bridge=False)
    42
    """
    features = levels * (2 * channels + groups * gaps)
    both_sides = channels + groups * len(WIDTHS) + 2 * channels * len(STRENGTHS)
    return features + bridge * both_sides


class DataPyramid:
    """The pyramid of a data set, built once, and what is read from it.

    Args:
        data: `Observations`.
        levels: number of levels, of those that n has; default all.
        gaps: whether the fraction observed is among the features; default whether ``data`` has a
            mask or times of its own.
        n: bins of level 0, for times of their own; default the rows of ``data``.
        causal: whether nothing after t is read.
        per_channel: whether each channel is read as a series of its own; default whether single
            channels are missing.
        bridge: whether the nearest observations on both sides are read too, see `Bridge`, and
            smoothing splines, see `SmoothingSplines`.

    Attributes:
        data: what it was made from.
        out_features: F, numbers in a feature vector, see `features_of`.

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
        bridge: bool = False,
        per_channel: bool | None = None,
    ):
        n = as_observations(data).n if n is None else as_int(n, "n", least=1)
        if data.t is None and n != data.n:
            raise ValueError(f"expected n = {data.n}, the rows of an even grid, got {n}")
        if bridge and causal:
            raise ValueError("expected causal or bridge: the far side of a bridge is not past")
        levels = levels_of(n, levels)
        known = data.observed is not None or data.t is not None
        self.data, self.causal = data, bool(causal)
        self.gaps = known if gaps is None else bool(gaps)
        masked = data.observed is not None and data.observed.dim() == 3
        if masked and per_channel is False:
            raise ValueError("single channels are missing: expected per_channel=True, got False")
        self.groups = data.channels if masked or per_channel else 1
        values, observed, times = _alike(data, self.groups)
        self.pyramids = PackedPyramids(values, observed, times, n, levels)
        self.bridge = self.splines = None
        if bridge:
            place = _rows_of(values, times, n)
            self.bridge = Bridge(values, observed, place)
            self.splines = SmoothingSplines(values, observed, place, n)
        self.out_features = features_of(data.channels, levels, self.gaps, bridge, self.groups)

    def read(self, series: Any, t: Any) -> Features:
        """Value and slope of every level at t (B, Q) of series (B,), and the fraction observed.

        On level k the value is a mean under the B-spline of width 2^k, and the slope its derivative
        in units of that width. Where rows are missing, the level above stands in for them with a
        small weight, so that a gap is filled smoothly.
        """
        series, t = self._grouped(self.data.series_index(series), t)
        features = self._read(series, t)
        if self.groups > 1:
            parts = (part.unflatten(0, (-1, self.groups)).transpose(1, 2) for part in features)
            features = Features(*(part.flatten(-2) for part in parts))
        return features

    def spread(self, series: Any, t: Any) -> Tensor:
        """log(1 + h) at t (B, Q) of series (B,), one of a series or of each channel: (B, Q, 1 or
        X). h is the variance of a Brownian bridge between the observations around t, in rows.

        Raises:
            ValueError: if the bridge is not read.
        """
        if self.bridge is None:
            raise ValueError("expected a posterior that reads both sides: bridge=True")
        series, t = self._grouped(self.data.series_index(series), t)
        h, _ = self.bridge.spread(series, position(t, self.pyramids.tree.n))  # (B G, Q, 1)
        return torch.log1p(h).unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(-2)

    def _grouped(self, series: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """Series and times of every group of channels, (B G,) and (B G, Q)."""
        t, groups = as_times(t, series), self.groups
        if groups == 1:
            return series, t
        series = (series.unsqueeze(1) * groups + _count(groups, series)).flatten()
        return series, t.repeat_interleave(groups, 0)

    def _read(self, series: Tensor, t: Tensor) -> Features:
        pyramids, n = self.pyramids, self.pyramids.tree.n
        x, stride = position(t, n), pyramids.stride.unsqueeze(-1)  # (L, 1)
        nodes = pyramids.around(series, self._places(x))
        # (B, Q, L, 3, 4)
        weight = torch.stack([bspline_weights(nodes.fraction, k) for k in (0, 1, 2)], -2)
        dtype = nodes.values.dtype
        with no_autocast(x.device):
            if pyramids.counts is None and not self.causal:
                inside = (nodes.full / stride).unsqueeze(-2)  # fraction of a node inside
                value, (slope, second) = _ratio((weight * inside).to(dtype), nodes.values)
                one = torch.ones_like(value[..., :1])
                parts = [value, slope, one], [slope, second, 0 * one]
            else:
                lacking = (stride if self.causal else nodes.full) - nodes.there
                there, lacking = (
                    (weight * (part / stride).unsqueeze(-2)).to(dtype)
                    for part in (nodes.there, lacking.clamp(min=0))
                )
                parts = _filled(there, lacking, nodes.values, self.causal)
            # (B, Q, L, 2 X [+ 1])
            value, slope = (torch.cat(part if self.gaps else part[:2], -1) for part in parts)
            value, slope = value.flatten(-2), (slope / stride).flatten(-2).to(dtype)
            for reader in (self.bridge, self.splines):
                if reader is not None:
                    more, more_dx = reader.read(series, x)
                    value, slope = torch.cat([value, more], -1), torch.cat([slope, more_dx], -1)
        return Features(value, slope * (n - 1))  # from rows to t

    def _places(self, x: Tensor) -> Tensor:
        """What each level is read at, (B, Q, L), for positions x (B, Q)."""
        x, stride = x.unsqueeze(-1), self.pyramids.stride
        if not self.causal:
            return x + (1 - stride) / 2.0  # node j of level k is centred at (j + 1/2) 2^k - 1/2
        # The last of four nodes, floor(u) + 2, must end at or before x: its last row is (floor(u) +
        # 3) 2^k - 1, and a bin reaches half a row further.
        return x + (1.0 if self.data.t is None else 0.5) - 3.0 * stride


def _count(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)


def _rows_of(values: Tensor, times: Tensor | None, n: int) -> Tensor:
    """Where each row stands, (S, N) float64, from 0 to n - 1."""
    if times is not None:
        return times * (n - 1)
    return _count(n, values).double().expand(len(values), -1)


def _alike(data: Observations, groups: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values, mask and times for pyramids; with as many groups as channels each is a series."""
    if groups == 1:
        return data.values, data.observed, data.t
    values, observed, times = data.values, data.observed, data.t
    if observed is not None and observed.dim() == 2:
        observed = observed.unsqueeze(-1).expand_as(values)
    values, observed = (
        None if part is None else part.transpose(1, 2).flatten(0, 1) for part in (values, observed)
    )
    times = None if times is None else times.repeat_interleave(groups, 0)
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
