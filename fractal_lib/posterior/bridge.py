"""The nearest observations on both sides of t (chapter ``posterior/irregular``)."""

import torch
from torch import Tensor

__all__ = ["WIDTHS", "Bridge"]

# observations within an eighth of a row count as one: a line between two of them would be steep
RESOLUTION = 8
WIDTHS = (1.0, 8.0, 64.0)  # in rows, of the spread across a gap


class Bridge:
    """The last observation before t and the first after, a straight line between, and how far both
    are.

    A linear interpolation is continuous, and its slope is true everywhere but at observations: that
    is all the negative ELBO asks of a feature. Before the first and after the last observation it
    is constant. How far t is from both is told by the variance of a Brownian bridge between them,
    h = u (1 - u) w for a gap of width w, as log(1 + h) at three scales.

    Args:
        values: (S, N, X), 0 where nothing was observed.
        observed: (S, N) bool, or None for all.
        place: (S, N) float64, where each row stands, from 0 to n - 1, in order if observed.

    Attributes:
        out_features: F = X + 3.

    Complexity: O(S N X) once; a binary search and two rows a time.
    """

    def __init__(self, values: Tensor, observed: Tensor | None, place: Tensor):
        self.out_features = values.shape[2] + len(WIDTHS)
        self.place, self.values, self.count = _merged(place, values, observed)  # (M,), (M, X)
        self.start = self.count.cumsum(0) - self.count  # (S,) of each series
        self.apart = 2.0 * (float(self.place.max()) + 1)
        owner = torch.repeat_interleave(
            torch.arange(len(place), device=place.device), self.count, output_size=len(self.place)
        )
        self.key = self.place + owner * self.apart  # sorted: one search finds series and place

    def read(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes per row, (B, Q, F) both, at positions x (B, Q) of series (B,)."""
        before, after, inside = self._around(series, x)
        a, b = self.place[before], self.place[after]  # (B, Q)
        width = torch.where(inside, b - a, 1)
        u = torch.where(inside, (x - a) / width, 0).unsqueeze(-1)
        left, right = self.values[before], self.values[after]  # (B, Q, X)
        value = left + (right - left) * u.to(left)
        slope = (right - left) * (inside / width).unsqueeze(-1).to(left)
        h, h_dx = self.spread(series, x)
        widths = torch.tensor(WIDTHS, dtype=torch.float64, device=x.device)
        return (
            torch.cat([value, torch.log1p(h / widths).to(left)], -1),
            torch.cat([slope, (h_dx / (widths + h)).to(left)], -1),
        )

    def spread(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """h and its slope, (B, Q, 1) float64 both; outside, the distance."""
        before, after, inside = self._around(series, x)
        a, b = self.place[before], self.place[after]
        width = torch.where(inside, b - a, 1)
        u = (x - a) / width
        h = torch.where(inside, u * (1 - u) * width, (x - a).abs())
        h_dx = torch.where(inside, 1 - 2 * u, (x - a).sign())
        return h.unsqueeze(-1), h_dx.unsqueeze(-1)

    def _around(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which observations (B, Q) are before and after; outside both are the nearest."""
        start = self.start[series].unsqueeze(1)
        last = start + self.count[series].unsqueeze(1) - 1
        query = (x + series.unsqueeze(1) * self.apart).contiguous()
        after = torch.searchsorted(self.key, query, right=True)
        before = torch.minimum((after - 1).clamp(min=start), last)
        after = torch.minimum(after.clamp(min=start), last)
        return before, after, after > before


def _merged(
    place: Tensor, values: Tensor, observed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Places (M,) and values (M, X) of what was observed, series after series, those that nearly
    coincide as one, and how many each series has, (S,).
    """
    there = torch.ones_like(place, dtype=torch.bool) if observed is None else observed
    size = len(place)
    series = torch.arange(size, device=place.device).unsqueeze(1).expand_as(place)
    place, values, series = place[there], values[there], series[there]
    cell = (place * RESOLUTION).floor().long()
    key = series * (int(cell.max()) + 2) + cell
    _, group, count = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count

    def mean(x: Tensor) -> Tensor:
        total = x.new_zeros(len(count), *x.shape[1:]).index_add(0, group, x)
        return total / count.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    return mean(place), mean(values), torch.bincount(series[first], minlength=size)
