"""One way to check values: in eager mode, never inside a compiled or vmapped graph."""

from collections.abc import Callable

import torch
from torch import Tensor


def require(holds: Callable[[], Tensor], message: str, details: Callable[[], object] | None = None) -> None:
    """Raise ValueError unless ``holds()`` is true, where its value can be known.

    Compiled graphs and vmap have no concrete values to look at; they skip the check.

    >>> require(lambda: torch.tensor(False), "expected {}", lambda: "better")
    Traceback (most recent call last):
    ...
    ValueError: expected better
    """
    if torch.compiler.is_compiling():
        return
    try:
        if bool(holds()):
            return
    except RuntimeError:  # vmap: data-dependent control flow
        return
    raise ValueError(message.format(details()) if details else message)
