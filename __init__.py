"""ComfyUI-StreamingT2V: long videos from short video models. Registration only; the nodes are in `nodes/`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What the host calls to get the pack's nodes (V3)."""
    from .nodes import StreamingT2V

    return StreamingT2V()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
