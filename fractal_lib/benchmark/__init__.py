"""All that makes a recorded figure: ``python -m fractal_lib.benchmark list|run|speed|compare``.

`CASES` has every case by name; a recorded run is read by `fractal_lib.benchmark.record.load`. What
a case needs beyond torch and numpy it imports when it runs. ``import fractal_lib`` does not import
this.

>>> "context-attention" in CASES
True
"""

# ruff: noqa: I001  (in the order in which the cases are listed)
from fractal_lib.benchmark.registry import CASES, Case, case
from fractal_lib.benchmark.harness import benchmark_attention_methods
from fractal_lib.benchmark.heads import benchmark_heads
from fractal_lib.benchmark.self_attention import benchmark_self_attention
from fractal_lib.benchmark.masks import benchmark_masks
from fractal_lib.benchmark import (  # noqa: F401  (each enters its case)
    hilbert_speed,
    train,
    posterior_cost,
    pyramid_cost,
    ladder_ablation,
    co2_rivals,
    long_rivals,
    long_series,
    glucose_rivals,
    mocap_rivals,
    mocap_task,
    forecast_rivals,
    trained_keys,
    key_kinds,
    needle,
    mqar,
    burgers,
    fill_holes,
    choices,
)

__all__ = [
    "CASES",
    "Case",
    "benchmark_attention_methods",
    "benchmark_heads",
    "benchmark_masks",
    "benchmark_self_attention",
    "case",
]
