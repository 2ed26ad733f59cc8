"""What a node shows on itself in the page."""

from __future__ import annotations

import html
import sys

from .compat import ui


def shown_text(text: str, node_id: str | None) -> ui.PreviewText:
    """Put a text onto the node itself, and return it as the node's ui value, which the history keeps."""
    # A running host has its server module loaded; loading it here would start half a server in any other program.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        # The page takes this for HTML.
        server.send_progress_text(html.escape(text, quote=False), node_id)
    return ui.PreviewText(text)
