"""What users bring as observations, as tables of one shape: the doors of `Observations`."""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_float, as_mask, require

__all__ = ["any_channel", "in_order", "mask_of", "padded", "ragged", "shares"]


def ragged(values: Any) -> bool:
    """Whether it is a list of series of different length, and not one array in lists."""
    if not isinstance(values, list | tuple) or not all(hasattr(part, "shape") for part in values):
        return False
    return len({tuple(part.shape) for part in values}) > 1


def padded(values: Any, times: Any, observed: Any) -> tuple[Tensor, Any, Tensor]:
    """Lists of series as tables of one length; what pads them is not observed."""
    series = [as_float(part, "values") for part in values]
    shapes = [tuple(part.shape) for part in series]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ValueError(f"expected a list of series (N, X) of one X, got {shapes}")

    def pad(parts: list[Tensor], name: str) -> Tensor:
        lengths = [len(part) for part in parts]
        if lengths != [shape[0] for shape in shapes]:
            raise ValueError(
                f"expected {name} of as many rows as the values, {[s[0] for s in shapes]}, got "
                f"{lengths}"
            )
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    if times is not None:
        times = [as_float(part, "times") for part in _list_of(times, len(series), "times")]
        times = pad(times, "times")
    else:
        raise ValueError("series of different length need times: an even grid is the same for all")
    observed = (
        [torch.ones(shape[0], dtype=torch.bool) for shape in shapes]
        if observed is None
        else [as_mask(part) for part in _list_of(observed, len(series), "observed")]
    )
    return pad(series, "values"), times, pad(observed, "observed")


def _list_of(parts: Any, size: int, name: str) -> list:
    if not isinstance(parts, list | tuple) or len(parts) != size:
        got = f"{len(parts)} of them" if hasattr(parts, "__len__") else type(parts).__name__
        raise ValueError(f"expected {name} as a list of {size}, like the values, got {got}")
    return list(parts)


def mask_of(observed: Any, values: Tensor) -> Tensor | None:
    """(S, N) or (S, N, X) bool; rows where the channels agree."""
    if observed is None:
        return None
    observed = as_mask(observed, device=values.device)
    if observed.shape not in (values.shape, values.shape[:2], values.shape[1:2]):
        raise ValueError(
            f"observed must be bool (S, N), (N,) or (S, N, X) for values {tuple(values.shape)}, "
            f"got {tuple(observed.shape)}"
        )
    if observed.dim() == 3 and bool((observed.all(-1) == observed.any(-1)).all()):
        observed = observed[..., 0]
    return observed if observed.dim() == 3 else observed.expand(values.shape[:2])


def any_channel(observed: Tensor | None) -> Tensor | None:
    """(S, N) bool, or None for all: rows of which anything was observed."""
    return observed.any(-1) if observed is not None and observed.dim() == 3 else observed


def shares(times: Any, rows: Tensor | None, values: Tensor, duration: float) -> Tensor:
    """Times as shares of the duration, (S, N) float64; those of missing rows are 1."""
    times = as_float(times, "times").to(values.device)
    if times.shape not in (values.shape[:2], values.shape[1:2]):
        raise ValueError(
            f"expected times (S, N) or (N,) for values {tuple(values.shape)}, got "
            f"{tuple(times.shape)}"
        )
    t = times.double().expand(values.shape[:2]) / duration
    t = t if rows is None else torch.where(rows, t, 1)
    rounding = 2.0**-23  # of a float32
    require(
        lambda: ((t >= 0) & (t <= 1 + rounding)).all(),
        "expected times from 0 to the duration, got {0[0]} to {0[1]} of {0[2]}",
        lambda: (t.min().item() * duration, t.max().item() * duration, duration),
    )
    return t.clamp(max=1)


def in_order(values: Tensor, observed: Tensor | None, rows: Tensor | None, t: Tensor):
    """Everything in order of time, missing rows last."""
    late = t if rows is None else torch.where(rows, t, 2)
    order = late.argsort(dim=1, stable=True)
    if rows is not None:  # columns that are missing everywhere are dropped
        order = order[:, : int(rows.sum(1).max())]
        rows = rows.gather(1, order)
    channels = order.unsqueeze(-1).expand(-1, -1, values.shape[2])
    if observed is not None:
        observed = observed.gather(1, channels if observed.dim() == 3 else order)
        if bool(observed.all()):
            observed = rows = None
    return values.gather(1, channels), observed, rows, t.gather(1, order)
