"""How far the nearest observations on both sides of t are (chapter ``posterior/irregular``)."""

import torch
from torch import Tensor

__all__ = ["WIDTHS", "Gaps"]

WIDTHS = (1.0, 8.0, 64.0)  # in rows


class Gaps:
    """How far t is from the observations around it: the variance of a Brownian bridge between them.

    In a gap of width w it is h = u (1 - u) w, 0 at both ends; before the first and after the last
    observation it is the distance.

    Args:
        place: (S, N) float64, where each row stands, from 0 to n - 1, in order if observed.
        observed: (S, N) bool, or None for all.

    Complexity: O(S N) once; a binary search a time.
    """

    def __init__(self, place: Tensor, observed: Tensor | None):
        there = torch.ones_like(place, dtype=torch.bool) if observed is None else observed
        self.place, self.count = place[there], there.sum(1)  # (M,) one after another, (S,)
        self.start = self.count.cumsum(0) - self.count
        self.apart = 2.0 * (float(place.max()) + 1)
        owner = torch.arange(len(place), device=place.device).unsqueeze(1).expand_as(place)[there]
        self.key = self.place + owner * self.apart  # sorted: one search finds series and place

    def read(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """log(1 + h / w) for w in `WIDTHS`, and slopes per row, (B, Q, 3) float64 both."""
        h, h_dx = self.spread(series, x)
        widths = torch.tensor(WIDTHS, dtype=torch.float64, device=x.device)
        return torch.log1p(h / widths), h_dx / (widths + h)

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
