"""How far a result can be from full attention, from the radii of cells (chapter
``self_attention/opening``).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from fractal_lib.self_attention.blocks import chunk_of, logits_of
from fractal_lib.self_attention.cells import divided
from fractal_lib.self_attention.chunks import Chunk
from fractal_lib.self_attention.layout import FILL, Layout, in_blocks
from fractal_lib.self_attention.opening import Chosen

__all__ = ["error_bound", "radii", "terms"]


def radii(
    rows: Tensor, counts: list[Tensor], holders: list[Tensor | None], layout: Layout
) -> list[Tensor]:
    """For each scale the largest distance of a cell's rows to their mean, `in_blocks` with D = 1.

    Args:
        rows: (G, N, D), keys or values, in the dtype of the counts.
        counts: as in `fractal_lib.self_attention.cells.means`.
        holders: as in `Chosen`.
        layout: a `Layout`.

    Complexity: O(N D) for each scale.
    """
    groups, n, _ = rows.shape
    there = counts[0].repeat_interleave(groups // max(1, len(counts[0])), 0) > 0  # (G, N)
    found = [in_blocks(rows.new_zeros(groups, n, 1), 0, layout)]
    for scale in range(1, layout.scales):
        holder = holders[scale]
        if holder is None:
            holder = torch.arange(n, device=rows.device) * layout.size(scale) // layout.width(scale)
            holder = holder.expand(groups, n)
        sums = rows.new_zeros(groups, counts[scale].shape[1], rows.shape[2])
        each = holder.unsqueeze(2).expand_as(rows)
        # padding is 0 and counts for nothing
        mean = divided(sums.scatter_add(1, each, rows * there.unsqueeze(2)), counts[scale])
        distance = (rows - mean.gather(1, each)).norm(dim=2).masked_fill(~there, 0)
        most = sums[..., 0].scatter_reduce(1, holder, distance, "amax")
        found.append(in_blocks(most.unsqueeze(2), scale, layout))
    return found


def error_bound(found: Iterable[tuple[int, Tensor, Tensor]], n: int) -> Tensor:
    """For each of n queries, a bound of the distance between its result and that of full attention.

    A cell of radius r and value radius rho, of weight w and mean value v: its logits differ from
    that of its mean by at most R = |q| r. So its mass is between what it counts for (Jensen) and
    exp(delta) times that, delta = min(R, R^2 / 2) (Hoeffding); and its keys' weights within it are
    at most tanh(R / 2) from equal ones in total variation. Hence

        |out - exact| <= sum_c w_c (exp(delta) 2 rho tanh(R / 2) + (exp(delta) - 1) |v - out|)

    over all cells, with weights that sum to 1. What is left of a cell that was opened keeps its
    radii, but its mean may be anywhere within: delta = min(2 R, R^2 / 2), and v may be rho away.
    The bound is never more than the distance to the farthest value.

    Args:
        found: `terms`.

    Returns:
        (G, N), in the dtype of the terms. It is one of exact arithmetic: rounding is extra.

    Complexity: that of the terms. Source: chapter ``self_attention/opening``; Hoeffding (1963),
    lemma 1.
    """
    bounds = [torch.minimum(term.sum(-1), most) for _, term, most in found]
    return torch.cat(bounds, 1)[:, :n]


def terms(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    key_radii: list[Tensor],
    value_radii: list[Tensor],
    bias: Tensor,
    layout: Layout,
    out: Tensor,
    chosen: Chosen | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """What an `error_bound` is made of, chunk by chunk: the first query, the term of each key and
    cell (G, C, K), and the distance to the farthest value (G, C).

    Args:
        q, keys, values, bias, layout, chosen: as in `fractal_lib.self_attention.blocks.attend`.
        key_radii, value_radii: `radii`.
        out: (G, N, Dv), the result.

    Complexity: that of `fractal_lib.self_attention.blocks.attend` twice.
    """
    n = q.shape[1]
    q, out = (pad(x, (0, 0, 0, layout.length - n)) for x in (q, out.to(bias.dtype)))
    norms = [x.to(bias.dtype).square().sum(-1, keepdim=True) for x in values]
    columns = bias.shape[-1]
    for start in range(0, layout.length, layout.chunk):
        now = slice(start, start + layout.chunk)
        chunk = chunk_of(bias, layout, start, chosen)
        whole = Chunk(layout, start, bias.dtype)
        logit = logits_of(q[:, now], keys, bias, chunk)
        share = logit.log_softmax(-1)[..., :columns]  # (G, C, K)
        reach = whole.columns(key_radii) * q[:, now].norm(dim=-1, keepdim=True)
        spread, size = whole.columns(value_radii), whole.columns(norms)
        square = size + out[:, now].square().sum(-1, keepdim=True)
        slack = 8 * torch.finfo(bias.dtype).eps * square  # of the difference's rounding
        away = square - 2 * whole.dot(out[:, now], values)
        away = (away.clamp(min=0) + slack).sqrt()
        read, most = logit[..., :columns] > FILL / 2, reach
        if chunk.opened is not None:
            touched = chunk.opened.bias[..., :columns] != 0
            away, most = away + spread * touched, torch.where(touched, 2 * reach, reach)
            read = read | touched
        delta = torch.minimum(most, reach.square() / 2)
        term = _terms(share, delta, reach, spread, away)
        yield start, term, ((away + spread) * read).amax(-1)


def _terms(share: Tensor, delta: Tensor, reach: Tensor, spread: Tensor, away: Tensor) -> Tensor:
    """What each cell may add to the error, from the logarithm of its weight; infinite rather than
    not a number.
    """
    mass, weight = (share + delta).exp(), share.exp()
    more = torch.where(delta < 1, weight * delta.clamp(max=1).expm1(), mass - weight)
    within = 2 * spread * (reach / 2).tanh()
    return _product(mass, within) + _product(more, away)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a * b, 0)
