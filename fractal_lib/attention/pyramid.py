"""Rows pooled by two, level upon level, packed into one tensor that `read` can gather from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.attention.tree import Tree, all_levels
from fractal_lib.checks import as_float, as_int, as_mask, require

__all__ = ["Pyramid"]


class Pyramid:
    """Values and their means over 2, 4, 8, ... neighbours: prepared once, read many times.

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
            (position - centroid) * value, in units of the node's width.
        tree: the `Tree` of this packing, which tells counts and centroids.

    Raises:
        TypeError: for values or times that are not floating point, or a mask that is not bool.
        ValueError: for wrong shapes, an observed row that is not finite when more than one level is
            asked for, times outside [0, 1], or a sample without any observed row.

    Complexity: O(N H) once. Means and not sums are stored: they keep the values' magnitude, so half
    precision does not overflow. Without ``observed``, ``times`` and gradients the packing is filled
    in place: peak extra memory is that of the packing, twice the values'. Source: chapter
    ``attention/fractal``.

    >>> pyramid = Pyramid(torch.tensor([[[1.0], [2.0], [4.0]]]))
    >>> pyramid
    Pyramid(values=(1, 6, 1) torch.float32, tree=Tree(n=3, levels=3, complete))
    >>> pyramid.values.flatten()
    tensor([1.0000, 2.0000, 4.0000, 1.5000, 4.0000, 2.3333])
    >>> pyramid.sums.flatten()
    tensor([1., 2., 4., 3., 4., 7.])
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
        levels = all_levels(n) if levels is None else as_int(levels, "levels", least=1)
        if levels > 1:
            there = True if observed is None else observed
            require(
                lambda: (values.isfinite().all(-1) | ~torch.as_tensor(there)).all(),
                "an observed row is NaN or infinite: mark missing rows with `observed`",
            )
        self.tree = Tree(n, levels)
        moment = None
        if observed is not None or times is not None:
            binned = levels > 1 or bins is not None
            values, moment, count, centroid = _level_zero(values, observed, times, n, binned)
            places = "rows" if times is None else "bins" if binned else "free"
            most = count.amax(-1) if places == "bins" else 1
            tables = _pool_tables(count, centroid, levels)
            self.tree = Tree(n, levels, *tables, places=places, most=most)
        self.values = _pool_means(values, self.tree)
        if expansion:
            moment = torch.zeros_like(values) if moment is None else moment
            self.values = torch.cat([self.values, _pool_moments(self.values, moment, self.tree)], 1)

    def __repr__(self) -> str:
        return f"Pyramid(values={tuple(self.values.shape)} {self.values.dtype}, tree={self.tree})"

    def to(self, *args, **kwargs) -> Pyramid:
        """On another device, or in another dtype: what `torch.Tensor.to` takes."""
        other = copy.copy(self)
        other.values = self.values.to(*args, **kwargs)
        other.tree = self.tree.to(other.values.device)
        return other

    @property
    def counts(self) -> Tensor:
        """(B or 1, P) int64: how many observed rows stand behind each node."""
        if self.tree.counts is not None:
            return self.tree.counts.long()
        n = self.tree.n
        parts = [torch.full((size,), 2**k) for k, size in enumerate(self.tree.sizes)]
        for part in parts:  # a level's last node holds what is left
            part[-1] = n - (part.numel() - 1) * part[-1]
        return torch.cat(parts).unsqueeze(0).to(self.values.device)

    @property
    def sums(self) -> Tensor:
        """(B, P, H): sums of the observed rows of each node."""
        counts = self.counts
        return self.values[:, : counts.shape[1]] * counts.unsqueeze(-1)


