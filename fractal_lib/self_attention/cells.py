"""Cells of several keys: their means, their counts, and which of them a block of queries reads
(chapter ``attention/self_attention``).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fractal_lib.self_attention.layout import FILL, Layout, in_blocks, out_of_blocks

__all__ = ["has_key", "key_counts", "log_counts", "means", "means_backward"]


def key_counts(valid: Tensor, layout: Layout) -> list[Tensor]:
    """How many keys stand behind each key (0 or 1) and each cell, scale by scale.

    Args:
        valid: (A, N), floating point, 1 for a key and 0 for padding.
        layout: a `Layout`.
    """
    counts = [valid]
    for scale in range(1, layout.scales):
        counts.append(_pool(counts[-1], scale, layout, valid.dtype))
    return counts


def means(rows: Tensor, counts: list[Tensor], layout: Layout) -> list[Tensor]:
    """The rows, then the means over the cells of each scale, all `in_blocks`.

    Args:
        rows: (G, N, D), keys or values, zero where padding is.
        counts: `key_counts`, (A, ...) where A divides G.
        layout: a `Layout`.
    """
    tables, sums = [in_blocks(rows, 0, layout)], rows
    for scale in range(1, layout.scales):
        sums = _pool(sums, scale, layout, counts[0].dtype)
        tables.append(in_blocks(sums / _divisor(counts[scale], sums), scale, layout))
    return tables


def means_backward(grads: list[Tensor], counts: list[Tensor], layout: Layout) -> Tensor:
    """The derivative of `means` with respect to its rows: from the coarsest scale down."""
    total = torch.zeros((), dtype=grads[0].dtype, device=grads[0].device)
    for scale in range(layout.scales - 1, -1, -1):
        grad = out_of_blocks(grads[scale], counts[scale].shape[1])
        if scale:
            grad = grad / _divisor(counts[scale], grad)
        total = grad + total
        if scale:  # a sum's derivative goes to all that it is a sum of
            below = counts[scale - 1].shape[1]
            total = total.repeat_interleave(_width(scale, layout), 1)[:, :below]
    return total


def log_counts(counts: list[Tensor], layout: Layout) -> Tensor:
    """(A, blocks of scale 0, columns of all scales): log(count), or `FILL` where nothing is to be
    read.
    """
    parts = []
    for scale, count in enumerate(counts):
        log_count = torch.where(count > 0, count.log(), FILL)
        # (A, P + 2, size)
        blocks, reads = in_blocks(log_count, scale, layout, FILL), layout.count(scale)
        # (A, P, columns)
        part = torch.cat([blocks[:, s : s + reads] for s in layout.shifts(scale)], 2)
        if scale:
            halves = part.unsqueeze(2).masked_fill(_read_below(scale, layout, count.device), FILL)
            part = halves.flatten(1, 2).repeat_interleave(2 ** (scale - 1), 1)
        parts.append(part[:, : layout.length // layout.near])
    return torch.cat(parts, -1)


def has_key(bias: Tensor, layout: Layout) -> Tensor:
    """(A, length) bool: which queries have a key to read at all, by their `log_counts`."""
    near, readable = layout.near, bias > FILL / 2
    if not layout.causal:
        return readable.any(-1).repeat_interleave(near, 1)
    own = readable[..., near : 2 * near].cumsum(-1) > 0  # (A, blocks, near)
    before = torch.cat([readable[..., :near], readable[..., 2 * near :]], -1).any(-1, keepdim=True)
    return (own | before).flatten(1)


def _width(scale: int, layout: Layout) -> int:
    """Members of a cell on the scale below: keys (scale 1) or cells."""
    return layout.near // layout.half if scale == 1 else 2


def _pool(rows: Tensor, scale: int, layout: Layout, dtype: torch.dtype) -> Tensor:
    """(G, N, ...) -> sums over the cells of a scale, of the rows (scale 1) or of the sums on the
    scale below.
    """
    width = _width(scale, layout)
    ends = (0, 0) * (rows.dim() - 2) + (0, -rows.shape[1] % width)
    padded = pad(rows, ends)
    return padded.unflatten(1, (padded.shape[1] // width, width)).sum(2, dtype=dtype)


def _divisor(count: Tensor, rows: Tensor) -> Tensor:
    """count (A, M), at least 1, as it divides rows (G, M, D)."""
    repeats = rows.shape[0] // max(1, count.shape[0])
    return count.clamp(min=1).repeat_interleave(repeats, 0).unsqueeze(-1)


def _read_below(scale: int, layout: Layout, device: torch.device) -> Tensor:
    """(2, columns) bool: what the scale below has read, for queries in the first and the second
    half of a block.

    A block of that scale is half a block of this one, and has read the nearest half on either side.
    On one side that is the other half of its own block, on the other side the nearer half of a
    neighbour.
    """
    # 0, 1: before; 2, 3: after
    quarter = torch.arange(layout.columns(scale), device=device) // layout.half
    return quarter == torch.tensor([[1], [2]], device=device)
