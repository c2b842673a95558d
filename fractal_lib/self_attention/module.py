"""Multi-head self-attention by `fractal_self_attention`, in the shape of torch's own module."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fractal_lib.checks import require
from fractal_lib.self_attention.functional import check_geometry, fractal_self_attention

__all__ = ["FractalSelfAttention"]


class FractalSelfAttention(nn.Module):
    """Multi-head self-attention by `fractal_self_attention`, called like
    `torch.nn.MultiheadAttention(batch_first=True)`.

    The parameters have the names and shapes of that module, so each loads the other's
    ``state_dict``; and it can take that module's place in `torch.nn.TransformerEncoderLayer`. There
    are no weights to return and no dropout of them.

    Args:
        embed_dim: width of the embedding, a multiple of ``num_heads``.
        num_heads: number of heads.
        near, cells: as in `fractal_self_attention`.
        causal: True if position i reads positions 0 to i alone.
        bias: whether the projections have one.
        device, dtype: of the parameters.

    Attributes:
        in_proj_weight, in_proj_bias: (3 embed_dim, embed_dim) and (3 embed_dim,), of queries, keys
            and values.
        out_proj: `torch.nn.Linear`, from embed_dim to embed_dim.

    Raises:
        ValueError: for numbers that do not fit each other.

    Complexity: that of `fractal_self_attention`, and O(N embed_dim^2) for the projections. Source:
    Vaswani et al. (2017) for the heads; chapter ``attention/self_attention``.

    >>> attention = FractalSelfAttention(embed_dim=32, num_heads=4, causal=True)
    >>> out, weights = attention(torch.randn(2, 1000, 32))
    >>> out.shape, weights
    (torch.Size([2, 1000, 32]), None)
    """

    batch_first = True
    # What the name says of `torch.nn.MultiheadAttention` is true here too; but True would let
    # `torch.nn.TransformerEncoderLayer` skip `forward` when it does not train, and work out full
    # attention instead.
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
            raise ValueError(
                f"embed_dim must be a positive multiple of num_heads, got {embed_dim=}, {num_heads=}"
            )
        check_geometry(near, cells)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.near, self.cells, self.causal = near, cells, causal
        self.in_proj_weight = nn.Parameter(
            torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype)
        )
        self.in_proj_bias = (
            nn.Parameter(torch.zeros(3 * embed_dim, device=device, dtype=dtype)) if bias else None
        )
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
            key_padding_mask: (B, N), bool with True for padding, or floating point with -inf for
                padding and else 0.
            need_weights: must be False.
            attn_mask: must be None, unless ``is_causal``; then it is taken to be the causal mask
                and not looked at.
            is_causal: True makes this call causal whatever the module is.

        Returns:
            (B, N, embed_dim), and None in the place of the weights.

        Raises:
            TypeError, ValueError: as `fractal_self_attention`; ValueError for masks or weights that
                cannot be had.
        """
        key, value = query if key is None else key, query if value is None else value
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.dim() != 3 or x.shape[:2] != query.shape[:2] or x.shape[2] != self.embed_dim:
                raise ValueError(
                    f"{name} must have shape (B, N, {self.embed_dim}), as the query, got {tuple(x.shape)}"
                )
        if need_weights:
            raise ValueError("need_weights must be False: there is no matrix of weights")
        if attn_mask is not None and not is_causal:
            raise ValueError(
                "attn_mask must be None without is_causal: a mask of N x N numbers is quadratic by itself"
            )
        if query is key is value:
            q, k, v = linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            weights = self.in_proj_weight.chunk(3)
            q, k, v = (
                linear(x, w, b)
                for x, w, b in zip((query, key, value), weights, biases, strict=True)
            )
        # (B, heads, N, D)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        padding = _as_bool(key_padding_mask)
        out = fractal_self_attention(
            q, k, v, self.near, self.cells, self.causal or is_causal, padding
        )
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _as_bool(mask: Tensor | None) -> Tensor | None:
    """A mask of 0 and -inf, as `torch.nn.TransformerEncoderLayer` hands it on, as one of False and
    True.
    """
    if mask is None or not mask.is_floating_point():
        return mask
    padding = mask == -torch.inf
    require(
        lambda: (padding | (mask == 0)).all(),
        "a floating point key_padding_mask must hold 0 and -inf alone",
    )
    return padding
