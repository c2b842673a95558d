"""Attention of blocks of queries to blocks of keys and cells, on several scales under one softmax
(chapter ``attention/self_attention``).

Scale 0 holds the keys themselves, in blocks of ``near``. Scale l >= 1 holds cells, means over
several keys, in blocks that stand for ``near * 2**l`` keys. A block of queries reads its neighbours
on every scale: that is a matrix product for each block and no gather. Queries are processed in
chunks, so that logits stay in the cache and memory is linear.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["FILL", "Layout", "attend", "attend_backward", "in_blocks", "out_of_blocks"]

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


def attend(
    q: Tensor, keys: list[Tensor], values: list[Tensor], bias: Tensor, layout: Layout
) -> Tensor:
    """Softmax attention of each query to what its blocks read, all scales under one softmax.

    Args:
        q: (G, N, D), scaled, in the dtype of ``bias``; N at most ``layout.length``.
        keys, values: for each scale, `in_blocks`: (G, count + 2, size, D) and (G, count + 2, size,
            Dv).
        bias: (A, length / near, columns of all scales), floating point, added to a block's logits;
            A divides G.
        layout: a `Layout`.

    Returns:
        (G, N, Dv) in the dtype of the values of scale 0; computed in that of ``bias``.

    Complexity: 2 N K (D + Dv) floating point operations, K = 3 near + 4 cells (scales - 1)
    logits for each query; one chunk of logits is kept at a time. Source: chapter
    ``attention/self_attention``.

    >>> layout = Layout.of(3, near=2, cells=1, causal=True, batch=1, device=torch.device("cpu"))
    >>> rows = in_blocks(torch.tensor([[[1.0], [2.0], [6.0]]]), 0, layout)
    >>> bias = torch.tensor([[[FILL, FILL, 0, 0], [0, 0, 0, FILL]]])
    >>> attend(torch.zeros(1, 3, 1), [rows], [rows], bias, layout)
    tensor([[[1.0000],
             [1.5000],
             [3.0000]]])
    """
    n, out = q.shape[1], []
    q = pad(q, (0, 0, 0, layout.length - n))
    for start in range(0, layout.length, layout.chunk):
        weight = _weights(q, keys, bias, layout, start)
        windows = _windows(values, layout, start, bias.dtype)
        out.append(_product(weight, windows, layout).to(values[0].dtype))
    return torch.cat(out, 1)[:, :n]


def attend_backward(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    bias: Tensor,
    layout: Layout,
    out: Tensor,
    grad: Tensor,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The derivative of `attend` with respect to q, keys and values, by plain operations.

    Weights are not kept but computed again, chunk by chunk, as by Dao et al., FlashAttention
    (2022): 10 N K D floating point operations for the 4 N K D of the forward pass, with D = Dv.

    Args:
        q, keys, values, bias, layout: those of `attend`; out: its result.
        grad: (G, N, Dv), with respect to ``out``.
    """
    grad_keys, grad_values = (
        [torch.zeros_like(x, dtype=bias.dtype) for x in side] for side in (keys, values)
    )
    n, grad_q = q.shape[1], []
    q, out, grad = (pad(x, (0, 0, 0, layout.length - n)) for x in (q, out, grad))
    for start in range(0, layout.length, layout.chunk):
        now = slice(start, start + layout.chunk)
        weight = _weights(q, keys, bias, layout, start)  # (G, C, K)
        g = grad[:, now].to(bias.dtype)
        _scatter(grad_values, _transposed(weight, g, layout), layout, start)
        slope = _logits(g, _windows(values, layout, start, bias.dtype), layout)
        slope = weight * (slope - (g * out[:, now]).sum(-1, keepdim=True))
        grad_q.append(_product(slope, _windows(keys, layout, start, bias.dtype), layout))
        _scatter(grad_keys, _transposed(slope, q[:, now], layout), layout, start)
    return torch.cat(grad_q, 1)[:, :n], grad_keys, grad_values


def _windows(tables: list[Tensor], layout: Layout, start: int, dtype: torch.dtype) -> list[Tensor]:
    """What the chunk from ``start`` on reads: for each group of p blocks, (G, p, columns, D)."""
    found = []
    for blocks, scales in layout.groups():
        first = {scale: start // layout.width(scale) for scale in scales}
        parts = [
            tables[l][:, first[l] + s : first[l] + s + blocks]
            for l in scales
            for s in layout.shifts(l)
        ]
        found.append(torch.cat(parts, 2).to(dtype))
    return found


def _scatter(grads: list[Tensor], windows: list[Tensor], layout: Layout, start: int) -> None:
    """The derivative of `_windows`: add each part to the blocks that it was read from."""
    for (blocks, scales), window in zip(layout.groups(), windows, strict=True):
        parts = iter(window.split([layout.size(l) for l in scales for _ in layout.shifts(l)], 2))
        for l in scales:
            for s in layout.shifts(l):
                at = start // layout.width(l) + s
                grads[l][:, at : at + blocks] += next(parts)


def _logits(q: Tensor, windows: list[Tensor], layout: Layout) -> Tensor:
    """q (G, C, D) times the rows of each group's windows: (G, C, K)."""
    parts = []
    for window in windows:
        groups, blocks, columns, width = window.shape
        rows = q.reshape(groups * blocks, layout.chunk // blocks, width)
        logits = torch.bmm(rows, window.flatten(0, 1).mT)
        parts.append(logits.view(groups, layout.chunk, columns))
    return torch.cat(parts, -1)


def _product(weight: Tensor, windows: list[Tensor], layout: Layout) -> Tensor:
    """weight (G, C, K) times the rows of the windows: (G, C, D), summed over all groups."""
    parts = []
    for part, window in zip(weight.split([w.shape[2] for w in windows], -1), windows, strict=True):
        groups, blocks, columns, width = window.shape
        rows = part.reshape(groups * blocks, layout.chunk // blocks, columns)
        parts.append(torch.bmm(rows, window.flatten(0, 1)).view(groups, layout.chunk, width))
    return sum(parts[1:], parts[0])


def _transposed(weight: Tensor, rows: Tensor, layout: Layout) -> list[Tensor]:
    """weight^T (K, C) times rows (G, C, D), for each group: (G, p, columns, D)."""
    found, at, (groups, chunk, width) = [], 0, rows.shape
    for blocks, scales in layout.groups():
        columns = sum(map(layout.columns, scales))
        shape = (groups * blocks, chunk // blocks)
        part = weight[..., at : at + columns].reshape(*shape, columns)
        product = torch.bmm(part.mT, rows.reshape(*shape, width))
        found.append(product.view(groups, blocks, columns, width))
        at += columns
    return found


def _weights(q: Tensor, keys: list[Tensor], bias: Tensor, layout: Layout, start: int) -> Tensor:
    """Softmax weights (G, C, K) of the chunk from ``start`` on, over all scales at once."""
    logits = _logits(
        q[:, start : start + layout.chunk], _windows(keys, layout, start, bias.dtype), layout
    )
    blocks, first, masks = layout.chunk // layout.near, start // layout.near, bias.shape[0]
    # (A, G / A, p, near, K)
    shape = (masks, logits.shape[0] // max(1, masks), blocks, layout.near, logits.shape[-1])
    by_block = logits.view(shape)
    by_block += bias[:, None, first : first + blocks, None]
    if layout.causal:  # a block's own keys are columns near to 2 near
        square = (layout.near, layout.near)
        later = torch.full(square, FILL, dtype=bias.dtype, device=q.device).triu(1)
        by_block[..., layout.near : 2 * layout.near] += later
    return logits.softmax(-1)
