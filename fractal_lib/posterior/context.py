"""What a posterior looks at: many series at once, and where they were observed."""

import torch
from torch import Tensor

from fractal_lib.attention.checks import require


class Observations:
    """Series on one even grid of times, with gaps where something was not observed.

    Args:
        values: (S, N, X) floating point; NaN or anything else where nothing was observed.
        observed: (S, N) bool, or (N,) for all series alike; default all observed. A row is there or it is not.
        duration: T, how long the grid lasts, in the unit of time of the prior. Row j of n is at time T j / (n - 1).

    Attributes:
        values: (S, N, X), 0 where nothing was observed.
        observed: (S, N) bool, or None if every row is there.
        counts: (S,) int64, the number of observed rows of each series.

    Raises:
        TypeError: for values that are not floating point or a mask that is not bool.
        ValueError: for wrong shapes, a duration that is not positive, a NaN among the observed values, or a series
            without any observed row.

    Source: chapter ``posterior/latent_sde``.

    >>> series = Observations(torch.randn(5, 41, 3), duration=1.0)
    >>> series.size, series.n, series.channels, series.counts.tolist()
    (5, 41, 3, [41, 41, 41, 41, 41])
    """

    def __init__(self, values: Tensor, observed: Tensor | None = None, duration: float = 1.0):
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"values must be a floating point tensor, got {getattr(values, 'dtype', type(values))}")
        if values.dim() != 3 or 0 in values.shape:
            raise ValueError(f"expected values (S, N, X), none of them 0, got {tuple(values.shape)}")
        if not duration > 0:
            raise ValueError(f"duration must be positive, got {duration}")
        self.size, self.n, self.channels = values.shape
        self.duration = float(duration)
        if observed is not None:
            if observed.dtype != torch.bool or observed.shape not in (values.shape[:2], values.shape[1:2]):
                raise ValueError(
                    f"observed must be bool (S, N) or (N,) for values {tuple(values.shape)}, "
                    f"got {observed.dtype} {tuple(observed.shape)}"
                )
            observed = observed.expand(values.shape[:2])
            observed = None if bool(observed.all()) else observed
        if observed is not None:
            values = torch.where(observed.unsqueeze(-1), values, 0)
            require(lambda: observed.any(1).all(), "a series has no observed row at all")
        require(lambda: ~values.isnan().any(), "an observed value is NaN: mark missing rows with `observed`")
        self.values, self.observed = values, observed
        if observed is None:
            self.counts = torch.full((self.size,), self.n, device=values.device)
            self._rows = None
        else:
            self.counts = observed.sum(1)
            self._rows = observed.nonzero()[:, 1]  # once, here: steps draw from it
        self._starts = self.counts.cumsum(0) - self.counts

    def draw(self, series: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Observed rows, each as likely as any other: their times in [0, 1] and their values.

        Args:
            series: (B,) int64, which series.
            share: (B, Q) in [0, 1), uniform random numbers: which of its observed rows.

        Returns:
            t (B, Q) float64 and values (B, Q, X).

        Complexity: O(Q X) a series, whatever N is.
        """
        count = self.counts[series].unsqueeze(1)
        rank = torch.minimum((share * count).long(), count - 1)  # rounding may reach the count itself
        row = rank if self._rows is None else self._rows[rank + self._starts[series].unsqueeze(1)]
        return row.double() / max(self.n - 1, 1), self.values[series.unsqueeze(1), row]

    def take(self, series: Tensor) -> "Observations":
        """Some of the series, as observations of their own.

        >>> Observations(torch.randn(5, 41, 3)).take(torch.tensor([0, 3])).size
        2
        """
        observed = None if self.observed is None else self.observed[series]
        return Observations(self.values[series], observed, self.duration)

    def to(self, *args, **kwargs) -> "Observations":
        """On another device, or in another dtype: what `torch.Tensor.to` takes."""
        values = self.values.to(*args, **kwargs)
        observed = None if self.observed is None else self.observed.to(values.device)
        return Observations(values, observed, self.duration)
