"""The algorithms of StreamingT2V: plain torch, no ComfyUI.

Nothing in this package imports the host; `nodes/host` adapts it (see docs/design.md, section 2).
"""
