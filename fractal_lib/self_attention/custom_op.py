"""``torch.ops.fractal_lib.self_attention``: `fractal_self_attention` as one operator of torch.

Its graph does not depend on the number of blocks, so one graph of `torch.compile` or `torch.export`
serves every length. A program that `torch.export` saved needs ``import fractal_lib`` before it is
loaded. First derivatives in reverse mode; a compiled graph has no others.
"""

from typing import Any

import torch
from torch import Tensor

from fractal_lib.self_attention.autograd import Backward, Forward
from fractal_lib.self_attention.calls import folded, unfolded
from fractal_lib.self_attention.choices import chosen
from fractal_lib.self_attention.ordering import content_order, packed_size
from fractal_lib.self_attention.prepared import Settings

__all__ = ["choice_operator", "operator", "order_operator"]

TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? padding, Tensor? order, Tensor? chosen"
SEARCHED = "Tensor q, Tensor k, Tensor? padding, Tensor? order"
SETTINGS = "int near, int cells, bool causal, float? scale"


@torch.library.custom_op("fractal_lib::self_attention_order", mutates_args=())
def order_operator(
    keys: Tensor, padding: Tensor | None, near: int, cells: int, order: str
) -> Tensor:
    """`fractal_lib.self_attention.ordering.content_order`, not looked into by compilers."""
    return content_order(keys, padding, near, cells, order)


@order_operator.register_fake
def _(keys: Tensor, padding: Tensor | None, near: int, cells: int, order: str) -> Tensor:
    size = packed_size(keys.shape[2], near, cells)
    return keys.new_empty((*keys.shape[:2], size), dtype=torch.int64)


@order_operator.register_vmap
def _(info: Any, dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
    tensors = folded(info.batch_size, dims[:2], arguments[:2])
    result = torch.ops.fractal_lib.self_attention_order(*tensors, *arguments[2:])
    return unfolded(info.batch_size, (result,))[0], 0


@torch.library.custom_op(
    "fractal_lib::self_attention_choice",
    mutates_args=(),
    schema=f"({SEARCHED}, {SETTINGS}, int opened) -> Tensor",
)
def choice_operator(
    q: Tensor, k: Tensor, padding: Tensor | None, order: Tensor | None, *settings: Any
) -> Tensor:
    """`fractal_lib.self_attention.choices.chosen`, not looked into by compilers."""
    return chosen(q, k, padding, order, Settings(*settings[:-1]), settings[-1]).contiguous()


@choice_operator.register_fake
def _(q: Tensor, k: Tensor, padding: Tensor | None, order: Tensor | None, *rest: Any) -> Tensor:
    return q.new_empty((*q.shape[:3], rest[-1]), dtype=torch.int32)


@choice_operator.register_vmap
def _(info: Any, dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
    tensors = folded(info.batch_size, dims[:4], arguments[:4])
    result = torch.ops.fractal_lib.self_attention_choice(*tensors, *arguments[4:])
    return unfolded(info.batch_size, (result,))[0], 0


@torch.library.custom_op(
    "fractal_lib::self_attention",
    mutates_args=(),
    schema=f"({TENSORS}, {SETTINGS}) -> Tensor",
)
def operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    chosen: Tensor | None,
    *settings: Any,
) -> Tensor:
    """`fractal_lib.self_attention.autograd.self_attention`, not looked into by compilers."""
    return Forward(Settings(*settings))(q, k, v, padding, order, chosen)[0].contiguous()


@torch.library.custom_op(
    "fractal_lib::self_attention_backward",
    mutates_args=(),
    schema=f"({TENSORS}, Tensor out, Tensor grad, {SETTINGS}) -> (Tensor, Tensor, Tensor)",
)
def backward_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    chosen: Tensor | None,
    out: Tensor,
    grad: Tensor,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    grads = Backward(Settings(*settings))(q, k, v, padding, order, chosen, out, grad)
    grad_q, grad_k, grad_v = (g.contiguous() for g in grads)
    return grad_q, grad_k, grad_v


@operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return v.new_empty(v.shape)


@backward_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6], output)
    ctx.settings = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.fractal_lib.self_attention_backward(*ctx.saved_tensors, grad, *ctx.settings)
    return *grads, *[None] * (3 + len(ctx.settings))


operator.register_autograd(_backward, setup_context=_setup_context)


@operator.register_vmap
def _(info: Any, dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
    tensors = folded(info.batch_size, dims[:6], arguments[:6])
    result = torch.ops.fractal_lib.self_attention(*tensors, *arguments[6:])
    return unfolded(info.batch_size, (result,))[0], 0


@backward_operator.register_vmap
def _(info: Any, dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    tensors = folded(info.batch_size, dims[:8], arguments[:8])
    results = torch.ops.fractal_lib.self_attention_backward(*tensors, *arguments[8:])
    return unfolded(info.batch_size, results), (0, 0, 0)
