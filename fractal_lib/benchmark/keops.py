"""The dense reader by KeOps: the kernel's matrix is never written, and its code is made and
compiled for each size of a row, at the first call.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fractal_lib.benchmark.methods import Method, as_it_is
from fractal_lib.checks import optional

__all__ = ["OTHERS", "keops", "outside"]


def keops(rows: Tensor, t: Tensor) -> Tensor:
    """The original kernel as a symbolic matrix: (B, n, H), (B, 1) to (B, H).

    Raises:
        ImportError: if pykeops is not installed.

    Complexity: O(B n H) time, no memory beside the result. Source: Charlier, Feydy, Glaunes, Collin
    and Durif (2021).
    """
    symbolic = optional("pykeops.torch", "KeOps").LazyTensor
    l = rows.shape[1]
    ts = torch.linspace(0, 1, l, dtype=rows.dtype, device=rows.device)
    asked = symbolic(t.to(rows.dtype)[:, :, None, None].contiguous())  # (B, 1, 1, 1)
    keys = symbolic(ts.expand(rows.shape[0], 1, l)[..., None].contiguous())  # (B, 1, n, 1)
    # a parameter: a number would be written into the code, which is compiled
    scale = symbolic(torch.full((1,), float(l), dtype=rows.dtype, device=rows.device))
    logits = -((scale * (keys - asked)) ** 2)
    return logits.sumsoftmaxweight(symbolic(rows[:, None]), dim=2)[:, 0]


OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"KeOps": keops}
"""Readers by packages from outside: by name, from rows and t to the result."""


def outside(
    rows: Tensor, queries: list[Tensor], others: Sequence[str], slope: bool = False
) -> Iterator[Method]:
    """Those of `OTHERS` that are named; with ``slope`` none, for they have no forward mode.

    >>> [m.missing for m in outside(torch.zeros(1, 2, 3).bfloat16(), [], ["KeOps"])]
    ['KeOps has no bfloat16']
    """
    for name in () if slope else others:
        call, n = OTHERS[name], rows.shape[1]
        yield Method(
            name, n, 0, 0, as_it_is, call, queries, compiles=False, missing=_missing(rows.dtype)
        )


def _missing(dtype: torch.dtype) -> str:
    if dtype not in (torch.float32, torch.float64):
        return f"KeOps has no {str(dtype).removeprefix('torch.')}"
    try:
        optional("pykeops", "KeOps")
    except ImportError as error:
        return str(error)
    return ""
