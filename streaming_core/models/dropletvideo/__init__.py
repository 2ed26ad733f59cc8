"""DropletVideo-5B: from images, a text and a motion setting to video (reference: dropletvideo).

Origin: "DropletVideo", arXiv:2503.06053. It is CogVideoX (arXiv:2408.06072) in the form that fills in missing frames,
with a second embedding for the frame rate. Written from reference: dropletvideo and the papers; no code was copied.
"""
