"""LVDM as the host's MODEL and VAE, and in the chunk loop."""
