"""StreamingModelscope on the host: networks, CAM, APM, chunk sampler."""
