"""The derivatives of `fractal_self_attention`, of any order and in both modes, and its form for
compilers.

Eager code goes through `Call`, an autograd function that `torch.func` transforms can nest. A
compiler gets one operator instead (`fractal_lib.self_attention.custom_op`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fractal_lib.attention.base import no_autocast
from fractal_lib.self_attention import blocks, cells, opening, ordering
from fractal_lib.self_attention.certificate import error_bound, radii
from fractal_lib.self_attention.layout import Layout
from fractal_lib.self_attention.search import search

__all__ = [
    "Backward",
    "Call",
    "Forward",
    "Settings",
    "bound_of",
    "choice_of",
    "chosen",
    "folded",
    "order_of",
    "self_attention",
    "unfolded",
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
        spreads = (
            radii(x.flatten(0, 1).to(made.bias.dtype), made.counts, holders, made.layout)
            for x in (k, v)
        )
        where = (made.bias, made.layout, out.flatten(0, 1), made.opened(chosen))
        bound = error_bound(made.q, made.keys, made.values, *spreads, *where)
        bound = bound.unflatten(0, q.shape[:2])
        return bound.masked_fill(_without_keys(made, q.shape).squeeze(-1), 0)


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


@dataclass(frozen=True)
class Derivative:
    """The derivative of a ``function`` of ``inputs`` arguments that consists of plain operations:
    (*arguments, *results, *gradients of the results) -> gradients of the arguments that have one.
    """

    function: Callable[..., tuple[Tensor, ...]]
    inputs: int

    def __call__(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The gradients, by torch's own rules."""
        arguments, rest = list(tensors[: self.inputs]), tensors[self.inputs :]
        places = _differentiable(arguments)

        def of_those(*chosen: Tensor) -> tuple[Tensor, ...]:
            for place, tensor in zip(places, chosen, strict=True):
                arguments[place] = tensor
            return self.function(*arguments)

        pull = torch.func.vjp(of_those, *(tensors[place] for place in places))[1]
        return pull(rest[len(rest) // 2 :])

    def derivative(self, inputs: int) -> "Derivative":
        """As `Call` asks for it."""
        return Derivative(self, inputs)


class Call(torch.autograd.Function):
    """``Call.apply(function, *tensors)`` is ``function(*tensors)``, a tuple, differentiable.

    The function's tensors begin with the axis of the batch, over which it is independent (that is
    how `torch.func.vmap` is served: one larger batch); ``function.derivative(len(tensors))`` takes
    (*tensors, *results, *gradients of the results) and gives a gradient for each floating point
    tensor. It is linear in the last of these, so its own derivative gives forward mode.
    """

    @staticmethod
    def forward(function: Any, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The results of the function."""
        # as tangents will be, and no views, which forward mode refuses as results
        return tuple(x.contiguous().detach() for x in function(*tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        """Keep tensors and results."""
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)
        ctx.inputs = len(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By the derivative of the function."""
        tensors = ctx.saved_tensors
        found = Call.apply(ctx.function.derivative(ctx.inputs), *tensors, *grads)
        everything: list[Tensor | None] = [None] * ctx.inputs
        for place, grad in zip(_differentiable(tensors[: ctx.inputs]), found, strict=True):
            everything[place] = grad
        return None, *everything

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """By the derivative of the derivative."""
        # what was saved still carries its tangents, which would lead back here
        tensors: Any = [x if x is None else unpack_dual(x).primal for x in ctx.saved_tensors]
        arguments, results = tensors[: ctx.inputs], tensors[ctx.inputs :]
        derivative = ctx.function.derivative(ctx.inputs)

        def transposed(*grads: Tensor) -> tuple[Tensor, ...]:
            return Call.apply(derivative, *tensors, *grads)

        pull = torch.func.vjp(transposed, *map(torch.zeros_like, results))[1]
        places = _differentiable(arguments)
        given = ((tangents[i], arguments[i]) for i in places)
        found = pull(tuple(torch.zeros_like(x) if t is None else t for t, x in given))
        return tuple(x.contiguous() for x in found)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Any, *tensors: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """One call with a larger batch."""
        results = Call.apply(function, *folded(info.batch_size, in_dims[1:], tensors))
        return unfolded(info.batch_size, results), (0,) * len(results)


def _differentiable(tensors: Any) -> list[int]:
    return [i for i, x in enumerate(tensors) if x is not None and x.is_floating_point()]


def folded(size: int, dims: tuple[int | None, ...], tensors: Any) -> list[Tensor | None]:
    """Each tensor with the axis that vmap runs over taken into its first axis, the batch."""
    found = []
    for dim, x in zip(dims, tensors, strict=True):
        if x is not None:
            x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x.flatten(0, 1)
        found.append(x)
    return found


def unfolded(size: int, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inverse of `folded`, with the axis in front."""
    return tuple(x.unflatten(0, (size, x.shape[0] // size)) for x in results)
