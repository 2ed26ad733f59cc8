"""Window plans and randomized blending."""
