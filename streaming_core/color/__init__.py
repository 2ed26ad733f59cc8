"""Color: Lab, drift against the first chunk, correction."""
