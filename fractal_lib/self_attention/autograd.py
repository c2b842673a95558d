"""The derivatives of `fractal_self_attention`, of any order and in both modes, and its form for
compilers.

Eager code goes through `Call`, an autograd function that `torch.func` transforms can nest. A
compiler gets one operator instead (`fractal_lib.self_attention.custom_op`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention.base import no_autocast
from fractal_lib.self_attention import blocks, cells, opening, ordering
from fractal_lib.self_attention.calls import Call, Derivative
from fractal_lib.self_attention.certificate import error_bound, radii
from fractal_lib.self_attention.layout import Layout
from fractal_lib.self_attention.search import search

__all__ = [
    "Backward",
    "Forward",
    "Settings",
    "bound_of",
    "choice_of",
    "chosen",
    "order_of",
    "self_attention",
]


class Settings(NamedTuple):
    """What is no tensor: the geometry, and the factor of the logits."""

    near: int
    cells: int
    causal: bool
    scale: float | None


def order_of(
    keys: Tensor, padding: Tensor | None, near: int, cells: int, order: str
) -> Tensor | None:
    """`fractal_lib.self_attention.ordering.content_order`, or None where time is the order."""
    if order == "time" or not cells:
        return None
    if not torch.compiler.is_compiling():
        if keys.shape[2] <= 2 * near:  # there are no cells
            return None
    elif not torch._C._are_functorch_transforms_active():
        return torch.ops.fractal_lib.self_attention_order(keys, padding, near, cells, order)
    return ordering.content_order(keys, padding, near, cells, order)


def choice_of(
    q: Tensor,
    k: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
    opened: int,
) -> Tensor | None:
    """`chosen`, or None where there is nothing to open."""
    if not opened:
        return None
    if not torch.compiler.is_compiling():
        if k.shape[2] <= 2 * settings.near:  # there are no cells
            return None
    elif not torch._C._are_functorch_transforms_active():
        operator = torch.ops.fractal_lib.self_attention_choice
        return operator(q, k, padding, order, *settings, opened)
    return chosen(q, k, padding, order, settings, opened)


def chosen(
    q: Tensor,
    k: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
    opened: int,
) -> Tensor:
    """Keys that each query opens, (B, heads, N, opened) int32, -1 for none: as
    `fractal_lib.self_attention.search.search` finds them. No gradient passes through it.
    """
    with torch.no_grad(), no_autocast(q.device):
        made = _prepare(q.detach(), k.detach(), k[..., :0].detach(), padding, order, settings)
        where = (made.counts, made.orders, made.bias, made.layout)
        return search(made.q, made.keys, *where, opened).unflatten(0, q.shape[:2])


def bound_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    chosen: Tensor | None,
    settings: Settings,
    out: Tensor,
) -> Tensor:
    """`fractal_lib.self_attention.certificate.error_bound` of ``out``, (B, heads, N): 0 for a query
    without any key. No gradient passes through it.
    """
    with torch.no_grad(), no_autocast(q.device):
        q, k, v, out = (x.detach() for x in (q, k, v, out))
        made = _prepare(q, k, v, padding, order, settings)
        holders = cells.holders(k.shape[2], made.layout, made.orders)
        of_keys, of_values = (
            radii(x.flatten(0, 1).to(made.bias.dtype), made.counts, holders, made.layout)
            for x in (k, v)
        )
        where = (made.bias, made.layout, out.flatten(0, 1), made.opened(chosen))
        bound = error_bound(made.q, made.keys, made.values, of_keys, of_values, *where)
        bound = bound.unflatten(0, q.shape[:2])
        if padding is not None:
            bound = bound.masked_fill(_without_keys(made, q.shape).squeeze(-1), 0)
        return bound


def self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    chosen: Tensor | None,
    settings: Settings,
) -> Tensor:
    """`fractal_self_attention` of arguments that have been checked, differentiable.

    Args:
        q, k: (B, heads, N, D); v: (B, heads, N, Dv); all of one floating point dtype.
        padding: None or (B, N) bool, True for padding. k and v are finite there.
        order: None or (B, heads, size) int64, `order_of` the keys.
        chosen: None or (B, heads, N, O) integers, keys that each query opens, -1 for none.
        settings: `Settings`.
    """
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            # operators with an autograd formula refuse torch.func transforms: plain operations
            return Forward(settings)(q, k, v, padding, order, chosen)[0]
        return torch.ops.fractal_lib.self_attention(q, k, v, padding, order, chosen, *settings)
    return Call.apply(Forward(settings), q, k, v, padding, order, chosen)[0]


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


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
) -> Prepared:
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


def _without_keys(made: Prepared, shape: torch.Size) -> Tensor:
    """(B, heads or 1, N, 1) bool: queries of a shape (B, heads, N, D) that have no key to read;
    their result is 0.
    """
    batch, heads, n, _ = shape
    found = cells.has_key(made.bias, made.layout)[:, :n]  # (B or B heads, N)
    heads = heads if len(found) == batch * heads else 1
    return ~found.view(batch, heads, n, 1)


@dataclass(frozen=True)
class Forward:
    """(q, k, v, padding, order, chosen) -> (out,)."""

    settings: Settings

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        order: Tensor | None,
        chosen: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The result, by plain operations."""
        with no_autocast(q.device):
            made = _prepare(q, k, v, padding, order, self.settings)
            opened = made.opened(chosen)
            out = blocks.attend(made.q, made.keys, made.values, made.bias, made.layout, opened)
            out = out.unflatten(0, q.shape[:2])
            if padding is not None:
                out = out.masked_fill(_without_keys(made, q.shape), 0)
        return (out,)

    def derivative(self, inputs: int) -> "Backward":
        """As `Call` asks for it."""
        return Backward(self.settings)


@dataclass(frozen=True)
class Backward:
    """(q, k, v, padding, order, chosen, out, grad) -> gradients of q, k and v."""

    settings: Settings

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        padding: Tensor | None,
        order: Tensor | None,
        chosen: Tensor | None,
        out: Tensor,
        grad: Tensor,
    ) -> tuple[Tensor, ...]:
        """The gradients, by plain operations."""
        with no_autocast(q.device):
            made = _prepare(q, k, v, padding, order, self.settings)
            if padding is not None:
                grad = grad.masked_fill(_without_keys(made, q.shape), 0)
            grad_q, *grad_tables = blocks.attend_backward(
                made.q,
                made.keys,
                made.values,
                made.bias,
                made.layout,
                out.flatten(0, 1),
                grad.flatten(0, 1),
                made.opened(chosen),
            )
            grads = [grad_q * made.scale] + [
                cells.means_backward(grad_table, made.counts, made.layout, made.orders)
                for grad_table in grad_tables
            ]
            grad_q, grad_k, grad_v = (
                g.unflatten(0, q.shape[:2]).to(x.dtype)
                for g, x in zip(grads, (q, k, v), strict=True)
            )
        return grad_q, grad_k, grad_v

    def derivative(self, inputs: int) -> "Derivative":
        """As `Call` asks for it."""
        return Derivative(self, inputs)
