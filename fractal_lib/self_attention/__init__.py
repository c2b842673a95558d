"""Self-attention in O(n log n): near keys one by one, far ones by cells."""

from fractal_lib.self_attention.functional import fractal_self_attention
from fractal_lib.self_attention.module import FractalSelfAttention

__all__ = ["FractalSelfAttention", "fractal_self_attention"]
