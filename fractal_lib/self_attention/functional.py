"""Self-attention in O(N log N): near keys one by one, far ones by cells (chapter
``self_attention/near_in_content``).
"""

from typing import Any

import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_mask, as_positive
from fractal_lib.self_attention.autograd import self_attention
from fractal_lib.self_attention.choices import bound_of, choice_of, choice_within, order_of
from fractal_lib.self_attention.ordering import ORDERS
from fractal_lib.self_attention.prepared import Settings

__all__ = [
    "check_geometry",
    "check_opened",
    "check_order",
    "check_tensors",
    "clean",
    "fractal_self_attention",
    "refuse",
]


def fractal_self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    near: int = 64,
    cells: int = 8,
    order: str = "time",
    opened: int = 0,
    return_bound: bool = False,
    tol: float | None = None,
    key_padding_mask: Any = None,
) -> Any:
    """Softmax attention that reads keys nearby exactly and keys far away by cells, in O(N log N).

    Arguments stand as in `torch.nn.functional.scaled_dot_product_attention`; what cannot be had is
    refused. Queries stand in blocks of ``near``. A block reads the keys of its own block and of the
    two beside it one by one: all that are at most ``near`` away, and more. What is further away is
    read by cells that double in width as the distance does: a cell d positions away holds at most
    d / ``cells`` keys. Its key and value are the means of its keys and values, and its logit
    carries log(count), so it weighs as its keys would if they were alike; ``order`` says which keys
    share one. All logits go through one softmax. Every key is read exactly once, by itself or in a
    cell; up to 2 ``near`` positions all are read by themselves, and the result is that of full
    attention.

    Args:
        query: (B, heads, N, D), floating point, N >= 1.
        key: (B, heads, N, D) of the same dtype.
        value: (B, heads, N, Dv) of the same dtype.
        attn_mask: must be None: a mask of N x N pairs is quadratic by itself. See ``is_causal`` and
            ``key_padding_mask``.
        dropout_p: must be 0: a weight of a cell is not the weight of a key that could be dropped.
        is_causal: True if query i reads keys 0 to i alone. A cell is read only when all of it is
            past.
        scale: factor of the logits; default 1 / sqrt(D).
        enable_gqa: True if ``key`` and ``value`` may have fewer heads than ``query``, a divisor of
            its number: grouped-query attention. They are repeated in memory.
        near: positions in a block, at least 1; a multiple of ``cells``.
        cells: cells that stand for one block at the least distance; 0 leaves the far field out,
            which makes this a window of three blocks.
        order: which keys of a far block share a cell. "time": neighbours. "tree": those alike in
            content, by median splits across principal directions. "hilbert": the same, along the
            Hilbert curve through the plane of two principal directions. The order depends on keys
            alone, those of the same head in the same far block, and is a constant for derivatives:
            where keys change their order, the result jumps.
        opened: far keys that each query reads one by one beside the near ones, at most: those of
            largest logit that it finds. It goes down the cells that it reads, to the keys of the
            best of them, and looks up the keys that point where it points. What is left of a cell
            stands for the keys that are left. A choice is a constant for derivatives; where it
            changes, the result jumps.
        return_bound: True for a bound of the error beside the result. It holds for whatever far
            keys there are, and says little where cells are wide and queries long.
        tol: with a bound, what it should be at most: queries open other keys, up to ``opened``, all
            keys of the cells that their error may come from most, few at first and then twice as
            many, until it is. Where the bound is above ``tol`` all the same, more would have to be
            opened.
        key_padding_mask: (B, N) bool, True where a key is padding (as in
            `torch.nn.MultiheadAttention`; the opposite of ``attn_mask`` in torch's function). Keys
            and values there, even NaN, are ignored and get a gradient of 0; so do values of the
            query there that are not finite, which are read as 0. A query that is left without any
            key returns 0, not NaN. Tensors, numpy arrays and lists are taken alike.

    Returns:
        (B, heads, N, Dv) in the dtype of ``value``. Half precisions are computed in float32;
        autocast is switched off inside and changes nothing. With ``return_bound`` a pair: that,
        and (B, heads, N), float32 or float64 without a gradient, for each query no less than the
        Euclidean distance of its result to that of full attention, rounding aside.

    Raises:
        TypeError: for tensors that are not floating point or of different dtypes, a mask that is
            not bool, or a geometry that is not of whole numbers.
        ValueError: for shapes that do not fit, ``near`` and ``cells`` that do not, an unknown
            ``order``, keys to open or a bound without cells, or an argument that cannot be had.

    Complexity: K = 3 near + 4 cells L logits for each query, L = max(0, ceil(log2(N / near)) - 1),
    and K = 2 near + 2 cells L if causal: 2 N K (D + Dv) floating point operations, and 2.5 times as
    many backward, where the weights are computed again; memory is linear in N. An ``order`` by
    content adds some 2 N near (D + 10) to the forward pass, whatever L is. To find O keys to open
    takes some 4 N O (2 cells L / near + 1) D + 128 N D, to read them 2 N O (D + Dv), but all of
    that row by row: on a CPU some 20 times as long as without, for O = 32. A bound costs as much as
    the result, twice. Differentiable in
    reverse and forward mode, any number of times, under every `torch.func` transform; in a graph of
    `torch.compile` or `torch.export`, which serves any N, once and in reverse mode. Source:
    Greengard and Rokhlin (1987) for near and far; Zhu and Soricut, H-Transformer-1D (2021), for the
    same idea in attention; chapter ``self_attention/near_in_content``. Its specification is
    `fractal_lib.reference.self_attention`.

    >>> import torch
    >>> q, k, v = torch.randn(3, 2, 4, 1000, 16).unbind()
    >>> fractal_self_attention(q, k, v, is_causal=True).shape
    torch.Size([2, 4, 1000, 16])
    >>> first = [x[:, :, :128] for x in (q, k, v)]
    >>> exact = torch.nn.functional.scaled_dot_product_attention(*first)
    >>> torch.allclose(fractal_self_attention(*first), exact, atol=1e-5)
    True
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> out, bound = fractal_self_attention(q, k, v, order="tree", opened=8, return_bound=True)
    >>> bool(((out - exact).norm(dim=-1) <= bound).all())
    True
    """
    refuse(attn_mask, dropout_p)
    (near, cells), order = check_geometry(near, cells), check_order(order)
    opened = check_opened(opened, cells)
    if return_bound and not cells:
        raise ValueError(f"return_bound needs cells, since a window has no bound; got {cells=}")
    tol = None if tol is None else check_tol(tol, opened, return_bound)
    check_tensors(query, key, value, enable_gqa)
    padding = None
    if key_padding_mask is not None:
        padding = as_mask(key_padding_mask, "key_padding_mask", query.device)
        expected = (query.shape[0], query.shape[2])
        if padding.shape != expected:
            raise ValueError(
                f"key_padding_mask must have shape {expected}, got {tuple(padding.shape)}"
            )
        places = padding[:, None, :, None]
        key, value = (x.masked_fill(places, 0) for x in (key, value))
        query = clean(query, places)
    tree = order_of(key, padding, near, cells, order)
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
        tree = None if tree is None else tree.repeat_interleave(repeats, 1)
    if scale is not None:
        scale = float(scale)
    settings = Settings(near, cells, is_causal, scale)
    if tol is None:
        chosen = choice_of(query, key, padding, tree, settings, opened)
    else:
        chosen = choice_within(query, key, value, padding, tree, settings, opened, tol)
    arguments = (query, key, value, padding, tree, chosen, settings)
    out = self_attention(*arguments)
    return (out, bound_of(*arguments, out)) if return_bound else out


