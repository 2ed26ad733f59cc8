"""StreamingModelscope (StreamingT2V family, text to video): 3-D UNet, CAM branch, appearance preservation, refinement.

Origin: Henschel et al., "StreamingT2V: Consistent, Dynamic, and Extendable Long Video Generation from Text"
(arXiv:2403.14773), the ModelScope text-to-video model it is built on (arXiv:2308.06571) and MS-Vid2Vid, its refiner.
Written from reference: streamingmodelscope; no code was copied.
"""
