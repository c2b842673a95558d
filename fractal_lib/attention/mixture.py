"""Several attentions as one: their reads side by side, gathered once (chapter ``posterior/combined_head``)."""

import torch
from torch import Tensor, nn

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import ContextAttention, Reads


class MixtureAttention(ContextAttention):
    """A learnable average of attentions: weights softmax(``logits``) over whole patterns.

    The result is that of reading with each and averaging the results, but rows are gathered once.

    Args:
        *attentions: at least one `ContextAttention`. They share one context: those that read pooled rows make
            it a pyramid, in which the others read level 0. First moments (``order=1``) cannot be shared.

    Attributes:
        logits: (number of attentions,) float32 parameter, 0 at first: equal weights.

    Complexity: the sum of the reads of its parts. Raises: ValueError or TypeError for parts that do not fit.
    Source: chapter ``posterior/combined_head``.

    >>> from fractal_lib import FractalAttention, WindowAttention
    >>> mixture = MixtureAttention(FractalAttention(), WindowAttention())
    >>> mixture.reads(torch.tensor([[0.3]]), 1000).index.shape  # 40 + 11
    torch.Size([1, 1, 51])
    """

    def __init__(self, *attentions: ContextAttention):
        super().__init__()
        if not attentions or not all(isinstance(a, ContextAttention) for a in attentions):
            raise TypeError(f"expected one or more ContextAttention, got {[type(a).__name__ for a in attentions]}")
        if len(attentions) > 1 and any(getattr(a, "order", 0) for a in attentions):
            raise ValueError("first moments cannot be shared: use order=0 in a mixture")
        self.attentions = nn.ModuleList(attentions)
        self.logits = nn.Parameter(torch.zeros(len(attentions)))

    def prepare(self, rows: Tensor, observed: Tensor | None = None, times: Tensor | None = None) -> Pyramid:
        """The one context that all parts read: that of the part which packs most levels."""
        context, *others = [attention.prepare(rows, observed, times) for attention in self.attentions]
        for other in others:
            context = other if other.cells.levels > context.cells.levels else context
        return context

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """The reads of all parts, one after another: index and weight (B, Q, K_1 + K_2 + ...)."""
        parts = [attention.reads(t, n) for attention in self.attentions]
        share = self.logits.double().softmax(0)
        weight = torch.cat([a * part.weight for a, part in zip(share, parts, strict=True)], -1)
        return Reads(torch.cat([part.index for part in parts], -1), weight)
