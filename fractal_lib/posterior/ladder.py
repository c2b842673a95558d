"""A posterior without recurrence: it reads the observations' own pyramid (chapter
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
from fractal_lib.posterior.base import Posterior, TimeEmbedding, as_times
from fractal_lib.posterior.heads import affine_net
from fractal_lib.posterior.marginals import Marginals, push_forward
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["DataPyramid", "Features", "LadderPosterior"]

FILL = 0.05  # how much a missing row counts, with the value of the level above


class Features(NamedTuple):
    """What is read at t, and its derivative in t: (B, Q, F) both."""

    value: Tensor
    slope: Tensor


def _settings(data: Observations, levels: int | None, gaps: bool | None) -> tuple[int, bool]:
    """Number of levels, and whether gaps are read, for given data."""
    has = all_levels(as_observations(data).n)
    levels = has if levels is None else as_int(levels, "levels", least=1, most=has)
    return levels, data.observed is not None if gaps is None else bool(gaps)


class DataPyramid:
    """The pyramid of a data set, built once, and what is read from it.

    Args:
        data: `Observations`.
        levels: number of levels, of those that n has; default all.
        gaps: whether the fraction observed is among the features; default whether ``data`` has a
            mask.

    Attributes:
        data: what it was made from.
        out_features: F, numbers in a feature vector: 2 X a level, 2 X + 1 with ``gaps``.

    Raises:
        TypeError: for data that are not `Observations`. ValueError: for more levels than n has.

    Source: chapters ``attention/fractal`` and ``posterior/latent_sde``. Complexity: O(S N X) once,
    then O(log N) a time.
    """

    def __init__(self, data: Observations, levels: int | None = None, gaps: bool | None = None):
        levels, gaps = _settings(data, levels, gaps)
        self.data, self.gaps = data, gaps
        pyramid = Pyramid(data.values, data.observed, levels=levels)
        self.tree = Tree(data.n, levels)  # as if complete: what is missing is the difference
        self.values = pyramid.values.flatten(0, 1)  # (S P, X)
        counts = pyramid.tree.counts
        self.counts = None if counts is None else counts.flatten()  # (S P,)
        self.packed = pyramid.values.shape[1]
        self.out_features = levels * (2 * data.channels + self.gaps)

    def read(self, series: Any, t: Any) -> Features:
        """Value and slope of every level at t (B, Q) of series (B,), and the fraction observed.

        On level k the value is a mean under the B-spline of width 2^k, and the slope its derivative
        in units of that width. Where rows are missing, the level above stands in for them with a
        small weight, so that a gap is filled smoothly.
        """
        series = self.data.series_index(series)
        t, levels = as_times(t, series), self.tree.levels
        stride = strides(levels, t.device)  # (L,)
        x = position(t, self.tree.n)
        # (B, Q, L, 4), (B, Q, L)
        node, fraction = stencil(x.unsqueeze(-1) + (1 - stride) / 2.0, stride)
        # (B, Q, L, 3, 4)
        weight = torch.stack([bspline_weights(fraction, n) for n in (0, 1, 2)], -2)
        level = torch.arange(levels, device=t.device).unsqueeze(-1).expand(-1, 4).flatten()
        index, full = self.tree.lookup(level, node.flatten(-2))  # (B, Q, 4 L)
        index = index + (series * self.packed)[:, None, None]
        filled = (full / stride[level]).unflatten(-1, (levels, 4))  # fraction of a node inside
        dtype = self.values.dtype
        values = self.values[index].unflatten(-2, (levels, 4))  # (B, Q, L, 4, X)
        with no_autocast(values.device):
            if self.counts is None:
                value, (slope, second) = _ratio((weight * filled.unsqueeze(-2)).to(dtype), values)
                one = torch.ones_like(value[..., :1])
                parts = [value, slope, one], [slope, second, 0 * one]
            else:
                there = self.counts[index].double() * (full > 0) / stride[level]
                there = there.unflatten(-1, (levels, 4))
                missing = (weight * (filled - there).unsqueeze(-2)).to(dtype)
                parts = _filled((weight * there.unsqueeze(-2)).to(dtype), missing, values)
        per_t = ((self.tree.n - 1) / stride).to(dtype).unsqueeze(-1)  # from a node's width to t
        # (B, Q, L, 2 X [+ 1])
        value, slope = (torch.cat(part if self.gaps else part[:2], -1) for part in parts)
        return Features(value.flatten(-2), (slope * per_t).flatten(-2))


def _ratio(weight: Tensor, values: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean of the rows under the weights and its first two derivatives, each (B, Q, L, X)."""
    a = (weight @ values).unbind(-2)  # each (B, Q, L, X)
    b = weight.sum(-1, keepdim=True).unbind(-2)  # each (B, Q, L, 1)
    return _quotient(a, b)


