"""Self-attention as others compute it: the causal window of two blocks by FlexAttention and by the
package local-attention, and a hierarchy of blocks.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fractal_lib.benchmark.hierarchy_rival import hierarchical
from fractal_lib.benchmark.transformer import Attend
from fractal_lib.checks import optional

__all__ = ["FORWARD_ONLY", "OTHERS", "flex_window", "local_window", "others_made"]


def flex_window(near: int, compiled: bool = True) -> Attend:
    """Attention to the keys of a query's block of ``near`` and of the one before it, up to itself,
    by FlexAttention, whose blocks have 128 rows; on a CPU it has no backward pass.

    >>> flex_window(8)
    <function flex_window.<locals>.attend at ...>
    """
    flex = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex(q, k, v, block_mask=_blocks(q.shape[2], near, str(q.device)))  # type: ignore[return-value]

    return attend


@lru_cache
def _blocks(n: int, near: int, device: str, size: int = 128) -> BlockMask:
    """The mask by its blocks, without a matrix of n x n."""
    reach = -(-2 * near // size)  # blocks before its own that may be read
    row = torch.arange(-(-n // size), device=device)
    first = (row - reach).clamp(min=0)
    index = (first[:, None] + torch.arange(len(row), device=device)).clamp(max=len(row) - 1)
    number, index = (row - first + 1)[None, None], index[None, None]

    def rule(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (q // near - kv // near <= 1)

    return BlockMask.from_kv_blocks(
        number.int(), index.int(), BLOCK_SIZE=size, mask_mod=rule, seq_lengths=(n, n)
    )


def local_window(near: int) -> Attend:
    """The same by the package local-attention.

    Raises:
        ImportError: if it is not installed.
    """
    package = optional("local_attention", "local_window()")
    return package.LocalAttention(
        window_size=near, causal=True, look_backward=1, look_forward=0, autopad=True, dropout=0.0
    )


OTHERS: dict[str, Callable[[int], Attend]] = {
    "FlexAttention, causal": flex_window,
    "local-attention, causal": local_window,
    "h-transformer-1d": hierarchical,
    "h-transformer-1d, causal": partial(hierarchical, causal=True),
}
"""By name: what makes one for a ``near``."""


def others_made(names: Sequence[str], near: int) -> tuple[dict[str, Attend], dict[str, str]]:
    """Those of `OTHERS` that are named, and of each whose package is not installed a sentence.

    >>> others_made([], 64)
    ({}, {})
    """
    made, notes = {}, {}
    for name in names:
        try:
            made[name] = OTHERS[name](near)
        except ImportError as error:
            notes[name] = str(error)
    return made, notes


FORWARD_ONLY = ("FlexAttention, causal",)
"""What cannot be trained on a CPU."""
