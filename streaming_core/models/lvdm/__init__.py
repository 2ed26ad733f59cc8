"""LVDM: long videos from short latents, unconditional or from a text (reference: lvdm).

Origin: "Latent Video Diffusion Models for High-Fidelity Long Video Generation", arXiv:2211.13221. Written from
reference: lvdm and the paper; no code was copied.
"""
