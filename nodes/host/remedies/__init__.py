"""Remedies against drift in the sampling of a chunk: the steps they act in, and the model call without the tail."""
