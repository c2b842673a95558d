"""What a posterior reads: many series at once, and where they were observed."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from fractal_lib.checks import as_float, as_mask, as_positive, as_tensor, require

__all__ = ["Observations", "as_observations"]


class Observations:
    """Series on one even grid of times, with gaps where something was not observed.

    Args:
        values: (S, N, X) floating point; NaN or anything else where nothing was observed.
        observed: (S, N) bool, or (N,) for all series alike: True where a row is there, False where
            it is missing as a whole; default all observed.
        duration: T, how long the grid lasts, in the unit of time of the prior. Row j of n is at
            time T j / (n - 1).

    Tensors, numpy arrays, lists and pandas frames are taken alike.

    Attributes:
        values: (S, N, X), 0 where nothing was observed.
        observed: (S, N) bool, or None if no mask was given.
        counts: (S,) int64, the number of observed rows of each series.
        n, channels, duration: N, X and T.
        complete: whether no row is missing.

    Raises:
        TypeError: for values that are not floating point, a mask that is not bool, or a duration
            that is not a number.
        ValueError: for wrong shapes, a duration that is not positive and finite, NaN or infinity
            among the observed values, or a series without any observed row.

    Source: chapter ``posterior/latent_sde``.

    >>> series = Observations(torch.randn(5, 41, 3), duration=1.0)
    >>> series
    Observations(series=5, n=41, channels=3, duration=1, complete, torch.float32)
    >>> len(series), len(series[[0, 3]]), series.counts.tolist()
    (5, 2, [41, 41, 41, 41, 41])
    """

    def __init__(self, values: Any, observed: Any = None, *, duration: float = 1.0):
        values = as_float(values, "values")
        if values.dim() != 3 or 0 in values.shape:
            raise ValueError(
                f"expected values (S, N, X), none of them 0, got {tuple(values.shape)}"
            )
        self.n, self.channels = values.shape[1:]
        self.duration = as_positive(duration, "duration")
        if observed is not None:
            observed = as_mask(observed, device=values.device)
            if observed.shape not in (values.shape[:2], values.shape[1:2]):
                raise ValueError(
                    f"observed must be bool (S, N) or (N,) for values {tuple(values.shape)}, "
                    f"got {tuple(observed.shape)}"
                )
            observed = observed.expand(values.shape[:2])
            values = torch.where(observed.unsqueeze(-1), values, 0)
            require(lambda: observed.any(1).all(), "a series has no observed row at all")
        require(
            lambda: values.isfinite().all(),
            "an observed value is NaN or infinite: mark missing rows with `observed`",
        )
        self.values, self.observed = values, observed
        self.complete = observed is None or bool(observed.all())
        if observed is None:
            self.counts = torch.full((len(self),), self.n, device=values.device)
            self._rows = None
        else:
            self.counts = observed.sum(1)
            self._rows = observed.nonzero()[:, 1]  # once, here: steps draw from it
        self._starts = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        rows = "complete" if self.observed is None else f"{int(self.counts.sum())} rows observed"
        return (
            f"Observations(series={len(self)}, n={self.n}, channels={self.channels}, "
            f"duration={self.duration:g}, {rows}, {self.values.dtype})"
        )

    def __getitem__(self, series: Any) -> Observations:
        """Some of the series, as observations of their own: a slice, or whole numbers; one is kept
        as one.
        """
        if not isinstance(series, slice):
            series = as_tensor(series, "series").reshape(-1).to(self.values.device)
            if series.dtype != torch.bool:
                series = _whole(series)
        observed = None if self.observed is None else self.observed[series]
        return Observations(self.values[series], observed, duration=self.duration)

    def series_index(self, series: Any) -> Tensor:
        """Which series, (B,) int64 on the data's device, from one number or many.

        Raises:
            TypeError: for what is not made of whole numbers.
            ValueError: for one that is negative, or not below the number of series.

        >>> Observations(torch.zeros(3, 4, 1)).series_index(2)
        tensor([2])
        """
        index = _whole(as_tensor(series, "series")).to(self.values.device)
        if index.dim() > 1:
            raise ValueError(f"expected series (B,), got {tuple(index.shape)}")
        index = index.reshape(-1)
        require(
            lambda: ((index >= 0) & (index < len(self))).all(),
            f"series must lie between 0 and {len(self) - 1}, got {{}}",
            index.tolist,
        )
        return index

    def sample(self, series: Any, fraction: Any) -> tuple[Tensor, Tensor]:
        """Observed rows, each as likely as any other: their times in [0, 1] and their values.

        Args:
            series: (B,) int64, which series.
            fraction: (B, Q) in [0, 1), uniform random numbers: which of its observed rows.

        Returns:
            t (B, Q) float64 and values (B, Q, X).

        Raises:
            TypeError, ValueError: as `series_index`; for a fraction of another shape.

        Complexity: O(Q X) a series, whatever N is.
        """
        series = self.series_index(series)
        fraction = as_float(fraction, "fraction").to(self.values.device)
        if fraction.dim() != 2 or len(fraction) != len(series):
            raise ValueError(
                f"expected fraction (B, Q) with B = {len(series)}, got {tuple(fraction.shape)}"
            )
        count = self.counts[series].unsqueeze(1)
        # rounding may reach the count itself
        rank = torch.minimum((fraction * count).long(), count - 1)
        row = rank if self._rows is None else self._rows[rank + self._starts[series].unsqueeze(1)]
        return row.double() / max(self.n - 1, 1), self.values[series.unsqueeze(1), row]

    def to(self, *args, **kwargs) -> Observations:
        """On another device, or in another dtype: what `torch.Tensor.to` takes."""
        values = self.values.to(*args, **kwargs)
        observed = None if self.observed is None else self.observed.to(values.device)
        return Observations(values, observed, duration=self.duration)

    def fingerprint(self) -> str:
        """Equal for equal observations, and for others different: what a checkpoint remembers them
        by.
        """
        digest = hashlib.sha256(repr((tuple(self.values.shape), self.duration)).encode())
        for table in (self.values, self.observed):
            if table is not None:
                digest.update(table.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def as_observations(data: Any) -> Observations:
    """The data as they are. Raises: TypeError for anything but `Observations`."""
    if not isinstance(data, Observations):
        raise TypeError(
            f"expected data as Observations, got {type(data).__name__}: "
            "Observations(values, observed, duration=...)"
        )
    return data


def _whole(series: Tensor) -> Tensor:
    if series.is_floating_point() or series.is_complex() or series.dtype == torch.bool:
        raise TypeError(f"expected series as whole numbers, got {series.dtype}")
    return series.long()
