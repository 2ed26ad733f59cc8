"""Any of the host's own video models in the chunk loop."""