def _checked(values: Any, observed: Any, times: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    values = as_float(values, "values")
    if values.dim() != 3 or values.shape[1] < 1:
        raise ValueError(f"values must have shape (B, N, H) with N >= 1, got {tuple(values.shape)}")
    shapes = values.shape[1:2], values.shape[:2]
    if observed is not None:
        observed = as_mask(observed, device=values.device)
        _check_shape("observed", observed, shapes)
        require(lambda: observed.any(-1).all(), "a sample has no observed row at all")
    if times is not None:
        times = as_float(times, "times").to(values.device)
        _check_shape("times", times, shapes)
        require(
            lambda: ((times >= 0) & (times <= 1)).all(),
            "times must lie in [0, 1]: divide by the duration",
        )
    return values, observed, times


def _check_shape(name: str, table: Tensor, shapes: tuple[torch.Size, torch.Size]) -> None:
    if table.shape not in shapes:
        raise ValueError(
            f"{name} must have shape (N,) or (B, N), here {tuple(shapes[0])} or "
            f"{tuple(shapes[1])}, got {tuple(table.shape)}"
        )


def _level_zero(values, observed, times, n, binned):
    """Means, first moments, counts and centres of level 0: (B, n, H) twice, (B or 1, n) twice."""
    observed = (
        values.new_ones(1, values.shape[1], dtype=torch.bool)
        if observed is None
        else torch.atleast_2d(observed)
    )
    values = torch.where(observed.unsqueeze(-1), values, 0)
    if times is None:
        centroid = torch.arange(n, device=values.device, dtype=torch.float64).expand(observed.shape)
        return values, torch.zeros_like(values), observed.to(torch.int32), centroid
    place = torch.atleast_2d(times).double() * (n - 1)  # (B or 1, N)
    place, observed = torch.broadcast_tensors(place, observed)
    if not binned:
        return values, None, observed.to(torch.int32), place
    bin_of = (place + 0.5).floor().long().clamp(0, n - 1)
    count = place.new_zeros(place.shape[0], n).scatter_add(1, bin_of, observed.double())
    centroid = place.new_zeros(place.shape[0], n).scatter_add(
        1, bin_of, place * observed
    ) / count.clamp(min=1)
    lag = (place - centroid.gather(1, bin_of)).unsqueeze(-1).to(values.dtype)
    share = count.clamp(min=1).unsqueeze(-1).to(values.dtype)
    bin_of = bin_of.unsqueeze(-1).expand_as(values)
    mean, moment = (
        values.new_zeros(values.shape[0], n, values.shape[2]).scatter_add(1, bin_of, value) / share
        for value in (values, lag * values)
    )
    return mean, moment, count.to(torch.int32), centroid


def _pool_tables(count: Tensor, centroid: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Counts and mean positions of every level from those of level 0, packed (B or 1, P)."""
    counts, places = [count], [count * centroid]  # sums of positions pool by adding
    for _ in range(1, levels):
        counts.append(_add_pairs(counts[-1]))
        places.append(_add_pairs(places[-1]))
    counts, places = torch.cat(counts, 1), torch.cat(places, 1)
    return counts, places / counts.clamp(min=1)


def _add_pairs(x: Tensor) -> Tensor:
    left, right = x[:, ::2], x[:, 1::2]
    return left + nn.functional.pad(right, (0, left.shape[1] - right.shape[1]))


def _right_share(tree: Tree, level: int) -> tuple[Tensor | float, Tensor | float]:
    """Share of the right child in each parent of a level: for all but the last parent, and for the
    last.
    """
    size = tree.sizes[level]
    if tree.counts is None:
        in_last = tree.n - (size - 1) * 2**level
        return 0.5, max(in_last - 2 ** (level - 1), 0) / in_last
    child, parent = (tree.counts.split(tree.sizes, 1)[k] for k in (level - 1, level))
    right = nn.functional.pad(child, (0, child.shape[1] % 2))[:, 1::2]
    share = (right.double() / parent.clamp(min=1)).unsqueeze(-1)  # (B or 1, m, 1)
    return share[:, :-1], share[:, -1:]


def _pool_means(values: Tensor, tree: Tree) -> Tensor:
    """Means of every level, packed (B, P, H)."""
    if tree.levels == 1:
        return values
    sizes, batch = tree.sizes, values.shape[0]
    # In place needs no second copy of the packing; autograd prefers one cat to many in-place
    # slices.
    packed = None if values.requires_grad else values.new_empty(batch, sum(sizes), values.shape[2])
    levels = [values] if packed is None else [packed.narrow(1, 0, sizes[0]).copy_(values)]
    for k in range(1, tree.levels):
        body, last = (
            s.to(values.dtype) if isinstance(s, Tensor) else s for s in _right_share(tree, k)
        )
        below, whole = levels[-1], sizes[k] - 1
        left, right = below[:, ::2], below[:, 1::2]
        end = (
            left[:, whole:]
            if right.shape[1] == whole
            else torch.lerp(left[:, whole:], right[:, whole:], last)
        )
        if packed is None:
            level = torch.cat([torch.lerp(left[:, :whole], right[:, :whole], body), end], 1)
        else:
            level = packed.narrow(1, sum(sizes[:k]), sizes[k])
            level[:, :whole].copy_(right[:, :whole]).sub_(left[:, :whole]).mul_(body).add_(
                left[:, :whole]
            )
            level[:, whole:].copy_(end)
        levels.append(level)
    return torch.cat(levels, 1) if packed is None else packed


def _pool_moments(means: Tensor, moment: Tensor, tree: Tree) -> Tensor:
    """Means of (position - centroid) * value, in widths of the node, of every level, packed (B, P,
    H).
    """
    levels = [moment]
    for k in range(1, tree.levels):
        node = torch.arange(2 * tree.sizes[k], device=means.device).expand(means.shape[0], -1)
        index, count = tree.lookup(k - 1, node)  # both children of each parent
        share = count / tree.lookup(k, node // 2)[1].clamp(min=1)
        shift = (tree.centroid(k - 1, node) - tree.centroid(k, node // 2)) / 2**k
        index = index - sum(tree.sizes[: k - 1])
        mean = _along_rows(means.narrow(1, sum(tree.sizes[: k - 1]), tree.sizes[k - 1]), index)
        below = _along_rows(levels[-1], index)
        parts = share.unsqueeze(-1).to(means.dtype) * (
            below / 2 + shift.unsqueeze(-1).to(means.dtype) * mean
        )
        levels.append(parts.unflatten(1, (-1, 2)).sum(2))
    return torch.cat(levels, 1)


def _along_rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[2]))
