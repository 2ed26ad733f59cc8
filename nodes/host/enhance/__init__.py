"""Enhancement and refinement of whole videos on the host."""
