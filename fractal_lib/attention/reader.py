"""The one reader: rows gathered by index and summed with weights."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_lib.checks import as_float, require

__all__ = ["Reads", "combine", "no_autocast", "read"]


@dataclass(frozen=True)
class Reads:
    """Where to read and how much.

    Attributes:
        indices: (B, Q, K) int64, rows to read, each in [0, N).
        weights: (B, Q, K) float64; the weights of a query sum to 1 unless the pattern is signed.
    """

    indices: Tensor
    weights: Tensor


def read(values: Tensor, reads: Reads) -> Tensor:
    """Gather rows and sum them with weights: the only place where a context is read.

    Args:
        values: (B, N, H), floating point, strided as it may be; it is not copied.
        reads: `Reads` with the same B.

    Returns:
        (B, Q, H) in the dtype of ``values``. Half precisions are summed in float32, and autocast
        is switched off: positions and weights do not survive in half precision.

    Raises:
        TypeError: if ``values`` is not floating point.
        ValueError: if shapes do not fit, or (eager mode) if the result is not finite, because a row
            that was read is not, or because no observed row lies within reach.

    Complexity: O(K H) per query, whatever N is. Forward AD, double backward, vmap and
    ``torch.compile(fullgraph=True)`` all pass through it. Source: chapter ``start/exact_window``.

    >>> values = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> read(values, Reads(torch.tensor([[[0, 2]]]), torch.tensor([[[0.5, 0.5]]])))
    tensor([[[2.5000]]])
    """
    values = as_float(values, "values")
    if values.dim() != 3 or reads.indices.dim() != 3 or values.shape[0] != reads.indices.shape[0]:
        raise ValueError(
            "expected values (B, N, H) and reads (B, Q, K) of one B, "
            f"got {tuple(values.shape)} and {tuple(reads.indices.shape)}"
        )
    picked = _stored(_pick(values, _stored(reads.indices)))  # (B, Q, K, H)
    return combine(reads.weights.unsqueeze(-2), picked).squeeze(-2)


def combine(weights: Tensor, values: Tensor) -> Tensor:
    """``weights @ values`` in the values' dtype, half precisions summed in float32; finite, or an
    error.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    with no_autocast(values.device):
        out = _product(_stored(weights.to(dtype)), values.to(dtype)).to(values.dtype)
    require(
        lambda: out.isfinite().all(),
        "the result is not finite: a row that was read is NaN or infinite (mark missing rows with "
        "`observed`), or no observed row lies within reach of t",
    )
    return out


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast off, where it is on."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _product(weight: Tensor, values: Tensor) -> Tensor:
    """``weight @ values``; in a compiled graph, one row of weights as the sum the compiler makes of
    it.

    The derivative of ``@`` keeps the absent tangent of ``values`` as a tensor without storage, and
    a compiled kernel reads it: a crash in the gradient of the weights (PyTorch issue 177261).
    """
    if torch.compiler.is_compiling() and weight.shape[-2] == 1:
        return (weight.mT * values).sum(-2, keepdim=True)
    return weight @ values


def _stored(x: Tensor) -> Tensor:
    """X; in a compiled graph, x in memory.

    A compiler fuses what it can, and would work an index or a weight out anew for each of the H
    numbers it serves, which is far slower than the read itself. A strided view needs storage.
    """
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x


def _pick(values: Tensor, indices: Tensor) -> Tensor:
    """values[b, indices[b]]; for rows one after another in memory by the faster index_select."""
    batch = torch.arange(values.shape[0], device=values.device)[:, None, None]
    if values.stride(0) != values.shape[1] * values.stride(1):  # flattening would copy them all
        return values[batch, indices]
    flat = (indices + batch * values.shape[1]).flatten()
    return values.flatten(0, 1).index_select(0, flat).unflatten(0, indices.shape)
