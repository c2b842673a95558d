"""What a posterior does not see while it learns: rows hidden at random, one by one and in stretches
(chapter ``posterior/irregular``).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_positive
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["Hiding"]


@dataclass(frozen=True)
class Hiding:
    """How rows are hidden from the posterior in training, so that it learns to fill holes.

    Each series of a view loses a share of its rows in stretches, whose lengths are log-uniform from
    1 row to the longest, and a share of the rest one by one. Both shares are drawn anew, uniformly
    from 0 to twice the mean. The loss keeps every row.

    Attributes:
        longest: rows of the longest stretch.
        stretches: mean share of rows hidden in stretches, below 1/2.
        scattered: mean share of the others hidden one by one, below 1/2.
        views: how many are drawn, before training.
        weight: of a hidden row in the loss, against one that is read. 1 is what a bound would have;
            more, where the score of holes matters more than the path.

    Raises:
        TypeError: for what is not a number. ValueError: for shares outside [0, 1/2), or counts
            below 1.

    Source: chapter ``posterior/irregular``. Complexity: O(S N) a view.

    >>> data = Observations(torch.randn(2, 100, 1))
    >>> view = Hiding(longest=20).view(data, torch.Generator().manual_seed(0))
    >>> len(view), view.complete, view.whole is data
    (2, False, True)
    """

    longest: int
    stretches: float = 0.25
    scattered: float = 0.2
    views: int = 48
    weight: float = 1.0

    def __post_init__(self):
        for name in ("longest", "views"):
            object.__setattr__(self, name, as_int(getattr(self, name), name, least=1))
        object.__setattr__(self, "weight", as_positive(self.weight, "weight"))
        for name in ("stretches", "scattered"):
            share = getattr(self, name)
            if not isinstance(share, int | float | np.floating) or not 0 <= share < 0.5:
                raise ValueError(f"expected {name} as a share from 0 to below 1/2, got {share!r}")
            object.__setattr__(self, name, float(share))

    def view(self, data: Observations, generator: torch.Generator) -> Observations:
        """The data without what is hidden this time; a series keeps at least one row."""
        shape, device = tuple(as_observations(data).values.shape[:2]), data.values.device

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator, device=device, dtype=torch.float64)

        one_by_one = uniform(*shape) < 2 * self.scattered * uniform(len(data), 1)
        hidden = one_by_one | self._in_stretches(uniform, shape, device)
        rows = data.rows
        # one of them stays
        spared = torch.where(rows, uniform(*shape), -1).argmax(1, keepdim=True)
        return data.hide(hidden.scatter(1, spared, False))

    def _in_stretches(self, uniform, shape: tuple[int, int], device: torch.device) -> Tensor:
        """(S, N) bool. Stretches begin anywhere, the first before the series."""
        series, n = shape
        longest = min(self.longest, n)
        mean = (longest - 1) / math.log(longest) if longest > 1 else 1.0  # of a log-uniform length
        share = 2 * self.stretches * uniform(series, 1)
        # what Poisson stretches of this mean length leave uncovered is exp(-rate mean)
        count = max(1, math.ceil(-math.log1p(-2 * self.stretches) * (n + longest) / mean))
        kept = uniform(series, count) < (1 - share).log() / math.log1p(-2 * self.stretches + 1e-12)
        length = longest ** uniform(series, count)
        start = uniform(series, count) * (n + longest) - length
        ends = torch.zeros(series, n + 1, dtype=torch.int32, device=device)
        kept = kept.int()
        first = start.ceil().long().clamp(0, n)
        last = (start + length).ceil().long().clamp(0, n)
        ends = ends.scatter_add(1, first, kept).scatter_add(1, last, -kept)
        return ends.cumsum(1)[:, :n] > 0
