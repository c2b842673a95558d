"""Which keys a query opens: it goes down the cells that it reads, and looks up who points its way
(chapter ``self_attention/opening``).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fractal_lib.self_attention.cells import Orders, width_of
from fractal_lib.self_attention.chunks import Chunk
from fractal_lib.self_attention.hashing import collisions
from fractal_lib.self_attention.layout import FILL, Layout, in_blocks, out_of_blocks
from fractal_lib.self_attention.opening import table_rows

__all__ = ["search"]

SPARE = 2  # keys that are looked at for each one that is opened


def search(
    q: Tensor,
    keys: list[Tensor],
    counts: list[Tensor],
    orders: Orders,
    bias: Tensor,
    layout: Layout,
    number: int,
) -> Tensor:
    """For each query the far keys of largest logit that a search finds, for each query anew.

    From the coarsest scale to the finest, a few cells of largest logit are kept, of the ones that
    the query reads on that scale and of the halves of the ones kept before. Their keys are looked
    at, and the keys that point where the query does (`collisions`), and the best are opened. The
    first find what a whole neighbourhood of keys has in common, the second a needle among straw,
    that no mean shows.

    Args:
        q, keys, bias, layout: as in `fractal_lib.self_attention.blocks.attend`.
        counts, orders: as in `fractal_lib.self_attention.cells.means`.
        number: O, the keys to open.

    Returns:
        (G, N, O) int32, all different; -1 where fewer are found.

    Complexity: with T = ceil(2 O cells / near) cells kept, 2 N (2 T (scales - 2) + T near / cells +
    64) D floating point operations beyond the logits of cells, and as many rows gathered; one chunk
    of them is kept at a time. Source: beam search in a tree of means; chapter
    ``self_attention/opening``.
    """
    n = q.shape[1]
    rows = out_of_blocks(keys[0], n).to(q.dtype)
    hashed = collisions(q, rows, counts[0] > 0, layout) + layout.near
    q, hashed = (pad(x, (0, 0, 0, layout.length - n)) for x in (q, hashed))
    counts = [in_blocks(x, scale, layout).flatten(1) for scale, x in enumerate(counts)]
    found = []
    for start in range(0, layout.length, layout.chunk):
        now = slice(start, start + layout.chunk)
        chunk = Chunk(layout, start, bias.dtype)
        row = _descend(q[:, now], keys, counts, orders, bias, chunk, number)
        row = torch.cat([row, hashed[:, now]], -1).sort(-1).values
        again = pad(row[..., 1:] == row[..., :-1], (1, 0))
        logit = _logits(q[:, now], keys, counts, 0, row).masked_fill(again, FILL)
        best = logit.topk(min(number, logit.shape[-1]), -1)
        key = row.gather(-1, best.indices) - layout.near
        key = torch.where(best.values > FILL / 2, key, -1).int()
        found.append(pad(key, (0, number - key.shape[-1]), value=-1))
    return torch.cat(found, 1)[:, :n]


def _descend(
    q: Tensor,
    keys: list[Tensor],
    counts: list[Tensor],
    orders: Orders,
    bias: Tensor,
    chunk: Chunk,
    number: int,
) -> Tensor:
    """Rows (G, C, T near / cells) of the table of keys, for a chunk's queries; 0 for none."""
    layout, groups = chunk.layout, q.shape[0]
    kept = -(-SPARE * number * layout.half // layout.near)
    row = torch.empty(groups, layout.chunk, 0, dtype=torch.int64, device=q.device)
    for scale in range(layout.scales - 1, 0, -1):
        logit = _logits(q, keys, counts, scale, row)
        own, places = chunk.cell_logits(q, keys, bias, scale)
        row = torch.cat([row, places.expand(groups, -1, -1)], -1)
        best = torch.cat([logit, own], -1).topk(min(kept, row.shape[-1]), -1)
        row = _members(row.gather(-1, best.indices), scale, orders[scale - 1], layout)
        there = (best.values > FILL / 2).repeat_interleave(width_of(scale, layout), -1)
        row = torch.where(there, row, 0)
    return row


def _logits(q: Tensor, keys: list[Tensor], counts: list[Tensor], scale: int, row: Tensor) -> Tensor:
    """q (G, C, D) times rows (G, C, O) of the table of a scale, `FILL` where nothing is."""
    count = counts[scale].repeat_interleave(len(q) // max(1, len(counts[scale])), 0)
    there = count.gather(1, row.flatten(1)).view(row.shape) > 0
    read = table_rows(keys[scale], row).to(q.dtype)  # (G, C, O, D)
    return torch.matmul(read, q.unsqueeze(-1)).squeeze(-1).masked_fill(~there, FILL)


def _members(row: Tensor, scale: int, order: Tensor | None, layout: Layout) -> Tensor:
    """(G, C, T) rows of the table of a scale -> (G, C, T w) rows of the table below, which are
    averaged in them.
    """
    width = width_of(scale, layout)
    cell = (row - layout.size(scale)).clamp(min=0)  # tables begin with an empty block
    member = (cell.unsqueeze(-1) * width + torch.arange(width, device=row.device)).flatten(-2)
    if order is not None:
        member = order.gather(1, member.clamp(max=order.shape[1] - 1).flatten(1)).view_as(member)
    return member + layout.size(scale - 1)
