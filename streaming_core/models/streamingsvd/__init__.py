"""StreamingSVD (StreamingT2V family, image to video): the CAM network and its detection.

Origin: Henschel et al., "StreamingT2V: Consistent, Dynamic, and Extendable Long Video Generation from Text"
(arXiv:2403.14773) and the released StreamingSVD weights. Written from reference: streamingsvd; no code was copied.
The video UNet itself is the host's SVD model.
"""