def _quotient(a, b) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    value = a[0] / b[0]
    first = (a[1] - value * b[1]) / b[0]
    return value, (first, (a[2] - 2 * first * b[1] - value * b[2]) / b[0])


def _filled(there: Tensor, missing: Tensor, values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The same where rows are missing, from the coarsest level down; and the fraction observed."""
    sums = there @ values  # (B, Q, L, 3, X)
    there, missing = there.sum(-1, keepdim=True), missing.sum(-1, keepdim=True)  # (B, Q, L, 3, 1)
    fraction, (fraction_dt, _) = _quotient(there.unbind(-2), (there + missing).unbind(-2))
    levels, above = [], None
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


class LadderPosterior(Posterior):
    """A posterior that costs the same however long the series: it reads the observations, and
    encodes nothing.

    The value and the slope of the data at every scale around t, `DataPyramid.read`, go through the
    network of `PosteriorAffine`. There is no recurrence and no header. (m, s) is C^1 in t, and its
    derivative is exact.

    Args:
        data: `Observations` to be read; others of as many rows and channels and the same duration
            may be read later, with gaps or without.
        latent_size: Z.
        hidden_size: H.
        levels: number of levels, of those that n has; default all.
        time_embedding: what the network reads of the time; default t itself.
        init_logstd: log std before training.
        gaps: whether the network reads the fraction observed at each level; default whether
            ``data`` has a mask. It is fixed here: a complete series then reads as observed
            throughout.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: for data that are not `Observations`, sizes below 1, or more levels
            than n has.

    Complexity: O(log(N) X + H^2) a time, after O(S N X) once for a data set. Source: chapter
    ``posterior/latent_sde``.

    >>> data = Observations(torch.randn(5, 1000, 2))
    >>> posterior = LadderPosterior(data, latent_size=3, hidden_size=16)
    >>> marginals = posterior(posterior.prepare(data), torch.tensor([0, 4]), torch.rand(2, 7))
    >>> marginals.mean.shape, marginals.std_dt.shape
    (torch.Size([2, 7, 3]), torch.Size([2, 7, 3]))
    """

    def __init__(
        self,
        data: Observations,
        latent_size: int,
        hidden_size: int,
        *,
        levels: int | None = None,
        time_embedding: TimeEmbedding | None = None,
        init_logstd: float = -0.5,
        gaps: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.levels, self.gaps = _settings(data, levels, gaps)
        self.n, self.channels, self.duration = data.n, data.channels, data.duration
        self.latent_size = as_int(latent_size, "latent_size", least=1)
        self.hidden_size = as_int(hidden_size, "hidden_size", least=1)
        self.time_embedding = time_embedding or TimeEmbedding(device=device)
        self.in_features = self.levels * (2 * data.channels + self.gaps)
        inputs = self.in_features + self.time_embedding.out_features
        sizes = inputs, self.hidden_size, self.latent_size
        self.net = affine_net(*sizes, init_logstd, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """All parameters as drawn anew."""
        self.net.reset_parameters()

    def extra_repr(self) -> str:
        """What it reads, and sizes."""
        return (
            f"n={self.n}, channels={self.channels}, levels={self.levels}, gaps={self.gaps}, "
            f"latent_size={self.latent_size}, hidden_size={self.hidden_size}"
        )

    def prepare(self, data: Observations) -> DataPyramid:
        """The data's pyramid: once for a data set.

        Raises:
            TypeError, ValueError: for data that this posterior does not read.
        """
        as_observations(data)
        for name in ("n", "channels", "duration"):
            if getattr(data, name) != getattr(self, name):
                raise ValueError(
                    f"this posterior reads series of {name} = {getattr(self, name)}, the data have "
                    f"{name} = {getattr(data, name)}"
                )
        return DataPyramid(data, self.levels, self.gaps)

    def forward(self, prepared: DataPyramid, series: Any, t: Any) -> Marginals:
        """Mean and std, and their derivatives, at t (B, Q) of series (B,)."""
        if not isinstance(prepared, DataPyramid) or prepared.out_features != self.in_features:
            got = getattr(prepared, "out_features", type(prepared).__name__)
            raise TypeError(
                f"expected what prepare(data) of this posterior returned, {self.in_features} "
                f"features a time, got {got}"
            )
        series = prepared.data.series_index(series)
        t = as_times(t, series)
        dtype = next(self.net.parameters()).dtype
        with torch.no_grad():  # the data do not change
            value, slope = (part.to(dtype) for part in prepared.read(series, t))
            time, time_dt = self.time_embedding(t, dtype)
        inputs, inputs_dt = torch.cat([value, time], -1), torch.cat([slope, time_dt], -1)
        return Marginals.of(*push_forward(self.net, inputs, inputs_dt))
