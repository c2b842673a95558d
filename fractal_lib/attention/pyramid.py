"""Rows pooled by two, level upon level, packed into one tensor that `read` can gather from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fractal_lib.attention.pooling import (
    level_zero,
    pool_means,
    pool_moments,
    pool_tables,
    renew_means,
    renew_tables,
    repack,
)
from fractal_lib.attention.tree import Tree, all_levels
from fractal_lib.checks import as_float, as_int, as_mask, require

__all__ = ["Pyramid"]


class Pyramid:
    """Values and their means over 2, 4, 8 and more neighbours: prepared once, read many times.

    Args:
        values: (B, N, H) floating point; N >= 1 of any size.
        observed: (N,) or (B, N) bool, True where a row is there; another's value (NaN, say) is
            ignored.
        times: (N,) or (B, N) in [0, 1], any order, for rows that are not evenly spaced. Rows are
            binned into ``bins`` nodes of level 0, each with the mean time of its rows; from then on
            "samples" are bins. With ``levels=1`` and no ``bins`` each row keeps its own time.
        bins: number of level-0 nodes when ``times`` is given; default N.
        expansion: 0 for means alone; 1 also packs first moments, as
            `MultilevelAttention(..., expansion=1)` reads them.
        levels: number of levels; default all, 1 packs the rows alone (and copies nothing).

    Tensors, numpy arrays and lists are taken alike.

    Attributes:
        values: (B, P, H), P < 2N + log2(N): means of the observed rows of each node, 0 where there
            is none; with expansion 1 (B, 2P, H), the second half the means of
            (position - centroid) * value, in units of the node's width. After `append` there may be
            unused slots between the levels.
        tree: the `Tree` of this packing, which tells counts and centroids.

    Raises:
        TypeError: for values or times that are not floating point, or a mask that is not bool.
        ValueError: for wrong shapes, an observed row that is not finite when more than one level is
            asked for, times outside [0, 1], or a sample without any observed row.

    Complexity: O(N H) once. Means and not sums are stored: they keep the values' magnitude, so half
    precision does not overflow. Without ``observed``, ``times`` and gradients the packing is filled
    in place: peak extra memory is that of the packing, twice the values'. Source: chapter
    ``start/ladder``.

    >>> pyramid = Pyramid(torch.tensor([[[1.0], [2.0], [4.0]]]))
    >>> pyramid
    Pyramid(values=(1, 6, 1) torch.float32, tree=Tree(n=3, levels=3, complete))
    >>> pyramid.values.flatten()
    tensor([1.0000, 2.0000, 4.0000, 1.5000, 4.0000, 2.3333])
    >>> pyramid.sums.flatten()
    tensor([1., 2., 4., 3., 4., 7.])
    >>> pyramid.append(torch.tensor([[[5.0]]]))
    >>> pyramid.values.flatten()
    tensor([1.0000, 2.0000, 4.0000, 5.0000, 1.5000, 4.5000, 3.0000])
    """

    def __init__(
        self,
        values: Any,
        observed: Any = None,
        times: Any = None,
        *,
        bins: int | None = None,
        expansion: int = 0,
        levels: int | None = None,
    ):
        values, observed, times = _checked(values, observed, times)
        if expansion not in (0, 1):
            raise ValueError(f"expected expansion 0 or 1, got {expansion}")
        if bins is not None and times is None:
            raise ValueError("bins go with times: rows without times are their own bins")
        n = values.shape[1] if bins is None else as_int(bins, "bins", least=1)
        self._levels = None if levels is None else as_int(levels, "levels", least=1)
        levels = self._levels or all_levels(n)
        if levels > 1:
            _check_finite(values, observed)
        self.tree = Tree(n, levels)
        moment = None
        if observed is not None or times is not None:
            binned = levels > 1 or bins is not None
            values, moment, count, centroid = level_zero(values, observed, times, n, binned)
            places = "rows" if times is None else "bins" if binned else "free"
            most = count.amax(-1) if places == "bins" else 1
            first = 0 if places == "free" else (count > 0).int().argmax(-1)
            tables = pool_tables(count, centroid, levels)
            self.tree = Tree(n, levels, *tables, places=places, most=most, first=first)
        self.values = pool_means(values, self.tree)
        self.expansion = expansion
        if expansion:
            moment = torch.zeros_like(values) if moment is None else moment
            self.values = torch.cat([self.values, pool_moments(self.values, moment, self.tree)], 1)

    def __repr__(self) -> str:
        return f"Pyramid(values={tuple(self.values.shape)} {self.values.dtype}, tree={self.tree})"

    def to(self, *args, **kwargs) -> Pyramid:
        """On another device, or in another dtype: what `torch.Tensor.to` takes."""
        other = copy.copy(self)
        other.values = self.values.to(*args, **kwargs)
        other.tree = self.tree.to(other.values.device)
        if self.tree.capacity > self.tree.n:  # what one appends must not show in the other
            other._reserve(self.tree.n, fresh=True)
        return other

    @torch.no_grad()
    def append(self, values: Any, observed: Any = None) -> None:
        """Add rows at the end, in place: of each level only the nodes that hold them are made anew.

        The result is that of all rows at once. A `Tree` or `values` that were taken from the
        pyramid before are not to be used any more. Nodes that were complete do not change: with a
        causal attention, neither does what was read at earlier rows.

        Args:
            values: (B, M, H) floating point, M >= 1 rows; brought to the pyramid's dtype and
                device.
            observed: (M,) or (B, M) bool, True where a row is there; default all.

        Raises:
            TypeError, ValueError: as for a new pyramid. ValueError for one that has irregular times
                or first moments (``expansion=1``), or for values that require a gradient.

        Complexity: O(H (M + log N)), a node of each level for one row. When the slots are used up,
        N H numbers are copied to a packing with slots for the next power of two of rows, so that
        growing from 1 to N rows copies O(N H) in all. The first ``observed`` costs O(N) once.
        """
        if self.tree.places != "rows" or self.expansion:
            raise ValueError(
                "rows can be appended to evenly spaced rows and their means alone, got "
                f"{'expansion=1' if self.expansion else 'irregular times'}: build it anew"
            )
        values, observed = _checked_rows(values, observed)
        batch, _, hidden = self.values.shape
        if (values.shape[0], values.shape[2]) != (batch, hidden):
            raise ValueError(
                f"expected rows of shape ({batch}, M, {hidden}), got {tuple(values.shape)}"
            )
        if self.values.requires_grad or values.requires_grad:
            raise ValueError("rows are appended in place, without gradients: detach() first")
        values = values.to(self.values)
        observed = None if observed is None else observed.to(values.device)
        old, new = self.tree.n, values.shape[1]
        levels = self._levels or all_levels(old + new)
        if levels > 1:
            _check_finite(values, observed)
            if self.tree.levels == 1:  # one row, which was not looked at
                _check_finite(self.values[:, :1], None)
        self._reserve(old + new, observed)
        tree, tables = self.tree, self.tree.tables
        if tables is not None:
            there = values.new_ones(1, new, dtype=torch.bool) if observed is None else observed
            there = torch.atleast_2d(there)
            values = torch.where(there.unsqueeze(-1), values, 0)
            row = torch.arange(old, old + new, device=there.device)
            for table, at in zip(tables, (there, row * there), strict=True):
                table.narrow(1, old, new).copy_(at)
        self.values.narrow(1, old, new).copy_(values)
        for level in range(1, tree.levels):
            if tables is not None:
                renew_tables(*tables, tree, level, old >> level)
            renew_means(self.values, tree, level, old >> level)

    def _reserve(self, n: int, observed: Tensor | None = None, *, fresh: bool = False) -> None:
        """Slots for n rows, and tables if rows may be missing; ``fresh``, in new storage."""
        old, levels = self.tree, self._levels or all_levels(n)
        left = self.values.is_inference() and not torch.is_inference_mode_enabled()
        fresh |= left or n > old.capacity  # inference tensors are not written to outside its mode
        capacity = 2 ** (all_levels(n) - 1) if fresh else old.capacity
        new = Tree(n, levels, capacity=capacity)
        tables = old.tables
        if fresh:
            self.values = repack(self.values, old, new)
        if tables is not None and fresh:
            tables = [repack(table, old, new) for table in tables]
        elif tables is None and observed is not None:
            row = torch.arange(old.n, device=self.values.device).unsqueeze(0)
            complete = pool_tables(
                torch.ones_like(row, dtype=torch.int32), row.double(), old.levels
            )
            compact = Tree(old.n, old.levels)
            tables = [repack(table, compact, new) for table in complete]
        if tables is not None:
            rows = 1 if observed is None or observed.dim() == 1 else observed.shape[0]
            if rows > tables[0].shape[0]:  # a mask that all shared is one no more
                tables = [table.expand(rows, -1).clone() for table in tables]
            new = Tree(n, levels, *tables, first=old.first, capacity=capacity)
        self.tree = new

    @property
    def counts(self) -> Tensor:
        """(B or 1, P) int64: how many observed rows stand behind each node."""
        if self.tree.counts is not None:
            return self.tree.counts.long()
        n, sizes = self.tree.n, self.tree.sizes
        parts = [torch.zeros(slots, dtype=torch.int64) for slots in self.tree.slots]
        for k, part in enumerate(parts):
            part[: sizes[k]] = 2**k
            part[sizes[k] - 1] = n - (sizes[k] - 1) * 2**k  # the last node holds what is left
        return torch.cat(parts).unsqueeze(0).to(self.values.device)

    @property
    def sums(self) -> Tensor:
        """(B, P, H): sums of the observed rows of each node."""
        counts = self.counts
        return self.values[:, : counts.shape[1]] * counts.unsqueeze(-1)


def _checked(values: Any, observed: Any, times: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    values, observed = _checked_rows(values, observed)
    if observed is not None:
        require(lambda: observed.any(-1).all(), "a sample has no observed row at all")
    if times is not None:
        times = as_float(times, "times").to(values.device)
        _check_shape("times", times, values)
        require(
            lambda: ((times >= 0) & (times <= 1)).all(),
            "times must lie in [0, 1]: divide by the duration",
        )
    return values, observed, times


def _checked_rows(values: Any, observed: Any) -> tuple[Tensor, Tensor | None]:
    values = as_float(values, "values")
    if values.dim() != 3 or values.shape[1] < 1:
        raise ValueError(f"values must have shape (B, N, H) with N >= 1, got {tuple(values.shape)}")
    if observed is not None:
        observed = as_mask(observed, device=values.device)
        _check_shape("observed", observed, values)
    return values, observed


def _check_finite(values: Tensor, observed: Tensor | None) -> None:
    there = True if observed is None else observed
    require(
        lambda: (values.isfinite().all(-1) | ~torch.as_tensor(there)).all(),
        "an observed row is NaN or infinite: mark missing rows with `observed`",
    )


def _check_shape(name: str, table: Tensor, values: Tensor) -> None:
    shapes = values.shape[1:2], values.shape[:2]
    if table.shape not in shapes:
        raise ValueError(
            f"{name} must have shape (N,) or (B, N), here {tuple(shapes[0])} or "
            f"{tuple(shapes[1])}, got {tuple(table.shape)}"
        )
