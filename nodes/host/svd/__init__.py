"""StreamingSVD on the host: networks, CAM, chunk sampler."""
