"""What is settled before attention is computed, and is a constant for derivatives: the order of
keys, and the keys that are opened; and the bound of the result's error.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fractal_lib.attention.base import no_autocast
from fractal_lib.self_attention import cells, opening, ordering
from fractal_lib.self_attention.blocks import attend
from fractal_lib.self_attention.certificate import error_bound, radii, terms
from fractal_lib.self_attention.prepared import Prepared, Settings, prepare, without_keys
from fractal_lib.self_attention.search import search
from fractal_lib.self_attention.tolerance import worst_cells

__all__ = ["bound_of", "choice_of", "choice_within", "chosen", "order_of"]

Terms = Iterator[tuple[int, Tensor, Tensor]]
FIRST = 16  # keys that are opened first; doubled until the bound is met


def order_of(
    keys: Tensor, padding: Tensor | None, near: int, cells: int, order: str
) -> Tensor | None:
    """`fractal_lib.self_attention.ordering.content_order`, or None where time is the order."""
    if order == "time" or not cells:
        return None
    if not torch.compiler.is_compiling():
        if keys.shape[2] <= 2 * near:  # there are no cells
            return None
    elif not torch._C._are_functorch_transforms_active():
        return torch.ops.fractal_lib.self_attention_order(keys, padding, near, cells, order)
    return ordering.content_order(keys, padding, near, cells, order)


def choice_of(
    q: Tensor,
    k: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
    opened: int,
) -> Tensor | None:
    """`chosen`, or None where there is nothing to open."""
    if not opened:
        return None
    if not torch.compiler.is_compiling():
        if k.shape[2] <= 2 * settings.near:  # there are no cells
            return None
    elif not torch._C._are_functorch_transforms_active():
        operator = torch.ops.fractal_lib.self_attention_choice
        return operator(q, k, padding, order, *settings, opened)
    return chosen(q, k, padding, order, settings, opened)


def chosen(
    q: Tensor,
    k: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
    opened: int,
) -> Tensor:
    """Keys that each query opens, (B, heads, N, opened) int32, -1 for none: as
    `fractal_lib.self_attention.search.search` finds them. No gradient passes through it.
    """
    with torch.no_grad(), no_autocast(q.device):
        made = prepare(q.detach(), k.detach(), k[..., :0].detach(), padding, order, settings)
        where = (made.counts, made.orders, made.bias, made.layout)
        return search(made.q, made.keys, *where, opened).unflatten(0, q.shape[:2])


def choice_within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    settings: Settings,
    opened: int,
    tol: float,
) -> Tensor | None:
    """Keys that each query opens, (B, heads, N, O) int32, -1 for none, until its bound is at most
    ``tol``: those of `worst_cells`, of few cells first and then of twice as many, up to ``opened``
    keys. None where there is nothing to open. No gradient passes through it.
    """
    if k.shape[2] <= 2 * settings.near:
        return None
    with torch.no_grad(), no_autocast(q.device):
        q, k, v = (x.detach() for x in (q, k, v))
        made = prepare(q, k, v, padding, order, settings)
        terms_of, holders = _certified(k, v, made)
        plain = out = attend(made.q, made.keys, made.values, made.bias, made.layout)
        found = made.counts[0].new_full((*out.shape[:2], opened), -1, dtype=torch.int32)
        number, n, chosen = min(FIRST, opened), k.shape[2], None
        while (wide := error_bound(terms_of(out, chosen), n) > tol).any():
            where = (made.counts, holders, made.bias, made.layout)
            picked = worst_cells(terms_of(plain, None), *where, number)
            # what was enough for a query stays
            found[..., :number] = torch.where(wide.unsqueeze(2), picked, found[..., :number])
            if number == opened:
                break
            chosen = opening.Chosen(found[..., :number], holders)
            out = attend(made.q, made.keys, made.values, made.bias, made.layout, chosen)
            number = min(2 * number, opened)
        return found[..., :number].unflatten(0, q.shape[:2])


def bound_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    order: Tensor | None,
    chosen: Tensor | None,
    settings: Settings,
    out: Tensor,
) -> Tensor:
    """`fractal_lib.self_attention.certificate.error_bound` of ``out``, (B, heads, N): 0 for a query
    without any key. No gradient passes through it.
    """
    with torch.no_grad(), no_autocast(q.device):
        q, k, v, out = (x.detach() for x in (q, k, v, out))
        made = prepare(q, k, v, padding, order, settings)
        terms_of, _ = _certified(k, v, made)
        bound = error_bound(terms_of(out.flatten(0, 1), made.opened(chosen)), k.shape[2])
        bound = bound.unflatten(0, q.shape[:2])
        if padding is not None:
            bound = bound.masked_fill(without_keys(made, q.shape).squeeze(-1), 0)
        return bound


def _certified(
    k: Tensor, v: Tensor, made: Prepared
) -> tuple[Callable[[Tensor, opening.Chosen | None], Terms], list[Tensor | None]]:
    """`terms` of a result and what it was had with, and the cells that hold each key."""
    holders = cells.holders(k.shape[2], made.layout, made.orders)
    of_keys, of_values = (
        radii(x.flatten(0, 1).to(made.bias.dtype), made.counts, holders, made.layout)
        for x in (k, v)
    )
    sides = (made.q, made.keys, made.values, of_keys, of_values, made.bias, made.layout)
    return lambda out, chosen: terms(*sides, out, chosen), holders
