"""Frame interpolation to an exact length and rate."""
