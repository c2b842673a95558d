"""Self-attention in O(N log N): near keys one by one, far ones by cells."""

from fractal_lib.self_attention import custom_op  # noqa: F401  registers the operator
from fractal_lib.self_attention.functional import fractal_self_attention
from fractal_lib.self_attention.module import FractalSelfAttention

__all__ = ["FractalSelfAttention", "fractal_self_attention"]
