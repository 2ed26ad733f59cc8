"""Numbers for long video: MAWE, scene cuts, color drift, seams, stagnation and CLIP scores, taken in one pass.

`measure.measure` takes them all from a frame stream in constant memory; `report` and `image` show them;
`python -m streaming_core.metrics VIDEO` does both from a file. Each measure has a module of its own with its rule.
"""
