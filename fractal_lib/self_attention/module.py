"""Multi-head self-attention by `fractal_self_attention`, in the shape of torch's own module."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fractal_lib.checks import as_int, as_tensor, require
from fractal_lib.self_attention.functional import (
    check_geometry,
    check_opened,
    check_order,
    clean,
    fractal_self_attention,
)

__all__ = ["FractalSelfAttention"]


class FractalSelfAttention(nn.Module):
    """Multi-head self-attention by `fractal_self_attention`, in the place of
    `torch.nn.MultiheadAttention`.

    The parameters have the names and shapes of that module, so each loads the other's
    ``state_dict``. There are no weights to return and no dropout of them.

    In a `torch.nn.TransformerEncoderLayer`, replace ``layer.self_attn`` by
    ``FractalSelfAttention.from_torch(layer.self_attn)``, which takes over the parameters and
    ``batch_first``. The layer hands tensors on as they are and does not remember a ``batch_first``
    of its own, so a module with the other one would attend over the batch. That is an error where
    it shows, by a mask whose shape does not fit; without a mask it cannot be detected.

    Args:
        embed_dim: width of the embedding, a multiple of ``num_heads``.
        num_heads: number of heads.
        dropout: of the weights. It cannot be had: other than 0, the module works in evaluation mode
            alone.
        bias: whether the projections have one.
        batch_first: True for (B, N, embed_dim), False for (N, B, embed_dim). The default is not
            that of torch.
        device, dtype: of the parameters.
        near, cells, order, opened: as in `fractal_self_attention`.
        causal: True if position i reads positions 0 to i alone.

    Attributes:
        in_proj_weight, in_proj_bias: (3 embed_dim, embed_dim) and (3 embed_dim,), of queries, keys
            and values; the bias None without one.
        out_proj: `torch.nn.Linear`, from embed_dim to embed_dim.

    Raises:
        ValueError, TypeError: for numbers that do not fit each other, or are not whole.

    Complexity: that of `fractal_self_attention`, and 8 N embed_dim^2 floating point operations
    for the projections. Source: Vaswani et al. (2017) for the heads; chapter
    ``self_attention/near_in_content``.

    >>> attention = FractalSelfAttention(embed_dim=32, num_heads=4, causal=True)
    >>> attention
    FractalSelfAttention(
      embed_dim=32, num_heads=4, near=64, cells=8, order=time, causal=True
      (out_proj): Linear(in_features=32, out_features=32, bias=True)
    )
    >>> out, weights = attention(torch.randn(2, 1000, 32))
    >>> out.shape, weights
    (torch.Size([2, 1000, 32]), None)
    """

    # What the name says of `torch.nn.MultiheadAttention` is true here too; but True would let
    # `torch.nn.TransformerEncoderLayer` skip `forward` when it does not train, and compute full
    # attention instead.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        near: int = 64,
        cells: int = 8,
        order: str = "time",
        opened: int = 0,
        causal: bool = False,
    ):
        super().__init__()
        embed_dim, num_heads = as_int(embed_dim, "embed_dim"), as_int(num_heads, "num_heads")
        if min(embed_dim, num_heads) < 1 or embed_dim % num_heads:
            raise ValueError(
                "embed_dim must be a positive multiple of num_heads, "
                f"got {embed_dim=}, {num_heads=}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {dropout}")
        self.near, self.cells = check_geometry(near, cells)
        self.order, self.opened = check_order(order), check_opened(opened, self.cells)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first, self.causal = dropout, batch_first, causal
        self.in_proj_weight = nn.Parameter(
            torch.empty(3 * embed_dim, embed_dim, device=device, dtype=dtype)
        )
        if bias:
            self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim, device=device, dtype=dtype))
        else:
            self.register_parameter("in_proj_bias", None)
        options = dict(bias=bias, device=device or torch.get_default_device(), dtype=dtype)
        self.out_proj: nn.Linear = nn.utils.skip_init(nn.Linear, embed_dim, embed_dim, **options)  # type: ignore[assignment]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as `torch.nn.MultiheadAttention` does."""
        self.out_proj.reset_parameters()  # in torch's order: a seed gives what it gives there
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_torch(
        cls,
        attention: nn.MultiheadAttention,
        *,
        dropout: float | None = None,
        near: int = 64,
        cells: int = 8,
        order: str = "time",
        opened: int = 0,
        causal: bool = False,
    ) -> "FractalSelfAttention":
        """One with a copy of the parameters of torch's module, and its ``batch_first``.

        Args:
            attention: with keys and values of the width of queries, and no biases of its own among
                them (``add_bias_kv``, ``add_zero_attn``).
            dropout: default that of ``attention``; 0 is needed to train.
            near, cells, order, opened, causal: as in the class.

        Raises:
            ValueError: for a module that this one cannot stand for.

        >>> layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)
        >>> layer.self_attn = FractalSelfAttention.from_torch(layer.self_attn, dropout=0.0)
        >>> layer(torch.randn(2, 1000, 32)).shape
        torch.Size([2, 1000, 32])
        """
        if not attention._qkv_same_embed_dim or attention.bias_k is not None:
            raise ValueError("expected keys and values of the query's width, without add_bias_kv")
        if attention.add_zero_attn:
            raise ValueError("expected a module without add_zero_attn")
        weight = attention.in_proj_weight
        made = cls(
            attention.embed_dim,
            attention.num_heads,
            attention.dropout if dropout is None else dropout,
            attention.in_proj_bias is not None,
            batch_first=attention.batch_first,
            device=weight.device,
            dtype=weight.dtype,
            near=near,
            cells=cells,
            order=order,
            opened=opened,
            causal=causal,
        )
        made.load_state_dict(attention.state_dict())
        return made.train(attention.training)

    def extra_repr(self) -> str:
        """The width, the heads and the geometry; the rest where it is not the default."""
        shown = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, near={self.near}, "
        shown += f"cells={self.cells}, order={self.order}, causal={self.causal}"
        shown += f", opened={self.opened}" if self.opened else ""
        shown += f", dropout={self.dropout}" if self.dropout else ""
        shown += "" if self.in_proj_bias is not None else ", bias=False"
        return shown + ("" if self.batch_first else ", batch_first=False")

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Any = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: (B, N, embed_dim), or (N, B, embed_dim) if not ``batch_first``.
            key, value: of the same shape; default the query.
            key_padding_mask: (B, N), bool with True for padding, or floating point with -inf for
                padding and else 0. What stands there, even NaN, is ignored.
            need_weights: must be False. The default is not that of torch.
            attn_mask: must be None, unless ``is_causal``; then the causal mask, (N, N), bool with
                True above the diagonal, or floating point with -inf there and else 0.
            average_attn_weights: without weights, of no effect.
            is_causal: True makes this call causal whatever the module is.

        Returns:
            of the shape of ``query``, and None in the place of the weights.

        Raises:
            TypeError, ValueError: as `fractal_self_attention`; ValueError for masks, dropout or
                weights that cannot be had.
        """
        key = query if key is None else key
        value = query if value is None else value
        self._check(query, key, value, need_weights, attn_mask, is_causal)
        same = query is key is value
        inputs = (query,) if same else (query, key, value)
        if not self.batch_first:
            inputs = tuple(x.transpose(0, 1) for x in inputs)
        padding = _as_bool(key_padding_mask, inputs[0])
        if padding is not None:
            inputs = tuple(clean(x, padding.unsqueeze(-1)) for x in inputs)
        if same:
            projected = linear(inputs[0], self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            parts = zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True)
            projected = [linear(x, weight, bias) for x, weight, bias in parts]
        shape = (self.num_heads, self.head_dim)
        q, k, v = (x.unflatten(-1, shape).transpose(1, 2) for x in projected)  # (B, heads, N, D)
        out = fractal_self_attention(
            q,
            k,
            v,
            is_causal=self.causal or is_causal,
            near=self.near,
            cells=self.cells,
            order=self.order,
            opened=self.opened,
            key_padding_mask=padding,
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), None

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        axes = "B, N" if self.batch_first else "N, B"
        for name, x in (("query", query), ("key", key), ("value", value)):
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
            if x.dim() != 3 or x.shape[:2] != query.shape[:2] or x.shape[2] != self.embed_dim:
                raise ValueError(
                    f"{name} must have shape ({axes}, {self.embed_dim}), as the query, "
                    f"got {tuple(x.shape)}"
                )
        if self.training and self.dropout:
            raise ValueError(
                "dropout of the weights cannot be had in training, since a cell's weight is that "
                f"of several keys: expected dropout=0 (or eval()), got {self.dropout}"
            )
        if need_weights:
            raise ValueError("need_weights must be False: there is no matrix of weights")
        if attn_mask is not None:
            if not is_causal:
                raise ValueError(
                    "attn_mask must be None without is_causal=True: a mask of N x N numbers is "
                    "quadratic by itself"
                )
            n = query.shape[1 if self.batch_first else 0]
            if attn_mask.shape != (n, n):
                raise ValueError(
                    f"attn_mask must have shape {(n, n)}, got {tuple(attn_mask.shape)}: is the "
                    f"query ({axes}, embed_dim), as batch_first={self.batch_first} says?"
                )
            banned = attn_mask if attn_mask.dtype == torch.bool else attn_mask == -torch.inf
            require(
                lambda: (banned == torch.ones_like(banned).triu(1)).all(),
                "attn_mask must be the causal mask where is_causal is True, got another one",
            )


def _as_bool(mask: Any, x: Tensor) -> Tensor | None:
    """A mask for x (B, N, ...): one of 0 and -inf, as `torch.nn.TransformerEncoderLayer` hands it
    on, as one of False and True.
    """
    if mask is None:
        return None
    mask = as_tensor(mask, "key_padding_mask").to(x.device)
    if mask.shape != x.shape[:2]:
        raise ValueError(
            f"key_padding_mask must have shape {tuple(x.shape[:2])}, got {tuple(mask.shape)}: is "
            "batch_first that of the surrounding layer?"
        )
    if mask.is_floating_point():
        padding = mask == -torch.inf
        require(
            lambda: (padding | (mask == 0)).all(),
            "a floating point key_padding_mask must hold 0 and -inf alone",
        )
        return padding
    if mask.dtype != torch.bool:
        raise TypeError(f"key_padding_mask must be bool, or 0 and -inf, got {mask.dtype}")
    return mask
