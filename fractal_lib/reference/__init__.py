"""The specification of every fast algorithm, written to be read: plain loops, in float64."""

from fractal_lib.reference.attention import (
    bspline_weight,
    dense_weights,
    dragon_weights,
    hilbert_weights,
    julia_distances,
    julia_weights,
    ladder_weights,
    multilevel_weights,
    pool,
)
from fractal_lib.reference.keys_read import self_attention_groups, self_attention_reads
from fractal_lib.reference.self_attention import self_attention, self_attention_bound

__all__ = [
    "bspline_weight",
    "dense_weights",
    "dragon_weights",
    "hilbert_weights",
    "julia_distances",
    "julia_weights",
    "ladder_weights",
    "multilevel_weights",
    "pool",
    "self_attention",
    "self_attention_bound",
    "self_attention_groups",
    "self_attention_reads",
]
