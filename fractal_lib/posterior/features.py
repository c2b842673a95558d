"""The pyramid of the observations themselves, as a posterior reads it (chapter
``posterior/latent_sde``).
"""

import torch
from torch import Tensor

from fractal_lib.attention.base import no_autocast
from fractal_lib.attention.tree import all_levels
from fractal_lib.checks import as_int
from fractal_lib.curves.splines import bspline_weights
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.posterior.packed import PackedPyramids
from fractal_lib.posterior.reader import Features, Reader

__all__ = ["DataPyramid", "levels_of"]

FILL = 0.05  # how much a missing row counts, with the value of the level above


def levels_of(n: int, levels: int | None, default: int | None = None) -> int:
    """A number of levels that n rows have; default all, or at most ``default``. Raises: ValueError
    for more than there are.
    """
    has = all_levels(n)
    if levels is None:
        return has if default is None else min(has, default)
    return as_int(levels, "levels", least=1, most=has)


class DataPyramid(Reader):
    """Means of the data on every scale around t, and their slopes.

    On level k the value is a mean under the B-spline of width 2^k, and the slope its derivative in
    units of that width. Where rows are missing, the level above stands in for them with a small
    weight, so that a gap is filled smoothly.

    Args:
        data: `Observations`.
        levels: number of levels, of those that n has; default all.
        gaps, n, per_channel: as in `Reader`; with ``gaps`` the fraction observed is told too.
        causal: whether nothing after t is read.

    Attributes:
        out_features: F = 2 X L, with ``gaps`` as many as levels and groups more.

    Raises:
        TypeError, ValueError: as `Reader`; for more levels than n has.

    Source: chapters ``start/ladder`` and ``posterior/latent_sde``. Complexity: O(S N X) once,
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
        per_channel: bool | None = None,
    ):
        super().__init__(as_observations(data), n, gaps, per_channel)
        levels, self.causal = levels_of(self.n, levels), bool(causal)
        self.pyramids = self._packed(levels)
        self.out_features = levels * (2 * data.channels + self.groups * self.gaps)

    def _packed(self, levels: int) -> PackedPyramids:
        return PackedPyramids(*self.tables(), self.n, levels)

    def _read(self, series: Tensor, x: Tensor) -> Features:
        pyramids, stride = self.pyramids, self.pyramids.stride.unsqueeze(-1)  # (L, 1)
        lag = 0.0 if self.data.t is None else 0.5  # a bin ends half a row after its number
        nodes = pyramids.around(series, x, self.causal, lag)
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
        return Features(value.flatten(-2), (slope / stride).to(dtype).flatten(-2))


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
