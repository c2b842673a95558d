"""Keys taken out of their cells and read one by one (chapter ``self_attention/opening``).

A cell of c keys with mean x, m of whose keys x_i are read by themselves, stands for the c - m that
are left, with the mean x + sum_i (x - x_i) / (c - m). So what is left of a cell is linear in what
it was, and each key counts exactly once.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from fractal_lib.self_attention.layout import FILL, Layout

__all__ = ["Chosen", "Opened", "columns_of", "table_rows"]


class Chosen(NamedTuple):
    """Which keys queries read one by one.

    Attributes:
        key: (G, N, O) integers, those of each query, all different; -1 for none.
        holder: for each scale the row of the cell that holds each key, (G, N), or None in the order
            of time, as `fractal_lib.self_attention.cells.holders` gives them.
    """

    key: Tensor
    holder: list[Tensor | None]


class Opened(NamedTuple):
    """The keys that a chunk of C queries reads one by one, O each.

    Attributes:
        row: (G, C, O) int64, rows of the table of keys, an empty one for no key.
        column: (G, C, O) int64, the column that the key is taken out of.
        share: (G, C, O), 1 / (keys left in that column), 0 where none is or no key is opened.
        bias: (G, C, K + O), added to the logits: log(c - m) - log(c), `FILL` for what is not to be
            read.
    """

    row: Tensor
    column: Tensor
    share: Tensor
    bias: Tensor

    @classmethod
    def of(cls, chosen: Chosen, bias: Tensor, layout: Layout, start: int) -> "Opened":
        """What the chunk from ``start`` on opens.

        Args:
            chosen: `Chosen`.
            bias: (A, length / near, K), log(c) of each column or `FILL`; A divides G.
            layout: a `Layout`.
        """
        key = chosen.key[:, start : start + layout.chunk].long()
        key = pad(key, (0, 0, 0, layout.chunk - key.shape[1]), value=-1)
        groups, chunk, number = key.shape
        query = torch.arange(start, start + chunk, device=key.device)[:, None]
        column, found = columns_of(query, key.clamp(min=0), layout, chosen.holder)
        there = key >= 0
        found &= there
        blocks, first = chunk // layout.near, start // layout.near
        count = bias[:, first : first + blocks].exp().round()  # (A, p, K)
        columns = count.shape[-1]
        at = column + columns * ((query - start) // layout.near)
        repeats = groups // max(1, bias.shape[0])
        count = count.flatten(1).repeat_interleave(repeats, 0)  # (G, p K)
        count = count.gather(1, at.flatten(1)).view(column.shape)
        opened = count.new_zeros(groups, chunk, columns).scatter_add_(-1, column, found.to(count))
        opened = opened.gather(-1, column)
        left = count - opened
        some = found & (left > 0)
        share = torch.where(some, 1 / left.clamp(min=1), 0)
        # all keys opened out of one column put the same into it, each its part
        change = torch.where(some, (left.clamp(min=1) / count.clamp(min=1)).log(), FILL)
        change = torch.where(found, change / opened.clamp(min=1), 0)
        total = change.new_zeros(groups, chunk, columns + number)
        total.scatter_add_(-1, column, change)
        total[..., columns:].masked_fill_(~there, FILL)
        row = torch.where(there, key + layout.near, 0)  # tables begin with an empty block
        return cls(row, column, share, total)

    def dot(self, rows: Tensor, table: Tensor) -> Tensor:
        """rows (G, C, D) times the keys that each opens: (G, C, O)."""
        return torch.matmul(table_rows(table, self.row).to(rows), rows.unsqueeze(-1)).squeeze(-1)

    def rest(self, found: Tensor, own: Tensor) -> Tensor:
        """What is linear in the rows, (G, C, K), for what is left of them; ``own`` (G, C, O) is
        that of opened keys.
        """
        excess = found.gather(-1, self.column) - own
        return found.scatter_add(-1, self.column, excess * self.share)

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose of `rest`: weights (G, C, K + O) of what is left and of opened keys, as
        weights of whole cells and of opened keys.
        """
        number = self.row.shape[-1]
        weight, own = weight.split([weight.shape[-1] - number, number], -1)
        taken = weight.gather(-1, self.column) * self.share
        return weight.scatter_add(-1, self.column, taken), own - taken

    def mix(self, weight: Tensor, table: Tensor) -> Tensor:
        """weight (G, C, O) times the rows that are opened: (G, C, D)."""
        return torch.matmul(weight.unsqueeze(2), table_rows(table, self.row).to(weight)).squeeze(2)

    def spread(self, weight: Tensor, rows: Tensor, grad: Tensor) -> None:
        """Add weight^T (O, C) times rows (G, C, D) to the table's rows that are opened."""
        part = weight.unsqueeze(-1) * rows.unsqueeze(2)
        place = _flat(self.row, grad).flatten()
        grad.view(-1, grad.shape[-1]).index_add_(0, place, part.flatten(0, 2))


def table_rows(table: Tensor, row: Tensor) -> Tensor:
    """Rows (G, C, O) of a table (G, blocks, size, D): (G, C, O, D)."""
    return embedding(_flat(row, table), table.flatten(0, 2))


def _flat(row: Tensor, table: Tensor) -> Tensor:
    """Rows (G, ...) of a table (G, blocks, size, D) as rows of all groups."""
    groups, blocks, size, _ = table.shape
    return row + blocks * size * torch.arange(groups, device=row.device)[:, None, None]


def columns_of(
    query: Tensor, key: Tensor, layout: Layout, holder: list[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Where a query finds a key: the column of the key or its cell, and whether there is one.

    Args:
        query: (C, 1), key: (G, C, O), positions, integers.
        layout: a `Layout`.
        holder: as in `Chosen`.
    """
    column = torch.zeros_like(key)
    found = torch.zeros_like(key, dtype=torch.bool)
    offset = sum(map(layout.columns, range(layout.scales)))
    for scale in range(layout.scales - 1, -1, -1):  # the finest that has the key is left
        offset -= layout.columns(scale)
        width, size = layout.width(scale), layout.size(scale)
        shift = key // width - query // width + 1
        beside = (shift >= 0) & (shift < 3)
        of = holder[scale]
        cell = key // (width // size) if of is None else of.gather(1, key.flatten(1)).view_as(key)
        side = shift if scale == 0 else shift // 2
        column = torch.where(beside, offset + side * size + cell % size, column)
        found |= beside
    return column, found