def clean(x: Tensor, places: Tensor) -> Tensor:
    """x, with 0 for what is not finite in the places: NaN times a gradient of 0 would be NaN."""
    return x.masked_fill(places & ~x.isfinite(), 0)


def check_geometry(near: int, cells: int) -> tuple[int, int]:
    """Both as ints, if they are the geometry of blocks and cells."""
    near, cells = as_int(near, "near"), as_int(cells, "cells")
    if near < 1 or cells < 0 or (cells and near % cells):
        raise ValueError(
            f"near must be at least 1 and a multiple of cells, or cells 0; got {near=}, {cells=}"
        )
    return near, cells


def check_order(order: str) -> str:
    """The order, if it is the name of one."""
    names = ("time", *ORDERS)
    if order not in names:
        raise ValueError(f"order must be one of {', '.join(names)}, got {order!r}")
    return order


def check_opened(opened: int, cells: int) -> int:
    """The number of keys to open, if there may be cells that hold them."""
    opened = as_int(opened, "opened")
    if opened < 0 or (opened and not cells):
        raise ValueError(
            f"opened must be at least 0, and 0 without cells to open; got {opened=}, {cells=}"
        )
    return opened


def check_tol(tol: float, opened: int, return_bound: bool) -> float:
    """The tolerance, if there is a bound to meet it and keys may be opened for it."""
    tol = as_positive(tol, "tol")
    if not (return_bound and opened):
        raise ValueError(
            "tol needs return_bound=True, which says where it is met, and opened >= 1, the keys "
            f"that a query may open for it; got {return_bound=}, {opened=}"
        )
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        raise ValueError(
            "tol cannot be had in torch.compile or under a transform of torch.func, since what is "
            f"done depends on bounds; got {tol=}"
        )
    return tol


