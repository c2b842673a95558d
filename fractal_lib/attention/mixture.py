"""Several attentions as one: their reads side by side, gathered once (chapter
``gallery/combined_head``).
"""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.attention.base import ContextAttention, Reads
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree
from fractal_lib.checks import as_float

__all__ = ["MixtureAttention"]


class MixtureAttention(ContextAttention):
    """A learnable average of attentions: weights softmax(``logits``) over whole patterns.

    The result is that of reading with each and averaging the results, but rows are gathered once.

    Args:
        *attentions: at least one `ContextAttention`. They share one context: those that read pooled
            rows make it a pyramid, in which the others read level 0. First moments
            (``expansion=1``) cannot be shared.
        logits: where the weights start, a number for each attention; default equal weights.

    Attributes:
        logits: (number of attentions,) float32 parameter.

    Complexity: the sum of the reads of its parts. Raises: ValueError or TypeError for parts that do
    not fit. Source: chapter ``gallery/combined_head``.

    >>> from fractal_lib import FractalAttention, WindowAttention
    >>> mixture = MixtureAttention(FractalAttention(), WindowAttention())
    >>> mixture.reads(torch.tensor([[0.3]]), 1000).indices.shape  # 40 + 11
    torch.Size([1, 1, 51])
    """

    def __init__(self, *attentions: ContextAttention, logits: Any = None):
        super().__init__()
        if not attentions or not all(isinstance(a, ContextAttention) for a in attentions):
            got = [type(a).__name__ for a in attentions]
            raise TypeError(f"expected one or more ContextAttention, got {got}")
        if len(attentions) > 1 and any(a.kind == "moments" for a in attentions):
            raise ValueError("first moments cannot be shared: use expansion=0 in a mixture")
        self.kind = attentions[0].kind if len(attentions) == 1 else "mean"
        self.attentions = nn.ModuleList(attentions)
        self.start = [0.0] * len(attentions) if logits is None else _checked(logits, attentions)
        self.logits = nn.Parameter(torch.empty(len(attentions)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The weights that it started with; its parts keep theirs."""
        self.logits.copy_(torch.tensor(self.start))

    @property
    def _parts(self) -> list[ContextAttention]:
        return list(self.attentions)  # type: ignore[arg-type]  # a ModuleList does not say of what

    def prepare(self, values: Tensor, observed: Any = None, times: Any = None) -> Pyramid:
        """The one context that all parts read: that of the part which packs most levels."""
        context, *others = [part.prepare(values, observed, times) for part in self._parts]
        for other in others:
            context = other if other.tree.levels > context.tree.levels else context
        return context

    def tree(self, n: int) -> Tree:
        """The tree of the part which packs most levels."""
        return max((part.tree(n) for part in self._parts), key=lambda tree: tree.levels)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """The reads of all parts, one after another: (B, Q, K_1 + K_2 + ...)."""
        parts = [part.pattern(t, tree) for part in self._parts]
        share = self.logits.double().softmax(0)
        weights = torch.cat([a * part.weights for a, part in zip(share, parts, strict=True)], -1)
        return Reads(torch.cat([part.indices for part in parts], -1), weights)


def _checked(logits: Any, attentions: tuple) -> list[float]:
    """One finite number for each attention."""
    numbers = as_float(logits, "logits").detach().cpu()
    if numbers.shape != (len(attentions),) or not bool(numbers.isfinite().all()):
        raise ValueError(
            f"expected logits as {len(attentions)} finite numbers, one for each attention, got "
            f"{numbers.tolist()}"
        )
    return numbers.tolist()
