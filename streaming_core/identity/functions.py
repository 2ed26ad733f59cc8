"""What a function does, without where it was installed: its name and its code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any


def last_part(module: str | None) -> str:
    """The last part of a module's name: other packs' module names begin with the folder they are installed in."""
    text = (module or "").replace("\\", "/")
    return text.rsplit("/", 1)[-1].rsplit(".", 1)[-1]


def qualified_name(value: Any) -> str:
    """Module, class and name of a function or class."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    module = last_part(getattr(value, "__module__", None))
    return f"{module}.{name}" if module and module != "builtins" else str(name)


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return f"code {code_digest(value)}"
    if isinstance(value, (frozenset, set)):
        # Sets of texts have another order in every process.
        return f"set {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"


def code_digest(code: CodeType) -> str:
    """What the code does: instructions, constants (also those of functions inside) and the names it uses.

    File names and line numbers do not count. Another version of Python compiles other instructions, so a digest holds
    for one version.
    """
    parts = [
        code.co_code.hex(),
        *(_constant(constant) for constant in code.co_consts),
        repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_kwonlyargcount)),
        str(code.co_flags),
    ]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def closure_values(function: Any) -> Mapping[str, Any]:
    """Variables that a function took along from where it was made, by name; empty cells are left out."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return {}
    values = {}
    for name, cell in zip(code.co_freevars, cells, strict=False):
        try:
            values[name] = cell.cell_contents
        except ValueError:
            continue
    return values


def own_code(kind: type) -> str | None:
    """Digest of what objects of a class do when they are called, or None where that is not Python code."""
    for name in ("forward", "__call__"):
        for each in kind.__mro__:
            method = vars(each).get(name)
            if method is not None and each.__module__.split(".")[0] not in ("torch", "builtins"):
                code = getattr(method, "__code__", None)
                return code_digest(code) if isinstance(code, CodeType) else None
    return None
