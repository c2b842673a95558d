"""Queries, keys and values as the passes of `fractal_self_attention` read them: in blocks, with the
cells over them (chapter ``self_attention/near_in_content``).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.self_attention import cells, opening, ordering
from fractal_lib.self_attention.layout import Layout

__all__ = ["Prepared", "Settings", "prepare", "without_keys"]


class Settings(NamedTuple):
    """What is no tensor: the geometry, and the factor of the logits."""

    near: int
    cells: int
    causal: bool
    scale: float | None


class Prepared(NamedTuple):
    """All that the forward and the backward pass are computed from, G = B heads sequences."""

    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    counts: list[Tensor]
    orders: cells.Orders
    bias: Tensor
    layout: Layout
    scale: float

    def opened(self, chosen: Tensor | None) -> opening.Chosen | None:
        """Keys (B, heads, N, O) that queries open, and the cells that hold them."""
        if chosen is None:
            return None
        holders = cells.holders(self.counts[0].shape[1], self.layout, self.orders)
        return opening.Chosen(chosen.flatten(0, 1), holders)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
) -> Prepared:
    """Arguments as `fractal_lib.self_attention.autograd.self_attention` takes them."""
    near, half, causal, scale = settings
    batch, heads, n, width = q.shape
    scale = width**-0.5 if scale is None else scale
    layout = Layout.of(n, near, half, causal, batch * heads, q.device)
    dtype = torch.promote_types(q.dtype, torch.float32)
    if padding is None:
        valid = torch.ones(1, n, dtype=dtype, device=q.device)
    else:
        valid = (~padding).to(dtype)
    orders: cells.Orders = [None] * (layout.scales - 1)
    if order is not None:
        orders = ordering.unpacked(order, n, layout)
        valid = valid.repeat_interleave(batch * heads // max(1, len(valid)), 0)
    counts = cells.key_counts(valid, layout, orders)
    keys, values = (cells.means(x.flatten(0, 1), counts, layout, orders) for x in (k, v))
    bias, q = cells.log_counts(counts, layout), q.flatten(0, 1).to(dtype) * scale
    return Prepared(q, keys, values, counts, orders, bias, layout, scale)


def without_keys(made: Prepared, shape: torch.Size) -> Tensor:
    """(B, heads or 1, N, 1) bool: queries of a shape (B, heads, N, D) that have no key to read;
    their result is 0.
    """
    batch, heads, n, _ = shape
    found = cells.has_key(made.bias, made.layout)[:, :n]  # (B or B heads, N)
    heads = heads if len(found) == batch * heads else 1
    return ~found.view(batch, heads, n, 1)
