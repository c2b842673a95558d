"""Self-attention by a hierarchy of blocks as the package h-transformer-1d computes it, with the
queries, keys and values that are given.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from fractal_lib.benchmark.transformer import Attend
from fractal_lib.checks import optional

__all__ = ["hierarchical"]


def hierarchical(near: int, causal: bool = False) -> Attend:
    """The package's attention in blocks of ``near`` keys, doubled in width with their distance, its
    own projections taken away.

    It is timed, and its error told, as it comes: version 0.1.9 is no mean of the values. Its coarse
    blocks bring the sum of their values, but count as one key in what the result is divided by; and
    every level is scaled by a largest logit of its own.

    Raises:
        ImportError: if h-transformer-1d is not installed.

    Complexity: O(N near log(N / near)). Source: Zhu and Soricut, H-Transformer-1D (2021).
    """
    optional("h_transformer_1d", "this rival")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, heads, n, width = q.shape
        module = _bare(heads, width, n, near, causal, str(q.device))
        joined = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1)  # (B, n, 3 H D)
        # it pads to a power of two, with keys of 0 that the causal form never sees
        padded = n & (n - 1) and not causal
        mask = torch.ones(q.shape[0], n, dtype=torch.bool, device=q.device) if padded else None
        return module(joined, mask=mask).unflatten(-1, (heads, width)).transpose(1, 2)

    return attend


@lru_cache
def _bare(heads: int, width: int, n: int, near: int, causal: bool, device: str) -> nn.Module:
    """Its module for n rows, that projects neither what comes in nor what goes out."""
    package = optional("h_transformer_1d.h_transformer_1d", "this rival")
    whole = max(4, 1 << (n - 1).bit_length())
    sizes = {"heads": heads, "dim_head": width, "block_size": min(near, whole // 4)}
    if causal:
        module = package.CausalHAttention1D(1, max_seq_len=whole, **sizes)
    else:
        module = package.HAttention1D(1, **sizes)
    module.to_qkv, module.to_out = nn.Identity(), nn.Identity()
    return module.to(device)
