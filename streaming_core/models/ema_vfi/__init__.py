"""EMA-VFI: frame interpolation by motion and appearance attention between two frames.

Origin: Zhang et al., "Extracting Motion and Appearance via Inter-Frame Attention for Efficient Video Frame
Interpolation" (arXiv:2303.00440) and its released weights. Written from reference: ema-vfi; no code was copied.
"""
