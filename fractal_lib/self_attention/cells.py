"""Cells of several keys: their means, their counts, and which of them a block of queries reads
(chapter ``self_attention/near_in_content``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fractal_lib.self_attention.layout import FILL, Layout, in_blocks, out_of_blocks

__all__ = [
    "divided",
    "has_key",
    "holders",
    "key_counts",
    "log_counts",
    "means",
    "means_backward",
    "pooled",
    "reordered",
    "width_of",
]

# for each scale from 1 on, (G, M), as `fractal_lib.self_attention.ordering.unpacked` gives it; or
# None: in the order of time
Orders = Sequence[Tensor | None]


def key_counts(valid: Tensor, layout: Layout, orders: Orders) -> list[Tensor]:
    """How many keys stand behind each key (0 or 1) and each cell, scale by scale.

    Args:
        valid: (A, N), floating point, 1 for a key and 0 for padding; A = G with an order.
        layout: a `Layout`.
        orders: which keys share a cell.
    """
    counts = [valid]
    for scale, order in enumerate(orders, 1):
        counts.append(pooled(counts[-1], scale, layout, order))
    return counts


def means(rows: Tensor, counts: list[Tensor], layout: Layout, orders: Orders) -> list[Tensor]:
    """The rows, then the means over the cells of each scale, all `in_blocks`.

    Args:
        rows: (G, N, D), keys or values, zero where padding is.
        counts: `key_counts`, (A, ...) where A divides G.
        layout: a `Layout`.
        orders: which keys share a cell.
    """
    tables, sums = [in_blocks(rows, 0, layout)], rows.to(counts[0].dtype)
    for scale, order in enumerate(orders, 1):
        sums = pooled(sums, scale, layout, order)
        tables.append(in_blocks(divided(sums, counts[scale]), scale, layout))
    return tables


def means_backward(
    grads: list[Tensor], counts: list[Tensor], layout: Layout, orders: Orders
) -> Tensor:
    """The derivative of `means` with respect to its rows: from the coarsest scale down."""
    total = torch.zeros((), dtype=grads[0].dtype, device=grads[0].device)
    for scale in range(layout.scales - 1, -1, -1):
        grad = out_of_blocks(grads[scale], counts[scale].shape[1])
        total = total + (divided(grad, counts[scale]) if scale else grad)
        if scale:  # a sum's derivative goes to all that it is a sum of
            order, below = orders[scale - 1], counts[scale - 1].shape[1]
            total = total.repeat_interleave(width_of(scale, layout), 1)
            if order is not None:
                total = reordered(total, _inverse(order))
            total = total[:, :below]
    return total


def holders(n: int, layout: Layout, orders: Orders) -> list[Tensor | None]:
    """For each scale the row of the cell that holds each of n keys, (G, N); None where time says
    it.
    """
    found: list[Tensor | None] = [None]
    for scale, order in enumerate(orders, 1):
        if order is not None:
            place, below = _inverse(order), found[-1]
            place = place[:, :n] if below is None else place.gather(1, below)
            order = place // width_of(scale, layout)
        found.append(order)
    return found


def pooled(rows: Tensor, scale: int, layout: Layout, order: Tensor | None) -> Tensor:
    """(G, R, ...) -> (G, C, ...): sums over the cells of a scale, of the rows (scale 1) or of the
    sums on the scale below, in an order (G, M) of them or as they stand.
    """
    more = -rows.shape[1] % layout.members(scale)
    rows = pad(rows, (0, 0) * (rows.dim() - 2) + (0, more)) if more else rows
    rows = rows if order is None else reordered(rows, order)
    width = width_of(scale, layout)
    return rows.unflatten(1, (rows.shape[1] // width, width)).sum(2)


def divided(sums: Tensor, count: Tensor) -> Tensor:
    """(G, C, D) by count (A, C), or by 1 where it is 0."""
    repeats = sums.shape[0] // max(1, count.shape[0])
    return sums / count.clamp(min=1).repeat_interleave(repeats, 0).unsqueeze(-1)


def reordered(rows: Tensor, order: Tensor) -> Tensor:
    """rows (G, M, ...), those of each group in an order (G, M) of them."""
    groups, members = order.shape
    first = members * torch.arange(groups, device=order.device).unsqueeze(1)
    found = rows.flatten(0, 1).index_select(0, (order + first).flatten())
    return found.view(rows.shape)


def _inverse(order: Tensor) -> Tensor:
    """(G, M): where each row of an order (G, M) went."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


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


def width_of(scale: int, layout: Layout) -> int:
    """Members of a cell on the scale below: keys (scale 1) or cells."""
    return layout.near // layout.half if scale == 1 else 2


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
