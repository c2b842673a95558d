"""What lies on both sides of t: the nearest observations, and straight lines fitted around each, on
every scale (chapter ``posterior/irregular``).
"""

import torch
from torch import Tensor

from fractal_lib.curves.splines import bspline_weights
from fractal_lib.posterior.packed import PackedPyramids

__all__ = ["WIDTHS", "Bridge"]

RESOLUTION = (
    8  # observations within an eighth of a row count as one: else a line between two is steep
)
RIDGE = 0.01  # towards a slope of 0, in widths of a node squared
WIDTHS = (1.0, 8.0, 64.0)  # in rows, of the spread across a gap


class Bridge:
    """Read at the last observation before t and at the first after, and linear in between.

    A linear interpolation is continuous, and its slope is true everywhere but at observations: that
    is all the negative ELBO asks of a feature. What is interpolated are the observation itself, and
    the value and slope of a straight line that is fitted around it on each level of the pyramid.
    Before the first and after the last observation these are constant. How far t is from both is
    told by the variance of a Brownian bridge between them, u (1 - u) h.

    Args:
        values: (S, N, X), 0 where nothing was observed.
        observed: (S, N) bool, or None for all.
        times: (S, N) in [0, 1], sorted, missing rows last; or None for an even grid.
        pyramids: of these.

    Attributes:
        out_features: F = X (1 + 2 L) + 3.

    Complexity: O(S N X) once; 8 reads a level and a binary search a time.
    """

    def __init__(
        self,
        values: Tensor,
        observed: Tensor | None,
        times: Tensor | None,
        pyramids: PackedPyramids,
    ):
        series, rows, channels = values.shape
        self.pyramids, self.n = pyramids, pyramids.tree.n
        self.out_features = channels * (1 + 2 * pyramids.tree.levels) + len(WIDTHS)
        if times is None:
            place = torch.arange(rows, device=values.device, dtype=torch.float64)
            place = place.expand(series, -1)
        else:
            place = times * (self.n - 1)
        if observed is not None or times is not None:
            place, values, self.count = _merged(place, values, observed)
        else:
            self.count = torch.full((series,), rows, device=values.device)
        self.start = self.count.cumsum(0) - self.count  # (S,) of each series
        if values.dim() == 3:
            place, values = place.reshape(-1), values.flatten(0, 1)
        self.place, self.values = place, values  # (M,), (M, X)
        owner = torch.repeat_interleave(torch.arange(series, device=values.device), self.count)
        self.key = self.place + owner * 2.0 * self.n  # sorted: one search finds series and place

    def read(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes per row, (B, Q, F) both, at positions x (B, Q) of series (B,)."""
        dtype, start = self.values.dtype, self.start[series].unsqueeze(1)
        last = start + self.count[series].unsqueeze(1) - 1
        query = x + series.unsqueeze(1) * 2.0 * self.n
        after = torch.searchsorted(self.key, query.contiguous(), right=True)
        before = torch.minimum((after - 1).clamp(min=start), last)
        after = torch.minimum(after.clamp(min=start), last)
        a, b = self.place[before], self.place[after]  # (B, Q)
        inside = after > before
        width = torch.where(inside, b - a, 1)
        u = torch.where(inside, (x - a) / width, 0)
        sides = torch.cat([a, b], 1)
        ends = torch.cat(
            [self.values[torch.cat([before, after], 1)], self._lines(series, sides)], -1
        )
        left, right = ends.chunk(2, 1)  # (B, Q, F - 3)
        rise = right - left
        value = left + rise * u.unsqueeze(-1).to(dtype)
        slope = rise * (inside / width).unsqueeze(-1).to(dtype)
        spread = torch.where(inside, u * (1 - u) * width, (x - a).abs()).unsqueeze(-1)
        spread_dx = torch.where(inside, 1 - 2 * u, (x - a).sign()).unsqueeze(-1)
        widths = torch.tensor(WIDTHS, dtype=torch.float64, device=x.device)
        return (
            torch.cat([value, torch.log1p(spread / widths).to(dtype)], -1),
            torch.cat([slope, (spread_dx / (widths + spread)).to(dtype)], -1),
        )

    def _lines(self, series: Tensor, x: Tensor) -> Tensor:
        """Value and slope (in widths of a node) of a line around x on each level, (B, Q, 2 L X)."""
        pyramids, stride = self.pyramids, self.pyramids.stride.unsqueeze(-1)  # (L, 1)
        places = x.unsqueeze(-1) + (1 - pyramids.stride) / 2.0
        nodes = pyramids.around(series, places)
        lag = (pyramids.centroids_of(nodes, places) - x[..., None, None]) / stride
        weight = bspline_weights(nodes.fraction) * nodes.there / stride  # (B, Q, L, 4)
        moments = torch.stack([weight, weight * lag, weight * lag * lag], -2)  # (B, Q, L, 3, 4)
        dtype = nodes.values.dtype
        y0, y1 = (moments[..., :2, :].to(dtype) @ nodes.values).unbind(-2)  # (B, Q, L, X)
        s0, s1, s2 = moments.sum(-1, keepdim=True).to(dtype).unbind(-2)  # (B, Q, L, 1)
        s2 = s2 + RIDGE * s0
        det = s0 * s2 - s1 * s1
        lines = torch.cat([(s2 * y0 - s1 * y1) / det, (s0 * y1 - s1 * y0) / det], -1)
        return lines.flatten(-2)


def _merged(
    place: Tensor, values: Tensor, observed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Places (M,) and values (M, X) of what was observed, series after series, those that nearly
    coincide as one, and how many each series has, (S,).
    """
    series = torch.arange(len(place), device=place.device).unsqueeze(1).expand_as(place)
    if observed is not None:
        place, values, series = place[observed], values[observed], series[observed]
    else:
        place, values, series = place.flatten(), values.flatten(0, 1), series.flatten()
    cell = (place * RESOLUTION).floor().long()
    key = series * (int(cell.max()) + 2) + cell
    _, group, size = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    first = size.cumsum(0) - size

    def mean(x: Tensor) -> Tensor:
        total = x.new_zeros(len(size), *x.shape[1:]).index_add(0, group, x)
        return total / size.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    count = torch.bincount(series[first], minlength=int(series[-1]) + 1)
    return mean(place), mean(values), count
