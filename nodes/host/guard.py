"""What every node of the pack does around its work, so that no node has to think of it."""

from __future__ import annotations

import functools
import traceback
from typing import Any

from ...streaming_core.errors import SettingsError
from .compat import io

Node = type[io.ComfyNode]


def guarded(node: Node) -> Node:
    """`node`, refusing inputs that it does not have, and letting go of everything it held when it fails.

    A page never sends other inputs, but prompts that a program made or an older version saved do, and the host hands
    every link on.
    """
    work = node.execute.__func__

    @functools.wraps(work)
    def execute(cls: Node, *args: Any, **inputs: Any) -> Any:
        check_inputs(cls, inputs)
        try:
            return work(cls, *args, **inputs)
        except BaseException as error:
            release(error)
            raise

    return type(node.__name__, (node,), {"execute": classmethod(execute), "__module__": node.__module__})


def check_inputs(node: Node, inputs: dict[str, Any]) -> None:
    """Raise `SettingsError` for inputs that are not in the node's schema."""
    schema = node.SCHEMA or node.GET_SCHEMA()
    known = [socket.id for socket in schema.inputs]
    unknown = sorted(set(inputs) - set(known))
    if unknown:
        raise SettingsError(
            f"{schema.display_name} has no input {' and no input '.join(map(repr, unknown))}; remove it from the "
            f"prompt, or name the one that is meant: {', '.join(known)}"
        )


def release(error: BaseException) -> None:
    """Empty the frames that `error` came through, except those that still run; what is shown of them stays.

    The host keeps an error until Python looks for circles of references, and with it all that these frames hold:
    activations, and clones of models. Clones that Python then drops all at once leave an entry in the host's list of
    loaded models that nothing removes, and every later load searches memory for it.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
