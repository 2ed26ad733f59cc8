"""Noise schedules, one module per family."""
