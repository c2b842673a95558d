"""Blocks of queries, and the blocks of keys and cells that they read (chapter
``self_attention/near_in_content``).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["CHUNK", "FILL", "Layout", "in_blocks", "out_of_blocks"]

FILL = -1e30  # a logit that never counts; finite, so that a query without any key stays finite
# logits at once: what a core's cache holds, what keeps a GPU busy
CHUNK = {"cpu": 2**19, "other": 2**26}


class Layout(NamedTuple):
    """Which blocks are read, for n keys.

    Attributes:
        near: keys in a block of scale 0.
        half: cells that stand for as many keys as a block of the scale below; a block of a scale l
            >= 1 has twice that.
        scales: number of scales, scale 0 among them.
        causal: whether blocks to the right are left out.
        chunk: queries that are processed at once, ``near`` times a power of two.
        length: n with padding, a multiple of ``chunk``.
    """

    near: int
    half: int
    scales: int
    causal: bool
    chunk: int
    length: int

    @classmethod
    def of(
        cls, n: int, near: int, cells: int, causal: bool, batch: int, device: torch.device
    ) -> "Layout":
        """The layout for n keys and ``batch`` sequences: scales until two blocks hold all, none
        beyond 0 without cells.

        >>> layout = Layout.of(1000, 64, 8, causal=False, batch=1, device=torch.device("cpu"))
        >>> layout.scales, [layout.columns(scale) for scale in range(layout.scales)]
        (4, [192, 32, 32, 32])
        """
        scales = 1
        while cells and -(-n // (near << (scales - 1))) > 2:
            scales += 1
        layout = cls(near, cells, scales, causal, near, 0)
        logits = max(1, batch) * sum(map(layout.columns, range(scales)))
        budget = CHUNK.get(device.type, CHUNK["other"]) // logits
        chunk = near
        while 2 * chunk <= budget and chunk < n:
            chunk *= 2
        return layout._replace(chunk=chunk, length=-(-n // chunk) * chunk)

    def width(self, scale: int) -> int:
        """Keys that a block of this scale stands for."""
        return self.near << scale

    def size(self, scale: int) -> int:
        """Keys or cells in a block of this scale."""
        return 2 * self.half if scale else self.near

    def members(self, scale: int) -> int:
        """Rows of the scale below, keys or cells, that a unit of cells of this scale >= 1 shares
        out: half a block of it, which is read as a whole or not at all.
        """
        return self.near if scale == 1 else 2 * self.half

    def count(self, scale: int) -> int:
        """Blocks of this scale that the padded keys fill."""
        return -(-self.length // self.width(scale))

    def shifts(self, scale: int) -> tuple[int, ...]:
        """Neighbours that are read: 0 for the block before, 1 for the block itself, 2 for the one
        after.
        """
        both = (0, 1, 2) if scale == 0 else (0, 2)
        return tuple(s for s in both if s < 2 or not self.causal)

    def columns(self, scale: int) -> int:
        """Logits that a query has on this scale."""
        return len(self.shifts(scale)) * self.size(scale)

    def groups(self) -> list[tuple[int, list[int]]]:
        """(blocks in a chunk, scales): scales of one number of blocks share one matrix product."""
        found: dict[int, list[int]] = {}
        for scale in range(self.scales):
            found.setdefault(max(1, self.chunk // self.width(scale)), []).append(scale)
        return list(found.items())


def in_blocks(rows: Tensor, scale: int, layout: Layout, value: float = 0.0) -> Tensor:
    """(G, N, ...) -> (G, count + 2, size, ...): keys or cells as blocks, with an empty block before
    and after.
    """
    size, count = layout.size(scale), layout.count(scale)
    ends = (0, 0) * (rows.dim() - 2) + (size, (count + 1) * size - rows.shape[1])
    return pad(rows, ends, value=value).unflatten(1, (count + 2, size))


def out_of_blocks(blocks: Tensor, n: int) -> Tensor:
    """The first n keys or cells of (G, count + 2, size, ...): (G, n, ...)."""
    return blocks[:, 1:-1].flatten(1, 2)[:, :n]
