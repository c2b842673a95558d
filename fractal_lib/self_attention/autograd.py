"""The derivatives of `fractal_self_attention`, of any order and in both modes, and its form for
compilers.

Eager code goes through `Call`, an autograd function that `torch.func` transforms can nest. A
compiler gets one operator instead (`fractal_lib.self_attention.custom_op`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_lib.attention.base import no_autocast
from fractal_lib.self_attention import blocks, cells
from fractal_lib.self_attention.calls import Call, Derivative
from fractal_lib.self_attention.prepared import Settings, prepare, without_keys

__all__ = ["Backward", "Forward", "self_attention"]


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
            made = prepare(q, k, v, padding, order, self.settings)
            opened = made.opened(chosen)
            out = blocks.attend(made.q, made.keys, made.values, made.bias, made.layout, opened)
            out = out.unflatten(0, q.shape[:2])
            if padding is not None:
                out = out.masked_fill(without_keys(made, q.shape), 0)
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
            made = prepare(q, k, v, padding, order, self.settings)
            if padding is not None:
                grad = grad.masked_fill(without_keys(made, q.shape), 0)
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
