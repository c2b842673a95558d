"""Time and error of every attention, side by side: ``python -m fractal_lib.benchmark --help``.

``import fractal_lib`` does not import this.
"""

from fractal_lib.benchmark.harness import benchmark_attention_methods
from fractal_lib.benchmark.heads import benchmark_heads

__all__ = ["benchmark_attention_methods", "benchmark_heads"]