def refuse(attn_mask: Any, dropout_p: float) -> None:
    """Raise ValueError for a mask of all pairs, or a dropout."""
    if attn_mask is not None:
        shape = getattr(attn_mask, "shape", None)
        got = repr(attn_mask) if shape is None else f"a mask of shape {tuple(shape)}"
        raise ValueError(
            "attn_mask must be None, since a mask of all pairs is quadratic by itself (use "
            f"is_causal=True, key_padding_mask=, near= or cells=), got {got}"
        )
    if dropout_p != 0:
        raise ValueError(
            "dropout_p must be 0, since a cell's weight is that of several keys (use dropout on "
            f"the output), got {dropout_p}"
        )


def check_tensors(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """Raise TypeError or ValueError unless these are queries, keys and values of one attention."""
    named = (("query", query), ("key", key), ("value", value))
    for name, x in named:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype != query.dtype:
            raise TypeError(
                "query, key and value must be floating point tensors of one dtype, got "
                f"{x.dtype if isinstance(x, Tensor) else type(x).__name__} for {name}"
            )
        if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
            raise ValueError(
                "query, key and value must have shape (B, heads, N, D) with N >= 1 and D >= 1, got "
                f"{tuple(x.shape)} for {name}"
            )
    for name, x in named[1:]:
        if x.shape[0] != query.shape[0] or x.shape[2] != query.shape[2]:
            raise ValueError(
                f"{name} must have the batch and the length of the query, {tuple(query.shape)}, "
                f"got {tuple(x.shape)}: this is self-attention, and position i of one is position "
                "i of the other"
            )
        if not enable_gqa and x.shape[1] != query.shape[1]:
            raise ValueError(
                f"{name} must have the {query.shape[1]} heads of the query, got {x.shape[1]} "
                "(enable_gqa=True takes a divisor)"
            )
    heads = key.shape[1]
    if value.shape[1] != heads or heads != query.shape[1] and (heads < 1 or query.shape[1] % heads):
        raise ValueError(
            f"key and value must have one number of heads that divides the query's "
            f"{query.shape[1]}, got {heads} and {value.shape[1]}"
        )
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"query and key must be of one D, got {query.shape[3]} and {key.shape[3]}")
