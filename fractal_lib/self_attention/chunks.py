"""What a chunk of queries reads, as three linear maps (chapter ``attention/self_attention``).

A chunk's columns are the keys and cells of its blocks, scale by scale, then the keys that its
queries have opened, if there are any: K of one and O of the other.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.self_attention.layout import Layout
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
        parts = []
        for window in self._windows(tables):
            groups, blocks, columns, width = window.shape
            by_block = rows.reshape(groups * blocks, self.layout.chunk // blocks, width)
            product = torch.bmm(by_block, window.flatten(0, 1).mT)
            parts.append(product.view(groups, self.layout.chunk, columns))
        found = torch.cat(parts, -1)
        if self.opened is None:
            return found
        own = self.opened.dot(rows, tables[0])
        return torch.cat([self.opened.rest(found, own), own], -1)

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
        found = []
        for blocks, scales in self.layout.groups():
            first = {scale: self.start // self.layout.width(scale) for scale in scales}
            parts = [
                tables[l][:, first[l] + s : first[l] + s + blocks]
                for l in scales
                for s in self.layout.shifts(l)
            ]
            found.append(torch.cat(parts, 2).to(self.dtype))
        return found

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
