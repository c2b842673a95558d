"""Self-attention in O(n log n): near keys one by one, far ones by cells (chapter ``attention/self_attention``)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from fractal_lib.attention.blocks import FILL, Layout, attend, in_blocks
from fractal_lib.attention.checks import require


def fractal_attention(
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

    Queries stand in blocks of ``near``. A block reads the keys of its own block and of the two beside it one by one:
    all that are at most ``near`` away, and more. What is further away is read by cells that double in width as the
    distance does: a cell d rows away is at most d / ``cells`` wide. Its key and value are the means of its keys and
    values, and its logit carries log(count), so it weighs as its keys would if they were alike. All logits go through
    one softmax. Every key is read exactly once, by itself or in a cell; up to 2 ``near`` rows all are read by
    themselves, and the result is that of `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        q: (B, heads, N, D) floating point, N >= 1.
        k: (B, heads, N, D) of the same dtype.
        v: (B, heads, N, Dv) of the same dtype.
        near: rows in a block, at least 1; a multiple of ``cells``.
        cells: cells that stand for one block at the least distance; 0 leaves the far field out, which makes this a
            window of three blocks.
        is_causal: True if query i reads keys 0 to i alone. A cell is read only when all of it is past.
        key_padding_mask: (B, N) bool, True where a key is padding (as in `torch.nn.MultiheadAttention`). What
            stands there, even NaN, is ignored. A query that is left without any key returns 0, not NaN.
        scale: factor of the logits; default 1 / sqrt(D).

    Returns:
        (B, heads, N, Dv) in the dtype of ``v``. Half precisions are worked out in float32.

    Raises:
        TypeError: for tensors that are not floating point or of different dtypes, or a mask that is not bool.
        ValueError: for shapes that do not fit, or ``near`` and ``cells`` that do not.

    Complexity: O(N (near + cells log2(N / near)) D) time and O(N D) memory, forward and backward. Derivatives in
    reverse mode alone. Source: Greengard and Rokhlin (1987) for near and far; Zhu and Soricut, H-Transformer-1D (2021),
    for the same thought in attention; chapter ``attention/self_attention``.

    >>> q, k, v = torch.randn(3, 2, 4, 1000, 16).unbind()
    >>> fractal_attention(q, k, v, is_causal=True).shape
    torch.Size([2, 4, 1000, 16])
    >>> first = [x[:, :, :128] for x in (q, k, v)]
    >>> exact = torch.nn.functional.scaled_dot_product_attention(*first)
    >>> torch.allclose(fractal_attention(*first), exact, atol=1e-5)
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
    return out if key_padding_mask is None else out.masked_fill(~_has_key(bias, layout)[:, None, :n, None], 0)


def _check(q: Tensor, k: Tensor, v: Tensor, near: int, cells: int, key_padding_mask: Tensor | None) -> None:
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
    _check_geometry(near, cells)
    if key_padding_mask is not None:
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(f"key_padding_mask must be bool, got {key_padding_mask.dtype}")
        if key_padding_mask.shape != (q.shape[0], q.shape[2]):
            expected = (q.shape[0], q.shape[2])
            raise ValueError(f"key_padding_mask must have shape {expected}, got {tuple(key_padding_mask.shape)}")


def _check_geometry(near: int, cells: int) -> None:
    if near < 1 or cells < 0 or cells and near % cells:
        raise ValueError(f"near must be at least 1 and a multiple of cells, or cells 0; got {near=}, {cells=}")


def _pyramid(rows: Tensor, counts: list[Tensor], layout: Layout) -> list[Tensor]:
    """(G, N, D), zero where padding is -> for each scale, `in_blocks`: the rows, then means of the keys of a cell."""
    tables, sums = [in_blocks(rows, 0, layout)], rows
    for scale in range(1, layout.scales):
        sums, count = _pool(sums, scale, layout, counts[0].dtype), counts[scale].clamp(min=1)
        mean = sums / count.repeat_interleave(sums.shape[0] // count.shape[0], 0).unsqueeze(-1)
        tables.append(in_blocks(mean, scale, layout))
    return tables


def _pool(rows: Tensor, scale: int, layout: Layout, dtype: torch.dtype) -> Tensor:
    """(G, N, ...) -> sums over the cells of a scale, of the rows (scale 1) or of the sums on the scale below."""
    width = layout.near // layout.half if scale == 1 else 2
    ends = (0, 0) * (rows.dim() - 2) + (0, -rows.shape[1] % width)
    return pad(rows, ends).unflatten(1, (-1, width)).sum(2, dtype=dtype)


def _bias(counts: list[Tensor], layout: Layout) -> Tensor:
    """(A, blocks of scale 0, columns of all scales): log(count), or `FILL` where nothing is to be read."""
    parts = []
    for scale, count in enumerate(counts):
        log_count = torch.where(count > 0, count.log(), FILL)
        blocks, reads = in_blocks(log_count, scale, layout, FILL), layout.count(scale)  # (A, P + 2, size)
        part = torch.cat([blocks[:, s : s + reads] for s in layout.shifts(scale)], 2)  # (A, P, columns)
        if scale:
            halves = part.unsqueeze(2).masked_fill(_read_below(scale, layout, count.device), FILL)
            part = halves.flatten(1, 2).repeat_interleave(2 ** (scale - 1), 1)
        parts.append(part[:, : layout.length // layout.near])
    return torch.cat(parts, -1)


def _read_below(scale: int, layout: Layout, device: torch.device) -> Tensor:
    """(2, columns) bool: what the scale below has read, for queries in the first and the second half of a block.

    A block of that scale is half a block of this one, and has read the nearest half on either side. On one side that
    is the other half of its own block, on the other side the nearer half of a neighbour.
    """
    quarter = torch.arange(layout.columns(scale), device=device) // layout.half  # 0, 1: before; 2, 3: after
    return quarter == torch.tensor([[1], [2]], device=device)


def _has_key(bias: Tensor, layout: Layout) -> Tensor:
    """(A, length) bool: which queries have a key to read at all."""
    near, readable = layout.near, bias > FILL / 2
    if not layout.causal:
        return readable.any(-1).repeat_interleave(near, 1)
    own = readable[..., near : 2 * near].cumsum(-1) > 0  # (A, blocks, near)
    before = torch.cat([readable[..., :near], readable[..., 2 * near :]], -1).any(-1, keepdim=True)
    return (own | before).flatten(1)


class FractalSelfAttention(nn.Module):
    """Multi-head self-attention by `fractal_attention`, called like `torch.nn.MultiheadAttention(batch_first=True)`.

    The parameters have the names and shapes of that module, so each loads the other's ``state_dict``; and it can take
    that module's place in `torch.nn.TransformerEncoderLayer`. There are no weights to return and no dropout of them.

    Args:
        embed_dim: width of the embedding, a multiple of ``num_heads``.
        num_heads: number of heads.
        near, cells: as in `fractal_attention`.
        causal: True if position i reads positions 0 to i alone.
        bias: whether the projections have one.
        device, dtype: of the parameters.

    Attributes:
        in_proj_weight, in_proj_bias: (3 embed_dim, embed_dim) and (3 embed_dim,), of queries, keys and values.
        out_proj: `torch.nn.Linear`, from embed_dim to embed_dim.

    Raises:
        ValueError: for numbers that do not fit each other.

    Complexity: that of `fractal_attention`, and O(N embed_dim^2) for the projections. Source: Vaswani et al. (2017) for
    the heads; chapter ``attention/self_attention``.

    >>> attention = FractalSelfAttention(embed_dim=32, num_heads=4, causal=True)
    >>> out, weights = attention(torch.randn(2, 1000, 32))
    >>> out.shape, weights
    (torch.Size([2, 1000, 32]), None)
    """

    batch_first = True
    # What the name says of `torch.nn.MultiheadAttention` is true here too; but True would let
    # `torch.nn.TransformerEncoderLayer` skip `forward` when it does not train, and work out full attention instead.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        near: int = 64,
        cells: int = 8,
        causal: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if min(embed_dim, num_heads) < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a positive multiple of num_heads, got {embed_dim=}, {num_heads=}")
        _check_geometry(near, cells)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.near, self.cells, self.causal = near, cells, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim, device=device, dtype=dtype)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        nn.init.xavier_uniform_(self.in_proj_weight)  # as torch.nn.MultiheadAttention begins
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: (B, N, embed_dim).
            key, value: of the same shape; default the query.
            key_padding_mask: (B, N), bool with True for padding, or floating point with -inf for padding and else 0.
            need_weights: must be False.
            attn_mask: must be None, unless ``is_causal``; then it is taken to be the causal mask and not looked at.
            is_causal: True makes this call causal whatever the module is.

        Returns:
            (B, N, embed_dim), and None in the place of the weights.

        Raises:
            TypeError, ValueError: as `fractal_attention`; ValueError for masks or weights that cannot be had.
        """
        key, value = query if key is None else key, query if value is None else value
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.dim() != 3 or x.shape[:2] != query.shape[:2] or x.shape[2] != self.embed_dim:
                raise ValueError(f"{name} must have shape (B, N, {self.embed_dim}), as the query, got {tuple(x.shape)}")
        if need_weights:
            raise ValueError("need_weights must be False: there is no matrix of weights")
        if attn_mask is not None and not is_causal:
            raise ValueError("attn_mask must be None without is_causal: a mask of N x N numbers is quadratic by itself")
        if query is key is value:
            q, k, v = linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            weights = self.in_proj_weight.chunk(3)
            q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, D)
        padding = _as_bool(key_padding_mask)
        out = fractal_attention(q, k, v, self.near, self.cells, self.causal or is_causal, padding)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _as_bool(mask: Tensor | None) -> Tensor | None:
    """A mask of 0 and -inf, as `torch.nn.TransformerEncoderLayer` hands it on, as one of False and True."""
    if mask is None or not mask.is_floating_point():
        return mask
    padding = mask == -torch.inf
    require(lambda: (padding | (mask == 0)).all(), "a floating point key_padding_mask must hold 0 and -inf alone")
    return padding
