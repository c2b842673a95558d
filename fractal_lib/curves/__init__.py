"""Fractal curves and sets: pure geometry on integers and arrays, with no notion of attention."""
