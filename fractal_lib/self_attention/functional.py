"""Self-attention in O(n log n): near keys one by one, far ones by cells (chapter
``attention/self_attention``).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fractal_lib.self_attention.blocks import FILL, Layout, attend, in_blocks

__all__ = ["fractal_self_attention"]


def fractal_self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    near: int = 64,
    cells: int = 8,
    is_causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention that reads keys nearby exactly and keys far away by cells, in O(n log n).

    Queries stand in blocks of ``near``. A block reads the keys of its own block and of the two
    beside it one by one: all that are at most ``near`` away, and more. What is further away is read
    by cells that double in width as the distance does: a cell d rows away is at most d / ``cells``
    wide. Its key and value are the means of its keys and values, and its logit carries log(count),
    so it weighs as its keys would if they were alike. All logits go through one softmax. Every key
    is read exactly once, by itself or in a cell; up to 2 ``near`` rows all are read by themselves,
    and the result is that of `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        q: (B, heads, N, D) floating point, N >= 1.
        k: (B, heads, N, D) of the same dtype.
        v: (B, heads, N, Dv) of the same dtype.
        near: rows in a block, at least 1; a multiple of ``cells``.
        cells: cells that stand for one block at the least distance; 0 leaves the far field out,
            which makes this a window of three blocks.
        is_causal: True if query i reads keys 0 to i alone. A cell is read only when all of it is
            past.
        key_padding_mask: (B, N) bool, True where a key is padding (as in
            `torch.nn.MultiheadAttention`). What stands there, even NaN, is ignored. A query that is
            left without any key returns 0, not NaN.
        scale: factor of the logits; default 1 / sqrt(D).

    Returns:
        (B, heads, N, Dv) in the dtype of ``v``. Half precisions are worked out in float32.

    Raises:
        TypeError: for tensors that are not floating point or of different dtypes, or a mask that is
            not bool.
        ValueError: for shapes that do not fit, or ``near`` and ``cells`` that do not.

    Complexity: O(N (near + cells log2(N / near)) D) time and O(N D) memory, forward and backward.
    Derivatives in reverse mode alone. Source: Greengard and Rokhlin (1987) for near and far; Zhu
    and Soricut, H-Transformer-1D (2021), for the same thought in attention; chapter
    ``attention/self_attention``.

    >>> q, k, v = torch.randn(3, 2, 4, 1000, 16).unbind()
    >>> fractal_self_attention(q, k, v, is_causal=True).shape
    torch.Size([2, 4, 1000, 16])
    >>> first = [x[:, :, :128] for x in (q, k, v)]
    >>> exact = torch.nn.functional.scaled_dot_product_attention(*first)
    >>> torch.allclose(fractal_self_attention(*first), exact, atol=1e-5)
    True
    """
    _check(q, k, v, near, cells, key_padding_mask)
    batch, heads, n, width = q.shape
    layout = Layout.of(n, near, cells, is_causal, batch * heads, q.device)
    count = torch.ones(1, n, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    if key_padding_mask is not None:
        count = (~key_padding_mask).to(count.dtype)
        k, v = (x.masked_fill(key_padding_mask[:, None, :, None], 0) for x in (k, v))
    counts = [count]  # (1 or B, N), then cells: how many keys stand behind each
    for level in range(1, layout.scales):
        counts.append(_pool(counts[-1], level, layout, count.dtype))
    keys, values = (_pyramid(x.flatten(0, 1), counts, layout) for x in (k, v))
    bias = _bias(counts, layout)
    q = q.flatten(0, 1).to(count.dtype) * (width**-0.5 if scale is None else scale)
    out = attend(q, keys, values, bias, layout).unflatten(0, (batch, heads))
    return (
        out
        if key_padding_mask is None
        else out.masked_fill(~_has_key(bias, layout)[:, None, :n, None], 0)
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, near: int, cells: int, key_padding_mask: Tensor | None
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype != q.dtype:
            raise TypeError(
                f"q, k and v must be floating point tensors of one dtype, got {getattr(x, 'dtype', type(x))} for {name}"
            )
        if x.dim() != 4 or x.shape[:3] != q.shape[:3] or x.shape[2] < 1:
            raise ValueError(
                f"q, k and v must have shape (B, heads, N, D), all but D the same and N >= 1, got {tuple(x.shape)} for "
                f"{name}"
            )
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"q and k must be of one D, got {q.shape[3]} and {k.shape[3]}")
    check_geometry(near, cells)
    if key_padding_mask is not None:
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(f"key_padding_mask must be bool, got {key_padding_mask.dtype}")
        if key_padding_mask.shape != (q.shape[0], q.shape[2]):
            expected = (q.shape[0], q.shape[2])
            raise ValueError(
                f"key_padding_mask must have shape {expected}, got {tuple(key_padding_mask.shape)}"
            )


def check_geometry(near: int, cells: int) -> None:
    if near < 1 or cells < 0 or cells and near % cells:
        raise ValueError(
            f"near must be at least 1 and a multiple of cells, or cells 0; got {near=}, {cells=}"
        )


def _pyramid(rows: Tensor, counts: list[Tensor], layout: Layout) -> list[Tensor]:
    """(G, N, D), zero where padding is -> for each scale, `in_blocks`: the rows, then means of the
    keys of a cell.
    """
    tables, sums = [in_blocks(rows, 0, layout)], rows
    for scale in range(1, layout.scales):
        sums, count = _pool(sums, scale, layout, counts[0].dtype), counts[scale].clamp(min=1)
        mean = sums / count.repeat_interleave(sums.shape[0] // count.shape[0], 0).unsqueeze(-1)
        tables.append(in_blocks(mean, scale, layout))
    return tables


def _pool(rows: Tensor, scale: int, layout: Layout, dtype: torch.dtype) -> Tensor:
    """(G, N, ...) -> sums over the cells of a scale, of the rows (scale 1) or of the sums on the
    scale below.
    """
    width = layout.near // layout.half if scale == 1 else 2
    ends = (0, 0) * (rows.dim() - 2) + (0, -rows.shape[1] % width)
    return pad(rows, ends).unflatten(1, (-1, width)).sum(2, dtype=dtype)


def _bias(counts: list[Tensor], layout: Layout) -> Tensor:
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


def _has_key(bias: Tensor, layout: Layout) -> Tensor:
    """(A, length) bool: which queries have a key to read at all."""
    near, readable = layout.near, bias > FILL / 2
    if not layout.causal:
        return readable.any(-1).repeat_interleave(near, 1)
    own = readable[..., near : 2 * near].cumsum(-1) > 0  # (A, blocks, near)
    before = torch.cat([readable[..., :near], readable[..., 2 * near :]], -1).any(-1, keepdim=True)
    return (own | before).flatten(1)
