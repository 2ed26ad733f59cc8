"""I2VGen-XL: the image-to-video network of the enhancer (reference: enhancer, section 9).

Origin: Zhang et al., "I2VGen-XL", arXiv:2311.04145, in the layout of diffusers' public `I2VGenXLUNet`, which is the
network used here; only the memory options and the way it is called are ours.
"""
