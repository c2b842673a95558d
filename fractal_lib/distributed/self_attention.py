"""Self-attention over a sequence whose positions are shared out among processes: context parallel
(chapter ``scale/beyond_one_machine``).
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fractal_lib.attention.base import no_autocast
from fractal_lib.checks import as_mask
from fractal_lib.distributed.exchange import Shards, cell_sums, complete_cells, fetch_cells
from fractal_lib.self_attention.functional import check_geometry, check_tensors, clean, refuse
from fractal_lib.self_attention.layout import CHUNK, FILL, Layout

__all__ = ["fractal_self_attention"]

# Beyond the nearest blocks, the units of a scale that a block reads, counted from the unit that
# holds it, for an even and an odd one of these: what the scale below has not read of the parent's
# neighbours. The causal ones are those before it.
FAR = {False: ((-2, 2, 3), (-3, -2, 2)), True: ((-2, None), (-3, -2))}
REACH = 3


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
    tol: None = None,
    key_padding_mask: Any = None,
    group: Any = None,
) -> Tensor:
    """`fractal_lib.fractal_self_attention` over a sequence of which each rank holds a stretch.

    The stretches follow each other in the order of the ranks, and may differ in length. A rank
    receives the keys and values of at most two blocks of ``near`` on either side, and of each scale
    the cells that its queries read: not the other ranks' keys. The result is that of one process,
    up to rounding, and so are the gradients. All ranks must call it, and go backward, together.

    Args:
        query: (B, heads, N, D), floating point: this rank's positions, N >= 1.
        key: (B, heads, N, D) of the same dtype.
        value: (B, heads, N, Dv) of the same dtype.
        attn_mask, dropout_p: as there: must be None and 0.
        is_causal: True if a position reads itself and those before it alone, on all ranks.
        scale: factor of the logits; default 1 / sqrt(D).
        enable_gqa: True if ``key`` and ``value`` may have fewer heads than ``query``; they travel
            so.
        near: positions in a block.
        cells: cells that stand for one block at the least distance; 0 leaves the far field out.
        order: must be "time".
        opened: must be 0.
        return_bound, tol: must be False and None.
        key_padding_mask: (B, N) bool, True where a key of this rank is padding; on all ranks or on
            none.
        group: of `torch.distributed`; default all ranks, or this process alone.

    Returns:
        (B, heads, N, Dv) in the dtype of ``value``: the results at this rank's positions.

    Raises:
        TypeError, ValueError: as there; for what cannot be had; on every rank, if ranks differ in
            sizes, types or settings.

    Complexity: that of one process over p in time and memory; a rank sends and receives
    O(near + cells log(n / near)) rows a head, in two all-to-alls forward and two backward, each of
    D + Dv numbers. The owner of a cell over many ranks receives from each of them. Logits are
    computed again in the backward pass, chunk by chunk. Differentiable once, in reverse mode.
    Source: as `fractal_lib.fractal_self_attention`; chapter ``scale/beyond_one_machine``.

    >>> q, k, v = torch.randn(3, 2, 4, 1000, 16).unbind()
    >>> fractal_self_attention(q, k, v, is_causal=True).shape
    torch.Size([2, 4, 1000, 16])
    """
    refuse(attn_mask, dropout_p)
    near, cells = check_geometry(near, cells)
    if order != "time":
        raise ValueError(
            f"across processes order must be 'time', got {order!r}: an order by content needs the "
            "keys of a whole far block in one place"
        )
    if opened or return_bound or tol is not None:
        raise ValueError(
            "across processes opened must be 0, return_bound False and tol None: a key that is "
            "opened, or the radius of a cell, would have to be fetched for each query"
        )
    check_tensors(query, key, value, enable_gqa)
    padding = None
    if key_padding_mask is not None:
        padding = as_mask(key_padding_mask, "key_padding_mask", query.device)
        if padding.shape != (query.shape[0], query.shape[2]):
            raise ValueError(
                f"key_padding_mask must have shape {(query.shape[0], query.shape[2])}, got "
                f"{tuple(padding.shape)}"
            )
        places = padding[:, None, :, None]
        key, value = (x.masked_fill(places, 0) for x in (key, value))
        query = clean(query, places)
    batch, heads, n, width = query.shape
    sizes = (batch, heads, key.shape[1], width, value.shape[3], query.element_size())
    settings = (near, cells, int(is_causal), int(padding is not None))
    shards = Shards.of(n, group, sizes + settings, query.device)
    with no_autocast(query.device):
        windows = _windows(key, value, padding, _Geometry.of(shards, near, cells, is_causal))
        factor = width**-0.5 if scale is None else float(scale)
        out = _attend(query * factor, windows, heads // key.shape[1])
    return out.to(value.dtype)


class _Geometry(NamedTuple):
    """What one rank reads. Units of scale 0 are blocks of keys; of scale l >= 1 ``cells`` cells
    that stand for ``near * 2**(l - 1)`` keys.
    """

    shards: Shards
    near: int
    cells: int
    causal: bool
    scales: int

    @classmethod
    def of(cls, shards: Shards, near: int, cells: int, causal: bool) -> "_Geometry":
        device = torch.device("cpu")
        scales = Layout.of(shards.n, near, cells, causal, 1, device).scales
        return cls(shards, near, cells, causal, scales)

    @property
    def widths(self) -> list[int]:
        """Keys in a cell of each scale."""
        return [1] + [self.near // self.cells << l for l in range(self.scales - 1)]

    def size(self, scale: int) -> int:
        """Cells in a unit."""
        return self.cells if scale else self.near

    def units(self, scale: int, rank: int) -> tuple[int, int]:
        """The units that a rank's queries read: the first, and the first after. Some may lie
        outside the sequence.
        """
        a, b = self.shards.bounds[rank : rank + 2]
        width, reach = self.widths[scale] * self.size(scale), REACH if scale else 1
        return a // width - reach, (b - 1) // width + (1 if self.causal else 1 + reach)

    def needs(self, scale: int) -> list[tuple[int, int]]:
        """For each rank the cells within the sequence that its queries read."""
        size, last = self.size(scale), -(-self.shards.n // self.widths[scale])
        found = (self.units(scale, rank) for rank in range(self.shards.size))
        return [(max(first * size, 0), min(end * size, last)) for first, end in found]


class _Windows(NamedTuple):
    """Keys and values that a rank's queries read, scale by scale.

    Attributes:
        geometry: a `_Geometry`.
        width: D, of the keys.
        rows: for each scale (G, units, cells, D + Dv), means.
        counts: for each scale (G or 1, units, cells), keys behind each.
    """

    geometry: _Geometry
    width: int
    rows: list[Tensor]
    counts: list[Tensor]


def _windows(key: Tensor, value: Tensor, padding: Tensor | None, geometry: _Geometry) -> _Windows:
    shards, widths = geometry.shards, geometry.widths
    needs = [geometry.needs(scale) for scale in range(geometry.scales)]
    mine = [some[shards.rank] for some in needs]

    def fetched(rows: Tensor) -> list[Tensor]:
        owned = complete_cells(cell_sums(rows, shards.stretch[0], widths), widths, shards)
        return fetch_cells(owned, widths, needs, shards)

    if padding is None:
        counts = [
            (shards.n - torch.arange(*span, device=key.device) * width).clamp(max=width)[None]
            for span, width in zip(mine, widths, strict=True)
        ]
    else:
        valid = (~padding).double()[..., None]
        heads = key.shape[1]
        counts = [x.squeeze(-1).repeat_interleave(heads, 0) for x in fetched(valid)]
    dtype = torch.promote_types(key.dtype, torch.float32)
    sums = fetched(torch.cat([key, value], -1).flatten(0, 1).to(dtype))
    tables, whole = [], []
    for scale, (total, count) in enumerate(zip(sums, counts, strict=True)):
        mean = total / count.clamp(min=1).unsqueeze(-1).to(dtype)
        (begin, _), (first, end) = mine[scale], geometry.units(scale, shards.rank)
        size = geometry.size(scale)
        before = begin - first * size
        after = (end - first) * size - before - count.shape[1]
        for parts, x in ((tables, mean), (whole, count.to(dtype).unsqueeze(-1))):
            padded = torch.nn.functional.pad(x, (0, 0, before, after))
            parts.append(padded.unflatten(1, (end - first, size)))
    return _Windows(geometry, key.shape[3], tables, [x.squeeze(-1) for x in whole])


def _attend(query: Tensor, windows: _Windows, repeats: int) -> Tensor:
    """Softmax attention (B, heads, N, Dv) of scaled queries to what their blocks read; a key head
    serves ``repeats`` heads.
    """
    geometry = windows.geometry
    (a, b), near = geometry.shards.stretch, geometry.near
    first, end = a // near, (b - 1) // near + 1  # blocks with queries of this rank
    rows = query.flatten(0, 1).to(windows.rows[0].dtype)
    rows = torch.nn.functional.pad(rows, (0, 0, a - first * near, end * near - b))
    rows = rows.unflatten(1, (end - first, near))  # (G, blocks, near, D)
    columns = near * 3 + geometry.cells * 3 * (geometry.scales - 1)
    budget = CHUNK.get(query.device.type, CHUNK["other"])
    step = max(1, budget // (rows.shape[0] * near * columns))
    parts = []
    for block in range(first, end, step):
        now = torch.arange(block, min(block + step, end), device=query.device)
        some = rows[:, now - first]
        tables = [*windows.rows, *windows.counts]
        call = partial(_block, block=now, windows=windows, repeats=repeats)
        parts.append(_Recomputed.apply(call, some, *tables))
    out = torch.cat(parts, 1).flatten(1, 2)[:, a - first * near :][:, : b - a]
    return out.unflatten(0, query.shape[:2])


class _Recomputed(torch.autograd.Function):
    """A function of tensors that keeps its arguments alone, and is computed again in the backward
    pass. (`torch.utils.checkpoint` imports the compiler for that, seconds at the first call.)
    """

    @staticmethod
    def forward(ctx: Any, function: Any, *tensors: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs = [
                x.detach().requires_grad_(need)
                for x, need in zip(ctx.saved_tensors, needs, strict=True)
            ]
            wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
            found = iter(torch.autograd.grad(ctx.function(*inputs), wanted, grads))
        return None, *(next(found) if need else None for need in needs)


def _block(
    query: Tensor, *tables: Tensor, block: Tensor, windows: _Windows, repeats: int
) -> Tensor:
    """The result for some blocks of queries (G, P, near, D): (G, P, near, Dv)."""
    geometry = windows.geometry
    scales, near, causal = geometry.scales, geometry.near, geometry.causal
    rows, bias = [], []
    for scale in range(scales):
        first, _ = geometry.units(scale, geometry.shards.rank)
        unit = block >> max(scale - 1, 0)
        if scale:
            even, odd = (
                torch.tensor([0 if s is None else s for s in some], device=block.device)
                for some in FAR[causal]
            )
            shift = torch.where(unit[:, None] % 2 == 0, even, odd)  # (P, units)
        else:
            shift = torch.tensor((-1, 0) if causal else (-1, 0, 1), device=block.device)
        place = unit[:, None] + shift - first  # (P, units)
        count = tables[scales + scale][:, place]  # (G or 1, P, units, cells)
        if scale:  # a causal block of even number has one unit to read, not two
            count = count.masked_fill((shift == 0)[..., None], 0)
        rows.append(tables[scale][:, place].flatten(2, 3))
        bias.append(torch.where(count > 0, count.log(), FILL).flatten(2, 3))
    read = torch.cat(rows, 2).repeat_interleave(repeats, 0)  # (G, P, columns, D + Dv)
    keys, values = read[..., : windows.width], read[..., windows.width :]
    added = torch.cat(bias, 2).unsqueeze(2)  # (G or 1, P, 1, columns)
    if len(added) > 1:
        added = added.repeat_interleave(repeats, 0)
    logits = query @ keys.mT + added
    if causal:  # the block's own keys are columns near to 2 near
        later = torch.full((near, near), FILL, dtype=logits.dtype, device=logits.device).triu(1)
        later = torch.nn.functional.pad(later, (near, logits.shape[-1] - 2 * near))
        logits = logits + later
    out = logits.softmax(-1) @ values
    nothing = logits.amax(-1, keepdim=True) <= FILL / 2  # no key at all, or padding alone
    return out.masked_fill(nothing, 0)
