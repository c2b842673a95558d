"""Rows pooled by two, level upon level, packed into one tensor that `read` can gather from."""

import torch
from torch import Tensor, nn

from fractal_lib.attention.cells import Cells, all_levels
from fractal_lib.attention.checks import require


class Pyramid:
    """Rows and their means over 2, 4, 8, ... neighbours: prepared once, read many times.

    Args:
        rows: (B, N, H) floating point; N >= 1 of any size.
        observed: (N,) or (B, N) bool, False where a row is missing; its value (NaN, say) is ignored.
        times: (N,) or (B, N) in [0, 1], any order, for rows that are not evenly spaced. Rows are
            binned into ``bins`` cells of level 0, each with the mean time of its rows; from then on
            "samples" are bins. With ``levels=1`` and no ``bins`` each row keeps its own time.
        bins: number of level-0 cells when ``times`` is given; default N.
        order: 0 for means alone; 1 also packs first moments, which `FractalAttention(order=1)` reads.
        levels: number of levels; default all, 1 packs the rows alone (and copies nothing).

    Attributes:
        rows: (B, P, H), P < 2N + log2(N): means of the observed rows of each cell, 0 where there is
            none; with order 1 (B, 2P, H), the second half the means of (position - centre) * row,
            in units of the cell's width.
        cells: the `Cells` of this packing, which tell counts and centres.

    Raises:
        TypeError: for rows or times that are not floating point, or a mask that is not bool.
        ValueError: for wrong shapes, a NaN among the observed rows when more than one level is asked
            for, times outside [0, 1], or a sample without any observed row.

    Complexity: O(N H) once. Means and not sums are stored: they keep the rows' magnitude, so half
    precision does not overflow. Without ``observed``, ``times`` and gradients the packing is filled in place:
    peak extra memory is that of the packing, twice the rows'. Source: chapter ``attention/fractal``.

    >>> pyramid = Pyramid(torch.tensor([[[1.0], [2.0], [4.0]]]))
    >>> pyramid.rows.flatten()
    tensor([1.0000, 2.0000, 4.0000, 1.5000, 4.0000, 2.3333])
    >>> pyramid.sums.flatten()
    tensor([1., 2., 4., 3., 4., 7.])
    """

    def __init__(
        self,
        rows: Tensor,
        observed: Tensor | None = None,
        times: Tensor | None = None,
        bins: int | None = None,
        order: int = 0,
        levels: int | None = None,
    ):
        _check_rows(rows, observed, times)
        if order not in (0, 1) or (bins is not None and (times is None or bins < 1)):
            raise ValueError(f"expected order 0 or 1, and bins >= 1 with times alone; got order={order}, bins={bins}")
        n = rows.shape[1] if bins is None else bins
        levels = all_levels(n) if levels is None else levels
        if levels > 1:
            require(
                lambda: ~(rows.isnan().any(-1) & (True if observed is None else observed)).any(),
                "an observed row is NaN: mark missing rows with `observed`",
            )
        self.cells = Cells(n, levels)
        moment = None
        if observed is not None or times is not None:
            binned = levels > 1 or bins is not None
            rows, moment, count, centre = _level_zero(rows, observed, times, n, binned)
            self.cells = Cells(n, levels, *_pool_tables(count, centre, levels))
        self.rows = _pool_means(rows, self.cells)
        if order:
            moment = torch.zeros_like(rows) if moment is None else moment
            self.rows = torch.cat([self.rows, _pool_moments(self.rows, moment, self.cells)], 1)

    @property
    def counts(self) -> Tensor:
        """(B or 1, P) int64: how many observed rows stand behind each cell."""
        if self.cells.counts is not None:
            return self.cells.counts.long()
        n = self.cells.n
        parts = [torch.full((size,), 2**k) for k, size in enumerate(self.cells.sizes)]
        for part in parts:  # the last cell of a level holds what is left
            part[-1] = n - (part.numel() - 1) * part[-1]
        return torch.cat(parts).unsqueeze(0).to(self.rows.device)

    @property
    def sums(self) -> Tensor:
        """(B, P, H): sums of the observed rows of each cell."""
        counts = self.counts
        return self.rows[:, : counts.shape[1]] * counts.unsqueeze(-1)


def _check_rows(rows: Tensor, observed: Tensor | None, times: Tensor | None) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        raise TypeError(
            f"rows must be a floating point tensor, got {rows.dtype if isinstance(rows, Tensor) else type(rows)}"
        )
    if rows.dim() != 3 or rows.shape[1] < 1:
        raise ValueError(f"rows must have shape (B, N, H) with N >= 1, got {tuple(rows.shape)}")
    for name, table in (("observed", observed), ("times", times)):
        if table is not None and table.shape not in (rows.shape[1:2], rows.shape[:2]):
            raise ValueError(
                f"{name} must have shape (N,) or (B, N) for rows {tuple(rows.shape)}, got {tuple(table.shape)}"
            )
    if observed is not None:
        if observed.dtype != torch.bool:
            raise TypeError(f"observed must be bool, got {observed.dtype}")
        require(lambda: observed.any(-1).all(), "a sample has no observed row at all")
    if times is not None:
        if not times.is_floating_point():
            raise TypeError(f"times must be floating point, got {times.dtype}")
        require(lambda: ((times >= 0) & (times <= 1)).all(), "times must lie in [0, 1]")


