"""INTERP_MODEL on every host."""
