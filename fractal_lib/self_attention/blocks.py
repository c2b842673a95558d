"""Attention of blocks of queries to blocks of rows, on several scales under one softmax
(``attention/self_attention``).

Scale 0 holds the keys themselves, in blocks of ``near``. Scale l >= 1 holds cells, means over
several keys, in blocks that stand for ``near * 2**l`` keys. A block of queries reads its neighbours
on every scale: that is a matrix product for each block and no gather. Queries are worked off in
chunks, so that logits stay in the cache and memory is linear.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

FILL = -1e30  # a logit that never counts; finite, so that a query without any key stays finite
# logits at once: what a core's cache holds, what keeps a GPU busy
CHUNK = {"cpu": 2**19, "other": 2**26}


class Layout(NamedTuple):
    """Which blocks are read, for n rows.

    Attributes:
        near: rows in a block of scale 0.
        half: cells that stand for as many rows as a block of the scale below; a block of a scale l
            >= 1 has twice that.
        scales: number of scales, scale 0 among them.
        causal: whether blocks to the right are left out.
        chunk: queries that are worked off at once, ``near`` times a power of two.
        length: rows with padding, a multiple of ``chunk``.
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
        """The layout for n rows and ``batch`` sequences: scales until two blocks hold all, none
        beyond 0 without cells.

        >>> layout = Layout.of(1000, near=64, cells=8, causal=False, batch=1, device=torch.device("cpu"))
        >>> layout.scales, [layout.columns(scale) for scale in range(layout.scales)]
        (4, [192, 32, 32, 32])
        """
        scales = 1
        while cells and -(-n // (near << (scales - 1))) > 2:
            scales += 1
        layout = cls(near, cells, scales, causal, near, 0)
        budget = CHUNK.get(device.type, CHUNK["other"]) // (
            batch * sum(map(layout.columns, range(scales)))
        )
        chunk = near
        while 2 * chunk <= budget and chunk < n:
            chunk *= 2
        return layout._replace(chunk=chunk, length=-(-n // chunk) * chunk)

    def width(self, scale: int) -> int:
        """Rows that a block of this scale stands for."""
        return self.near << scale

    def size(self, scale: int) -> int:
        """Keys or cells in a block of this scale."""
        return 2 * self.half if scale else self.near

    def count(self, scale: int) -> int:
        """Blocks of this scale that the padded rows fill."""
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


def attend(
    q: Tensor, keys: list[Tensor], values: list[Tensor], bias: Tensor, layout: Layout
) -> Tensor:
    """Softmax attention of each query to what its blocks read, all scales under one softmax.

    Args:
        q: (G, N, D), scaled, so in the dtype to work in; N at most ``layout.length``.
        keys, values: for each scale, `in_blocks`: (G, count + 2, size, D) and (G, count + 2, size,
            Dv).
        bias: (A, length / near, columns of all scales) in the dtype of ``q``, added to a block's
            logits; A divides G.
        layout: a `Layout`.

    Returns:
        (G, N, Dv) in the dtype of the values of scale 0; worked out in that of ``bias``.
        Derivatives of any order, in reverse mode.

    Complexity: O(N (near + cells log(N / near)) D) time, O(N (D + Dv)) memory, forward and
    backward: weights are not kept but worked out again, as by Dao et al., FlashAttention (2022).
    Source: chapter ``attention/self_attention``.

    >>> layout = Layout.of(3, near=2, cells=1, causal=True, batch=1, device=torch.device("cpu"))
    >>> rows = in_blocks(torch.tensor([[[1.0], [2.0], [6.0]]]), 0, layout)
    >>> attend(torch.zeros(1, 3, 1), [rows], [rows], torch.tensor([[[FILL, FILL, 0, 0], [0, 0, 0, FILL]]]), layout)
    tensor([[[1.0000],
             [1.5000],
             [3.0000]]])
    """
    n = q.shape[1]
    return _Attend.apply(pad(q, (0, 0, 0, layout.length - n)), bias, tuple(layout), *keys, *values)[
        :, :n
    ]


class _Attend(torch.autograd.Function):
    """`attend` of padded queries; its backward pass works the weights out again, chunk by chunk."""

    @staticmethod
    def forward(ctx, q, bias, layout, *tables):
        layout = Layout(*layout)
        keys, values = tables[: layout.scales], tables[layout.scales :]
        out = []
        with torch.autocast(q.device.type, enabled=False):
            for start in range(0, layout.length, layout.chunk):
                weight = _weights(q, keys, bias, layout, start)
                windows = _windows(values, layout, start, bias.dtype)
                out.append(_product(weight, windows, layout).to(values[0].dtype))
        out = torch.cat(out, 1)
        ctx.layout = layout
        ctx.save_for_backward(q, bias, out, *tables)
        return out

    @staticmethod
    def backward(ctx, grad):
        layout, (q, bias, out, *tables) = ctx.layout, ctx.saved_tensors
        keys, values = tables[: layout.scales], tables[layout.scales :]
        grad_keys, grad_values = (
            [torch.zeros_like(x, dtype=bias.dtype) for x in side] for side in (keys, values)
        )
        grad_q = []
        with torch.autocast(q.device.type, enabled=False):
            for start in range(0, layout.length, layout.chunk):
                now = slice(start, start + layout.chunk)
                weight = _weights(q, keys, bias, layout, start)  # (G, C, K)
                g = grad[:, now].to(bias.dtype)
                _scatter(grad_values, _transposed(weight, g, layout), layout, start)
                slope = _logits(g, _windows(values, layout, start, bias.dtype), layout)
                slope = weight * (slope - (g * out[:, now]).sum(-1, keepdim=True))
                grad_q.append(_product(slope, _windows(keys, layout, start, bias.dtype), layout))
                _scatter(grad_keys, _transposed(slope, q[:, now], layout), layout, start)
        tables = (g.to(x.dtype) for g, x in zip(grad_keys + grad_values, tables, strict=True))
        return torch.cat(grad_q, 1), None, None, *tables


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
        groups, blocks = window.shape[:2]
        rows = q.reshape(groups * blocks, -1, q.shape[-1])
        parts.append(torch.bmm(rows, window.flatten(0, 1).mT).view(groups, layout.chunk, -1))
    return torch.cat(parts, -1)


def _product(weight: Tensor, windows: list[Tensor], layout: Layout) -> Tensor:
    """weight (G, C, K) times the rows of the windows: (G, C, D), summed over all groups."""
    parts = []
    for part, window in zip(weight.split([w.shape[2] for w in windows], -1), windows, strict=True):
        groups, blocks = window.shape[:2]
        rows = part.reshape(groups * blocks, -1, part.shape[-1])
        parts.append(torch.bmm(rows, window.flatten(0, 1)).view(groups, layout.chunk, -1))
    return sum(parts[1:], parts[0])


def _transposed(weight: Tensor, rows: Tensor, layout: Layout) -> list[Tensor]:
    """weight^T (K, C) times rows (G, C, D), for each group: (G, p, columns, D)."""
    found, at = [], 0
    for blocks, scales in layout.groups():
        width = sum(map(layout.columns, scales))
        part = weight[..., at : at + width].reshape(-1, layout.chunk // blocks, width)
        product = torch.bmm(part.mT, rows.reshape(-1, layout.chunk // blocks, rows.shape[-1]))
        found.append(product.view(-1, blocks, width, rows.shape[-1]))
        at += width
    return found


def _weights(q: Tensor, keys: list[Tensor], bias: Tensor, layout: Layout, start: int) -> Tensor:
    """Softmax weights (G, C, K) of the chunk from ``start`` on, over all scales at once."""
    logits = _logits(
        q[:, start : start + layout.chunk], _windows(keys, layout, start, bias.dtype), layout
    )
    blocks, first = layout.chunk // layout.near, start // layout.near
    # (A, G / A, p, near, K)
    by_block = logits.view(bias.shape[0], -1, blocks, layout.near, logits.shape[-1])
    by_block += bias[:, None, first : first + blocks, None]
    if layout.causal:  # a block's own keys are columns near to 2 near
        later = torch.full(
            (layout.near, layout.near), FILL, dtype=bias.dtype, device=q.device
        ).triu(1)
        by_block[..., layout.near : 2 * layout.near] += later
    return logits.softmax(-1)