def _level_zero(rows, observed, times, n, binned):
    """Means, first moments, counts and centres of level 0: (B, n, H) twice, (B or 1, n) twice."""
    observed = rows.new_ones(1, rows.shape[1], dtype=torch.bool) if observed is None else torch.atleast_2d(observed)
    rows = torch.where(observed.unsqueeze(-1), rows, 0)
    if times is None:
        centre = torch.arange(n, device=rows.device, dtype=torch.float64).expand(observed.shape)
        return rows, torch.zeros_like(rows), observed.to(torch.int32), centre
    place = torch.atleast_2d(times).double() * (n - 1)  # (B or 1, N)
    place, observed = torch.broadcast_tensors(place, observed)
    if not binned:
        return rows, None, observed.to(torch.int32), place
    bin_of = (place + 0.5).floor().long().clamp(0, n - 1)
    count = place.new_zeros(place.shape[0], n).scatter_add(1, bin_of, observed.double())
    centre = place.new_zeros(place.shape[0], n).scatter_add(1, bin_of, place * observed) / count.clamp(min=1)
    lag = (place - centre.gather(1, bin_of)).unsqueeze(-1).to(rows.dtype)
    share = count.clamp(min=1).unsqueeze(-1).to(rows.dtype)
    bin_of = bin_of.unsqueeze(-1).expand_as(rows)
    mean, moment = (
        rows.new_zeros(rows.shape[0], n, rows.shape[2]).scatter_add(1, bin_of, value) / share
        for value in (rows, lag * rows)
    )
    return mean, moment, count.to(torch.int32), centre


def _pool_tables(count: Tensor, centre: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Counts and mean positions of every level from those of level 0, packed (B or 1, P)."""
    counts, places = [count], [count * centre]  # sums of positions pool by adding
    for _ in range(1, levels):
        counts.append(_add_pairs(counts[-1]))
        places.append(_add_pairs(places[-1]))
    counts, places = torch.cat(counts, 1), torch.cat(places, 1)
    return counts, places / counts.clamp(min=1)


def _add_pairs(x: Tensor) -> Tensor:
    left, right = x[:, ::2], x[:, 1::2]
    return left + nn.functional.pad(right, (0, left.shape[1] - right.shape[1]))


def _right_share(cells: Cells, level: int) -> tuple[Tensor | float, Tensor | float]:
    """Share of the right child in each parent of a level: for all but the last parent, and for the last."""
    size = cells.sizes[level]
    if cells.counts is None:
        in_last = cells.n - (size - 1) * 2**level
        return 0.5, max(in_last - 2 ** (level - 1), 0) / in_last
    child, parent = (cells.counts.split(cells.sizes, 1)[k] for k in (level - 1, level))
    right = nn.functional.pad(child, (0, child.shape[1] % 2))[:, 1::2]
    share = (right.double() / parent.clamp(min=1)).unsqueeze(-1)  # (B or 1, m, 1)
    return share[:, :-1], share[:, -1:]


def _pool_means(rows: Tensor, cells: Cells) -> Tensor:
    """Means of every level, packed (B, P, H)."""
    if cells.levels == 1:
        return rows
    sizes, batch = cells.sizes, rows.shape[0]
    # In place needs no second copy of the packing; autograd prefers one cat to many in-place slices.
    packed = None if rows.requires_grad else rows.new_empty(batch, sum(sizes), rows.shape[2])
    levels = [rows] if packed is None else [packed.narrow(1, 0, sizes[0]).copy_(rows)]
    for k in range(1, cells.levels):
        body, last = (s.to(rows.dtype) if isinstance(s, Tensor) else s for s in _right_share(cells, k))
        below, whole = levels[-1], sizes[k] - 1
        left, right = below[:, ::2], below[:, 1::2]
        end = left[:, whole:] if right.shape[1] == whole else torch.lerp(left[:, whole:], right[:, whole:], last)
        if packed is None:
            level = torch.cat([torch.lerp(left[:, :whole], right[:, :whole], body), end], 1)
        else:
            level = packed.narrow(1, sum(sizes[:k]), sizes[k])
            level[:, :whole].copy_(right[:, :whole]).sub_(left[:, :whole]).mul_(body).add_(left[:, :whole])
            level[:, whole:].copy_(end)
        levels.append(level)
    return torch.cat(levels, 1) if packed is None else packed


def _pool_moments(means: Tensor, moment: Tensor, cells: Cells) -> Tensor:
    """Means of (position - centre) * row, in widths of the cell, of every level, packed (B, P, H)."""
    levels = [moment]
    for k in range(1, cells.levels):
        cell = torch.arange(2 * cells.sizes[k], device=means.device).expand(means.shape[0], -1)
        index, count = cells.look(k - 1, cell)  # both children of each parent
        share = count / cells.look(k, cell // 2)[1].clamp(min=1)
        shift = (cells.centre(k - 1, cell) - cells.centre(k, cell // 2)) / 2**k
        index = index - sum(cells.sizes[: k - 1])
        mean = _along_rows(means.narrow(1, sum(cells.sizes[: k - 1]), cells.sizes[k - 1]), index)
        below = _along_rows(levels[-1], index)
        parts = share.unsqueeze(-1).to(means.dtype) * (below / 2 + shift.unsqueeze(-1).to(means.dtype) * mean)
        levels.append(parts.unflatten(1, (-1, 2)).sum(2))
    return torch.cat(levels, 1)


def _along_rows(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[2]))
