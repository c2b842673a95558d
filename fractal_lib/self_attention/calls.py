"""Functions with derivatives of any order and in both modes, under every `torch.func` transform."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = ["Call", "Derivative", "folded", "unfolded"]


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
