"""Randomized blending as a context handler of the host."""
