"""What a posterior reads: many series at once, and where and when they were observed."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fractal_lib.checks import as_float, as_integers, as_mask, as_positive, as_tensor, require
from fractal_lib.posterior.tables import any_channel, in_order, mask_of, padded, ragged, shares

__all__ = ["Drawn", "Observations", "as_observations"]


class Drawn(NamedTuple):
    """Observed rows, drawn at random.

    Attributes:
        t: (B, Q) float64 in [0, 1], when they were observed.
        row: (B, Q) int64, which rows of ``values`` they are.
        values: (B, Q, X).
        observed: (B, Q, X) bool, which of their channels, or None for all.
    """

    t: Tensor
    row: Tensor
    values: Tensor
    observed: Tensor | None


class Observations:
    """Series of observations, on an even grid or at times of their own, with whatever is missing.

    Args:
        values: (S, N, X) floating point; NaN or anything else where nothing was observed. Or a list
            of S arrays (N_s, X), series of different length.
        times: (S, N) or (N,) in [0, duration], or a list of S arrays (N_s,); unsorted and repeated
            ones are welcome. Default an even grid: row j of N is at duration j / (N - 1).
        observed: bool, True for what is there: (S, N) or (N,) for rows, (S, N, X) for each channel,
            or a list of S arrays (N_s,) or (N_s, X); default all.
        duration: T, in the unit of time of the prior.

    Tensors, numpy arrays, lists and pandas frames are taken alike. For one frame of many series see
    `observations_from_frame`.

    Attributes:
        values: (S, N, X), 0 where nothing was observed. With ``times`` the rows of each series are
            in order of time, and what is missing altogether stands last.
        observed: (S, N) or (S, N, X) bool, or None if everything was observed.
        t: (S, N) float64 in [0, 1], the times as shares of the duration; None for an even grid.
        counts: (S,) int64, the number of rows of each series with anything observed.
        n, channels, duration: N, X and T.
        complete: whether nothing is missing.
        span: the share of the time that they speak for, (0, 1); a process that holds a stretch of
            longer series has less (`fractal_lib.distributed.Stretch`).

    Raises:
        TypeError: for values or times that are not floating point, a mask that is not bool, or a
            duration that is not a number.
        ValueError: for wrong shapes, a duration that is not positive and finite, NaN or infinity
            among what was observed, times outside the duration, or a series without an observation.

    Complexity: O(S N X), and O(S N log N) to sort times. Source: chapters ``posterior/latent_sde``
    and ``posterior/irregular``.

    >>> series = Observations(torch.randn(5, 41, 3), duration=1.0)
    >>> series
    Observations(series=5, n=41, channels=3, duration=1, complete, torch.float32)
    >>> len(series), len(series[[0, 3]]), series.counts.tolist()
    (5, 2, [41, 41, 41, 41, 41])
    >>> ragged = [torch.randn(4, 2), torch.randn(7, 2)]
    >>> Observations(ragged, times=[torch.rand(4), torch.rand(7)])
    Observations(series=2, n=7, channels=2, duration=1, own times, 11 rows observed, torch.float32)
    """

    span: tuple[float, float] = (0.0, 1.0)

    def __init__(self, values: Any, times: Any = None, observed: Any = None, duration: float = 1.0):
        self.duration = as_positive(duration, "duration")
        if ragged(values):
            values, times, observed = padded(values, times, observed)
        values = as_float(values, "values")
        if values.dim() != 3 or 0 in values.shape:
            raise ValueError(
                f"expected values (S, N, X), none of them 0, got {tuple(values.shape)}"
            )
        self.channels = values.shape[2]
        observed = mask_of(observed, values)
        rows = any_channel(observed)
        _require_rows(rows, "a series has no observed row at all")
        self.t = None
        if times is not None:
            t = shares(times, rows, values, self.duration)
            values, observed, rows, self.t = in_order(values, observed, rows, t)
        if observed is not None:
            there = observed if observed.dim() == 3 else observed.unsqueeze(-1)
            values = torch.where(there, values, 0)
        require(
            lambda: values.isfinite().all(),
            "an observed value is NaN or infinite: mark what is missing with `observed`",
        )
        self.values, self.observed, self.n = values, observed, values.shape[1]
        self.complete = observed is None or bool(observed.all())
        self._whole: Observations | None = None
        self._count(rows)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __repr__(self) -> str:
        rows = "complete" if self.complete else f"{int(self.counts.sum())} rows observed"
        own = "" if self.t is None else "own times, "
        return (
            f"Observations(series={len(self)}, n={self.n}, channels={self.channels}, "
            f"duration={self.duration:g}, {own}{rows}, {self.values.dtype})"
        )

    def _count(self, rows: Tensor | None) -> None:
        """How many rows of each series there are to draw from, and which: once, not at a step."""
        if rows is None:
            self.counts = torch.full((len(self),), self.n, device=self.values.device)
            self._rows = None
        else:
            self.counts = rows.sum(1)
            self._rows = rows.nonzero()[:, 1]
        self._starts = self.counts.cumsum(0) - self.counts

    def __getitem__(self, series: Any) -> Observations:
        """Some of the series, as observations of their own: a slice, or whole numbers; one is kept
        as one.
        """
        if not isinstance(series, slice):
            series = as_tensor(series, "series").reshape(-1).to(self.values.device)
            if series.dtype != torch.bool:
                series = as_integers(series, "series", -len(self), len(self) - 1)
        parts = (None if part is None else part[series] for part in self._tables)
        return Observations(*parts, duration=self.duration)

    @property
    def _tables(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What makes these observations again, with their duration."""
        return self.values, None if self.t is None else self.times, self.observed

    @property
    def rows(self) -> Tensor:
        """(S, N) bool, where anything was observed."""
        rows = any_channel(self.observed)
        shape = self.values.shape[:2]
        return self.values.new_ones(shape, dtype=torch.bool) if rows is None else rows

    @property
    def whole(self) -> Observations:
        """The observations of which some are hidden here, see `hide`; else these themselves."""
        return self if self._whole is None else self._whole

    @property
    def times(self) -> Tensor:
        """When each row was observed, in the unit of the duration: (S, N) float64."""
        if self.t is not None:
            return self.t * self.duration
        grid = torch.arange(self.n, dtype=torch.float64, device=self.values.device)
        return (grid * self.duration / max(self.n - 1, 1)).expand(len(self), -1)

    def series_index(self, series: Any) -> Tensor:
        """Which series, (B,) int64 on the data's device, from one number or many.

        Raises:
            TypeError: for what is not made of whole numbers.
            ValueError: for one that is negative, or not below the number of series.

        >>> Observations(torch.zeros(3, 4, 1)).series_index(2)
        tensor([2])
        """
        index = as_tensor(series, "series")
        if index.dim() > 1:
            raise ValueError(f"expected series (B,), got {tuple(index.shape)}")
        index = index.reshape(-1).to(self.values.device)
        return as_integers(index, "series", 0, len(self) - 1)

    def sample(self, series: Any, fraction: Any) -> Drawn:
        """Observed rows, each as likely as any other of its series.

        Args:
            series: (B,) int64, which series.
            fraction: (B, Q) in [0, 1), uniform random numbers: which of its observed rows.

        Returns:
            `Drawn`, their exact times and values.

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
        series = series.unsqueeze(1)
        t = row.double() / max(self.n - 1, 1) if self.t is None else self.t[series, row]
        channels = None
        if self.observed is not None and self.observed.dim() == 3:
            channels = self.observed[series, row]
        return Drawn(t, row, self.values[series, row], channels)

    def hide(self, hidden: Any) -> Observations:
        """The same without some rows, for a posterior to read, while the loss keeps the whole.

        A posterior that is given less is still a posterior, and the bound a bound. That is how it
        learns to fill holes.

        Args:
            hidden: (S, N) or (N,) bool, True for the rows to hide, in the order of ``values``.

        Raises:
            TypeError, ValueError: as for ``observed``; if a series has nothing left.

        >>> data = Observations(torch.randn(5, 41, 3))
        >>> view = data.hide(torch.arange(41) > 30)
        >>> view.counts.tolist(), view.whole is data
        ([31, 31, 31, 31, 31], True)
        """
        hidden = as_mask(hidden, "hidden", self.values.device)
        if hidden.shape not in (self.values.shape[:2], self.values.shape[1:2]):
            raise ValueError(
                f"expected hidden {tuple(self.values.shape[:2])} or ({self.n},), got "
                f"{tuple(hidden.shape)}"
            )
        seen = ~hidden.expand(self.values.shape[:2])
        if self.observed is not None:
            seen = self.observed & (seen.unsqueeze(-1) if self.observed.dim() == 3 else seen)
        rows = any_channel(seen)
        _require_rows(rows, "a series has no observed row left")
        view = copy.copy(self)  # rows keep their places
        there = seen if seen.dim() == 3 else seen.unsqueeze(-1)
        view.values, view.observed = torch.where(there, self.values, 0), seen
        view.complete, view._whole = bool(seen.all()), self.whole
        view._count(rows)
        return view

    def to(self, *args, **kwargs) -> Observations:
        """On another device, or in another dtype: what `torch.Tensor.to` takes."""
        values = self.values.to(*args, **kwargs)
        rest = (None if part is None else part.to(values.device) for part in self._tables[1:])
        return Observations(values, *rest, duration=self.duration)

    def fingerprint(self) -> str:
        """Equal for equal observations, and for others different: what a checkpoint remembers them
        by.
        """
        digest = hashlib.sha256(repr((tuple(self.values.shape), self.duration)).encode())
        for table in (self.values, self.observed, self.t):
            if table is not None:
                digest.update(table.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def as_observations(data: Any) -> Observations:
    """The data as they are. Raises: TypeError for anything but `Observations`."""
    if not isinstance(data, Observations):
        raise TypeError(
            f"expected data as Observations, got {type(data).__name__}: "
            "Observations(values, times, observed, duration=...)"
        )
    return data


def _require_rows(rows: Tensor | None, message: str) -> None:
    if rows is not None:
        require(lambda: rows.any(1).all(), message)
