"""I2VGen-XL: the image-to-video network of the enhancer (reference: enhancer, section 9).

Origin: Zhang et al., "I2VGen-XL", arXiv:2311.04145, under the keys of the public conversion in the diffusers layout.
Written from reference: enhancer; no code was copied.
"""
