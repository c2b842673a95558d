"""Fractal curves and sets: pure geometry on integers and arrays, with no notion of attention."""

__all__: list[str] = []  # its modules are imported by name
