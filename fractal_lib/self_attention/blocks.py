"""Attention of blocks of queries to blocks of keys and cells, on several scales under one softmax
(chapter ``self_attention/near_in_content``).

Scale 0 holds the keys themselves, in blocks of ``near``. Scale l >= 1 holds cells, means over
several keys, in blocks that stand for ``near * 2**l`` keys. A block of queries reads its neighbours
on every scale: that is a matrix product for each block and no gather. Beyond that each query may
open a few keys: they are taken out of their cells and read one by one. Queries are processed in
chunks, so that logits stay in the cache and memory is linear.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fractal_lib.self_attention.chunks import Chunk
from fractal_lib.self_attention.layout import FILL, Layout
from fractal_lib.self_attention.opening import Chosen, Opened

__all__ = ["attend", "attend_backward", "chunk_of", "logits_of"]


def attend(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    bias: Tensor,
    layout: Layout,
    chosen: Chosen | None = None,
) -> Tensor:
    """Softmax attention of each query to what its blocks read, all scales under one softmax.

    Args:
        q: (G, N, D), scaled, in the dtype of ``bias``; N at most ``layout.length``.
        keys, values: for each scale, `in_blocks`: (G, count + 2, size, D) and (G, count + 2, size,
            Dv).
        bias: (A, length / near, columns of all scales), floating point, added to a block's logits;
            A divides G.
        layout: a `Layout`.
        chosen: None or what N queries open.

    Returns:
        (G, N, Dv) in the dtype of the values of scale 0; computed in that of ``bias``.

    Complexity: 2 N (K + O) (D + Dv) floating point operations, K = 3 near + 4 cells (scales - 1)
    logits for each query; one chunk of logits is kept at a time. Source: chapter
    ``self_attention/near_in_content``.

    >>> from fractal_lib.self_attention.layout import in_blocks
    >>> layout = Layout.of(3, near=2, cells=1, causal=True, batch=1, device=torch.device("cpu"))
    >>> rows = in_blocks(torch.tensor([[[1.0], [2.0], [6.0]]]), 0, layout)
    >>> bias = torch.tensor([[[FILL, FILL, 0, 0], [0, 0, 0, FILL]]])
    >>> attend(torch.zeros(1, 3, 1), [rows], [rows], bias, layout)
    tensor([[[1.0000],
             [1.5000],
             [3.0000]]])
    """
    n, out = q.shape[1], []
    q = _whole(q, layout)
    for start in range(0, layout.length, layout.chunk):
        chunk = chunk_of(bias, layout, start, chosen)
        logits = logits_of(q[:, start : start + layout.chunk], keys, bias, chunk)
        weight = logits.softmax(-1)
        out.append(chunk.mix(weight, values).to(values[0].dtype))
    return torch.cat(out, 1)[:, :n]


def attend_backward(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    bias: Tensor,
    layout: Layout,
    out: Tensor,
    grad: Tensor,
    chosen: Chosen | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The derivative of `attend` with respect to q, keys and values, by plain operations.

    Weights are not kept but computed again, chunk by chunk, as by Dao et al., FlashAttention
    (2022): 10 N K D floating point operations for the 4 N K D of the forward pass, with D = Dv.

    Args:
        q, keys, values, bias, layout, chosen: those of `attend`; out: its result.
        grad: (G, N, Dv), with respect to ``out``.
    """
    grad_keys, grad_values = (
        [torch.zeros_like(x, dtype=bias.dtype) for x in side] for side in (keys, values)
    )
    n, grad_q = q.shape[1], []
    q, out, grad = (_whole(x, layout) for x in (q, out, grad))
    for start in range(0, layout.length, layout.chunk):
        now = slice(start, start + layout.chunk)
        chunk = chunk_of(bias, layout, start, chosen)
        weight = logits_of(q[:, now], keys, bias, chunk).softmax(-1)  # (G, C, K + O)
        g = grad[:, now].to(bias.dtype)
        chunk.spread(weight, g, grad_values)
        slope = weight * (chunk.dot(g, values) - (g * out[:, now]).sum(-1, keepdim=True))
        grad_q.append(chunk.mix(slope, keys))
        chunk.spread(slope, q[:, now], grad_keys)
    return torch.cat(grad_q, 1)[:, :n], grad_keys, grad_values


def _whole(rows: Tensor, layout: Layout) -> Tensor:
    """(G, N, ...) with zeros up to the layout's length."""
    return pad(rows, (0, 0, 0, layout.length - rows.shape[1]))


def chunk_of(bias: Tensor, layout: Layout, start: int, chosen: Chosen | None) -> Chunk:
    """The chunk of queries from ``start`` on, with what they open."""
    opened = None if chosen is None else Opened.of(chosen, bias, layout, start)
    return Chunk(layout, start, bias.dtype, opened)


def logits_of(q: Tensor, keys: list[Tensor], bias: Tensor, chunk: Chunk) -> Tensor:
    """Logits (G, C, K + O) of a chunk's queries (G, C, D): what they read, over all scales."""
    logits, layout = chunk.dot(q, keys), chunk.layout
    blocks, first, masks = layout.chunk // layout.near, chunk.start // layout.near, bias.shape[0]
    # (A, G / A, p, near, K + O)
    shape = (masks, logits.shape[0] // max(1, masks), blocks, layout.near, logits.shape[-1])
    by_block = logits.view(shape)
    by_block[..., : bias.shape[-1]] += bias[:, None, first : first + blocks, None]
    if layout.causal:  # a block's own keys are columns near to 2 near
        square = (layout.near, layout.near)
        later = torch.full(square, FILL, dtype=bias.dtype, device=q.device).triu(1)
        by_block[..., layout.near : 2 * layout.near] += later
    if chunk.opened is not None:
        logits += chunk.opened.bias
    return logits
