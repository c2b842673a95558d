"""Attention over a context at a continuous time: a pattern says where to read, one reader reads."""
