"""Cells opened whole, those first that an error may come from most (chapter
``self_attention/opening``).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fractal_lib.self_attention.chunks import Chunk
from fractal_lib.self_attention.layout import Layout

__all__ = ["worst_cells"]


def worst_cells(
    found: Iterable[tuple[int, Tensor, Tensor]],
    counts: list[Tensor],
    holders: list[Tensor | None],
    bias: Tensor,
    layout: Layout,
    number: int,
) -> Tensor:
    """For each query the keys of the cells whose terms in its bound are largest, as many whole
    cells as ``number`` keys hold.

    Args:
        found: `fractal_lib.self_attention.certificate.terms` without keys opened.
        counts: as in `fractal_lib.self_attention.cells.means`.
        holders: as in `fractal_lib.self_attention.opening.Chosen`.
        bias, layout: as in `fractal_lib.self_attention.blocks.attend`.
        number: O, keys to open at most.

    Returns:
        (G, N, O) int32, all different; -1 where fewer are opened.

    Complexity: O(N (K + O log O)) beyond the bound itself. Source: chapter
    ``self_attention/opening``.
    """
    n, picked = counts[0].shape[1], []
    key_of, first = _members(counts, holders, layout)  # (A, scales n), (A, rows of all scales)
    for start, term, _ in found:
        count = _in_rows(bias, start, layout, len(term))  # (G, C, K) keys of each cell
        best = term.topk(min(number, term.shape[-1]), -1)
        size = torch.where(best.values > 0, count.gather(-1, best.indices), 0)
        end = size.cumsum(-1)
        slot = torch.arange(number, device=term.device).expand(*term.shape[:2], -1).contiguous()
        cell = torch.searchsorted(end, slot, right=True)
        last = cell.clamp(max=end.shape[-1] - 1)
        # a cell that does not fit is left whole, and so are those after it
        there = (cell < end.shape[-1]) & (end.gather(-1, last) <= number)
        within = slot - (end - size).gather(-1, last)
        row = _rows(start, counts, layout).expand(len(term), -1, -1)
        row = row.gather(-1, best.indices.gather(-1, last))
        repeats = len(term) // max(1, len(first))
        begin = first.repeat_interleave(repeats, 0).gather(1, row.flatten(1)).view_as(row)
        at = torch.where(there, begin + within, 0)
        key = key_of.repeat_interleave(repeats, 0).gather(1, at.flatten(1)).view_as(at)
        picked.append(torch.where(there, key, -1).int())
    return torch.cat(picked, 1)[:, :n]


def _members(
    counts: list[Tensor], holders: list[Tensor | None], layout: Layout
) -> tuple[Tensor, Tensor]:
    """The keys, sorted by the cell that holds them, for all scales one after another; and where the
    keys of each cell begin among them.
    """
    groups, n = counts[0].shape
    keys, begins = [], []
    position = torch.arange(n, device=counts[0].device)
    for scale, count in enumerate(counts):
        holder = holders[scale]
        if holder is None:
            holder = position * layout.size(scale) // layout.width(scale)
            holder = holder.expand(groups, n)
        holder = torch.where(counts[0] > 0, holder, n)  # padding goes last
        keys.append(holder.sort(dim=-1, stable=True).indices)
        begins.append(count.long().cumsum(-1) - count.long() + scale * n)
    return torch.cat(keys, -1), torch.cat(begins, -1)


def _in_rows(bias: Tensor, start: int, layout: Layout, groups: int) -> Tensor:
    """(G, C, K) int64: keys behind each column of a chunk's queries."""
    part = bias[:, start // layout.near : (start + layout.chunk) // layout.near]
    count = part.exp().round().long().repeat_interleave(layout.near, 1)
    return count.repeat_interleave(groups // max(1, len(bias)), 0)


def _rows(start: int, counts: list[Tensor], layout: Layout) -> Tensor:
    """(C, K): the row of each column among the keys and cells of all scales, one after another;
    some other where it is none.
    """
    chunk, found, before = Chunk(layout, start, counts[0].dtype), [], 0
    for scale, count in enumerate(counts):
        row = chunk.places(scale, count.device) - layout.size(scale)  # tables begin with a block
        found.append(row.clamp(0, count.shape[1] - 1) + before)
        before += count.shape[1]
    return torch.cat(found, -1)
