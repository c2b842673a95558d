"""Time and error of every attention, side by side: ``python -m fractal_lib.benchmark --help``.

``import fractal_lib`` does not import this.
"""

from fractal_lib.benchmark.harness import benchmark_attention_methods

__all__ = ["benchmark_attention_methods"]
