"""What a chunk of queries reads, as three linear maps (chapter ``self_attention/near_in_content``).

A chunk's columns are the keys and cells of its blocks, scale by scale, then the keys that its
queries have opened, if there are any: K of one and O of the other.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.self_attention.layout import FILL, Layout
from fractal_lib.self_attention.opening import Opened

__all__ = ["Chunk"]


class Chunk(NamedTuple):
    """The queries from ``start`` on, ``layout.chunk`` of them, and what they read.

    Attributes:
        layout: a `Layout`.
        start: the first query.
        dtype: that is computed in.
        opened: what the queries open, or None.
    """

    layout: Layout
    start: int
    dtype: torch.dtype
    opened: Opened | None = None

    def dot(self, rows: Tensor, tables: list[Tensor]) -> Tensor:
        """rows (G, C, D) times all that they read: (G, C, K + O)."""
        windows = self._windows(tables)
        found = torch.cat([_times(rows, window) for window in windows], -1)
        if self.opened is None:
            return found
        own = self.opened.dot(rows, tables[0])
        return torch.cat([self.opened.rest(found, own), own], -1)

    def columns(self, tables: list[Tensor]) -> Tensor:
        """Tables of one number a row, for each query: (G, C, K)."""
        parts = []
        for window in self._windows(tables):
            repeats = self.layout.chunk // window.shape[1]
            parts.append(window.squeeze(-1).repeat_interleave(repeats, 1))
        return torch.cat(parts, -1)

    def cell_logits(
        self, rows: Tensor, tables: list[Tensor], bias: Tensor, scale: int
    ) -> tuple[Tensor, Tensor]:
        """rows (G, C, D) times the cells that they read on one scale, `FILL` where there is none to
        be read: (G, C, columns); and which rows of the scale's table they are: (C, columns).
        """
        layout, near = self.layout, self.layout.near
        blocks = max(1, layout.chunk // layout.width(scale))
        window = self._window(tables, blocks, [scale])
        before = sum(map(layout.columns, range(scale)))
        row = slice(self.start // near, (self.start + layout.chunk) // near)
        read = bias[:, row, before : before + layout.columns(scale)] > FILL / 2  # (A, p, columns)
        read = read.repeat_interleave(rows.shape[0] // max(1, bias.shape[0]), 0)
        read = read.repeat_interleave(near, 1)
        return _times(rows, window).masked_fill(~read, FILL), self.places(scale, rows.device)

    def places(self, scale: int, device: torch.device) -> Tensor:
        """Which rows of a scale's table each query's columns are: (C, columns)."""
        layout, width, size = self.layout, self.layout.width(scale), self.layout.size(scale)
        blocks, first = max(1, layout.chunk // width), self.start // width
        member = torch.arange(size, device=device)
        places = torch.cat([member + size * s for s in layout.shifts(scale)])
        block = torch.arange(first, first + blocks, device=device)[:, None]
        return (places + size * block).repeat_interleave(layout.chunk // blocks, 0)

    def mix(self, weight: Tensor, tables: list[Tensor]) -> Tensor:
        """weight (G, C, K + O) times all that is read: (G, C, D)."""
        weight, own = self._split(weight)
        parts = []
        for part, window in zip(self._by_group(weight), self._windows(tables), strict=True):
            groups, _, _, width = window.shape
            product = torch.bmm(part, window.flatten(0, 1))
            parts.append(product.view(groups, self.layout.chunk, width))
        if self.opened is not None:
            parts.append(self.opened.mix(own, tables[0]))
        return sum(parts[1:], parts[0])

    def spread(self, weight: Tensor, rows: Tensor, grads: list[Tensor]) -> None:
        """Add weight^T (K + O, C) times rows (G, C, D) to where each column was read from."""
        weight, own = self._split(weight)
        groups, chunk, width = rows.shape
        parts = self._by_group(weight)
        for part, (blocks, scales) in zip(parts, self.layout.groups(), strict=True):
            by_block = rows.reshape(groups * blocks, chunk // blocks, width)
            product = torch.bmm(part.mT, by_block).unflatten(0, (groups, blocks))
            places = [(l, s) for l in scales for s in self.layout.shifts(l)]
            columns = product.split([self.layout.size(l) for l, _ in places], 2)
            for (l, s), column in zip(places, columns, strict=True):
                at = self.start // self.layout.width(l) + s
                grads[l][:, at : at + blocks] += column
        if self.opened is not None:
            self.opened.spread(own, rows, grads[0])

    def _windows(self, tables: list[Tensor]) -> list[Tensor]:
        """For each group of p blocks, the rows that they read: (G, p, columns, D)."""
        return [self._window(tables, blocks, scales) for blocks, scales in self.layout.groups()]

    def _window(self, tables: list[Tensor], blocks: int, scales: list[int]) -> Tensor:
        first = {scale: self.start // self.layout.width(scale) for scale in scales}
        parts = [
            tables[l][:, first[l] + s : first[l] + s + blocks]
            for l in scales
            for s in self.layout.shifts(l)
        ]
        return torch.cat(parts, 2).to(self.dtype)

    def _split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the keys and cells of blocks, and those of opened keys by themselves."""
        if self.opened is None:
            return weight, weight[..., :0]
        return self.opened.split(weight)

    def _by_group(self, weight: Tensor) -> list[Tensor]:
        """(G, C, K) -> for each group of p blocks (G p, C / p, columns)."""
        groups, chunk = weight.shape[0], self.layout.chunk
        of_group = [
            (blocks, sum(map(self.layout.columns, scales)))
            for blocks, scales in self.layout.groups()
        ]
        parts = weight.split([columns for _, columns in of_group], -1)
        return [
            part.reshape(groups * blocks, chunk // blocks, columns)
            for part, (blocks, columns) in zip(parts, of_group, strict=True)
        ]


def _times(rows: Tensor, window: Tensor) -> Tensor:
    """rows (G, C, D) of p blocks times the rows of a window (G, p, columns, D): (G, C, columns)."""
    groups, blocks, columns, width = window.shape
    by_block = rows.reshape(groups * blocks, rows.shape[1] // blocks, width)
    return torch.bmm(by_block, window.flatten(0, 1).mT).view(groups, rows.shape[1], columns)
