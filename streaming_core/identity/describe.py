"""A readable description of any Python value by content: the same in every process, another for another content.

Form of a description (`Plain`, so JSON can hold it):

* numbers, texts, None: themselves; lists and tuples: lists; dictionaries: by the text of their keys;
* functions: `{"function": name, "code": digest, "values": closure, "defaults": ..., "self": ...}`;
* objects: `{"class": name, "values": attributes}`; networks also have `"weights"`;
* tensors: `{"tensor": shape, "dtype": ..., "digest" or "numbers": ...}`;
* what refers to itself: `{"again": class}`; a long part that stands there a second time: `{"same as": path}`.

What cannot be looked into (open files, generators, objects of compiled libraries) is `{"class": name, "undescribed":
true}`. It counts by its type alone, and a run continues although its content may have changed: the alternative, never
to continue, would cost every user of such a patch each resume, for a content that hardly ever is a setting.
`undescribed()` lists these places, so that the log can name them.

Memory addresses, random ids, devices (weights move between them) and the folders of paths never count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .functions import closure_values, code_digest, own_code, qualified_name
from .leaves import NotMine, key_text, label_of_type, leaf
from .modules import MACHINERY, is_compiled, is_plain, structure_digest, weights_of
from .plain import Plain, to_json
from .share import share
from .slots import Absent, Owners, Path, RunTimeState, Slot
from .tensors import WeightDigests, describe_tensor

log = logging.getLogger(__name__)

_DEEPEST = 80
_MOST_PARTS = 100_000
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
WEIGHTS = WeightDigests()
"""Digests of weights for the whole process, so that every network is hashed once."""

_DICTS = (dict, OrderedDict, defaultdict)


Rule = Callable[["Describer", Any], "Plain | NotMine"]


def _ignore_nothing(owner: object, name: str) -> bool:
    return False


class Describer:
    """Describes values that belong together, each object once.

    `rules` come before what is written here, for objects only. `ignore(object, attribute)` leaves attributes out.
    `state` knows what changed while sampling and gives the values from before.
    """

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        ignore: Callable[[object, str], bool] = _ignore_nothing,
        state: RunTimeState | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self.ignore = ignore
        self.state = state
        self.owners = Owners()
        self._owner: object | None = None
        self._path: Path = ()
        self._open: dict[int, int] = {}
        self._done: dict[int, tuple[object, Plain]] = {}
        self._lowest = _DEEPEST + 1
        self._parts = 0
        self._depth = 0

    def part(self, name: str, value: object) -> Plain | Absent:
        """Describe `value` as the part `name` of what is being described, or as it was before it became state."""
        owner, outer = self._owner, self._path
        path = (*outer, name)
        if owner is not None and self.state is not None:
            known, remembered = self.state.recall(owner, path)
            if known:
                return remembered
        self._path = path
        try:
            plain = self.value(value)
        finally:
            self._path = outer
        if owner is not None:
            with contextlib.suppress(Exception):  # a foreign object may raise anything when it is looked at
                self.owners.record(owner, path, Slot.of(value, plain, is_own(value)))
        return plain

    def parts(self, values: Mapping[str, object], empty: bool = True) -> dict[str, Plain]:
        """Describe several parts; `empty=False` leaves out None and what holds nothing."""
        found: dict[str, Plain] = {}
        for name in sorted(values):
            plain = self.part(name, values[name])
            if not isinstance(plain, Absent) and (empty or plain not in (None, [], {})):
                found[name] = plain
        return found

    def parts_of(self, owner: object, values: Mapping[str, object], empty: bool = True) -> dict[str, Plain]:
        """Describe several parts that belong to another object, by which they are remembered."""
        place = self._owner, self._path
        self._owner, self._path = owner, ()
        try:
            return self.parts(values, empty)
        finally:
            self._owner, self._path = place

    def value(self, value: Any) -> Plain:
        """Describe a value where a part of it is; never raises, whatever foreign objects do when looked at."""
        self._parts += 1
        if value is None or type(value) is bool or type(value) is int:
            return value
        if self._depth >= _DEEPEST or self._parts > _MOST_PARTS:
            return _opaque(value)
        self._depth += 1
        try:
            return self._described(value)
        except Exception:  # a foreign object may raise anything when it is looked at
            log.debug("cannot describe %s", type(value), exc_info=True)
            return _opaque(value)
        finally:
            self._depth -= 1

    def _described(self, value: Any) -> Plain:
        if isinstance(value, Tensor):
            return describe_tensor(value)
        found = leaf(value)
        if not isinstance(found, NotMine):
            return found
        if isinstance(value, _DICTS) or isinstance(value, types.MappingProxyType):
            return self._guarded(value, self._dictionary, False)
        if isinstance(value, (list, tuple, deque)):
            return self._guarded(value, self._items, False)
        if isinstance(value, (set, frozenset)):
            return {"set": sorted((self.value(item) for item in value), key=to_json)}
        if isinstance(value, weakref.ref):
            return self.value(value())
        if isinstance(value, types.MethodType):
            return self._method(value)
        return self._guarded(value, self._object, True)

    def _guarded(self, value: Any, describe: Callable[[Any], Plain], own: bool) -> Plain:
        """Describe what may hold itself; an object (`own`) that was described before is not walked again."""
        key = id(value)
        if key in self._open:
            self._lowest = min(self._lowest, self._open[key])
            return {"again": label_of_type(value)}
        if own and key in self._done:
            return self._done[key][1]
        depth, outer = len(self._open), self._lowest
        place = self._owner, self._path
        self._open[key] = depth
        self._lowest = _DEEPEST * 8
        try:
            if own and self.owners.can_own(value):
                self._owner, self._path = value, ()
            plain = describe(value)
        finally:
            lowest = self._lowest
            self._owner, self._path = place
            del self._open[key]
            self._lowest = min(outer, lowest)
        if own:
            # Inside a circle the description depends on where the circle was entered: it stands there once.
            whole: Plain = plain if lowest >= depth else {"again": label_of_type(value)}
            self._done[key] = (value, whole)
        return plain

    def _dictionary(self, value: Mapping[Any, Any]) -> Plain:
        named: dict[str, Any] = {}
        for key, item in list(value.items()):
            text, number = key_text(key), 2
            while text in named:
                text, number = f"{key_text(key)} {number}", number + 1
            named[text] = item
        return dict(self.parts(named))

    def _items(self, value: Any) -> Plain:
        if hasattr(value, "_fields"):
            return {"class": type(value).__name__, "values": self.parts(dict(zip(value._fields, value, strict=False)))}
        found = [self.part(str(index), item) for index, item in enumerate(value)]
        return [item for item in found if not isinstance(item, Absent)]

    def _method(self, value: types.MethodType) -> Plain:
        function = self.value(value.__func__)
        owner = self.value(value.__self__)
        return {**function, "self": owner} if isinstance(function, dict) else function

    def _object(self, value: Any) -> Plain:
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.BuiltinMethodType)):
            return self._function(value)
        if isinstance(value, functools.partial):
            parts = {"arguments": list(value.args), "values": dict(value.keywords), "function": value.func}
            return {"partial": True, **self.parts(parts)}
        if isinstance(value, functools._lru_cache_wrapper):
            return self.value(value.__wrapped__)
        for rule in self.rules:
            try:
                plain = rule(self, value)
            except Exception:
                # In full rather than by type alone: chunks are made again at worst, and never wrongly reused.
                log.warning("%s is not described the usual way", label_of_type(value), exc_info=True)
                continue
            if not isinstance(plain, NotMine):
                return plain
        if isinstance(value, nn.Module):
            return self._module(value)
        return self.plain_object(value)

    def _function(self, value: Any) -> Plain:
        about: dict[str, Plain] = {"function": qualified_name(value)}
        code = getattr(value, "__code__", None)
        if code is None:
            bound = getattr(value, "__self__", None)
            if bound is not None and not isinstance(bound, (types.ModuleType, type)):
                about.update(self.parts({"self": bound}))
            return about
        about["code"] = code_digest(code)
        groups = {
            "values": closure_values(value),
            "defaults": _defaults(value),
            "attributes": {name: item for name, item in vars(value).items() if not name.startswith("__")},
        }
        for name, group in groups.items():
            if group and (plain := self.part(name, dict(group))) and not isinstance(plain, Absent):
                about[name] = plain
        return about

    def _module(self, value: nn.Module) -> Plain:
        if is_compiled(value):
            return {"compiled": True, **self.parts({"function": value._orig_mod, "options": _compile_options(value)})}
        own = {
            name: item
            for name, item in vars(value).items()
            if name not in MACHINERY and (not name.startswith("_") or is_plain(item))
        }
        hooks = {name: list(vars(value).get(name, {}).values()) for name in _FORWARD_HOOKS}
        about = self.about_class(type(value))
        about["structure"] = structure_digest(value, self.ignore)
        if weights := weights_of(value):
            about["weights"] = WEIGHTS.digest(value, weights)
        kept = {name: item for name, item in own.items() if not self.ignore(value, name)}
        return {**about, **self.parts(hooks, empty=False), **_nested(self.parts(kept))}

    def about_class(self, kind: type) -> dict[str, Plain]:
        """A class by name and by what its objects do when called; one made inside a function also by what it is of."""
        about: dict[str, Plain] = {"class": qualified_name(kind)}
        if code := own_code(kind):
            about["code"] = code
        if "<locals>" in kind.__qualname__:
            about["bases"] = [qualified_name(each) for each in kind.__mro__[1:-1]]
        return about

    def plain_object(self, value: Any, but: Sequence[str] = ()) -> Plain:
        """Any other object by its class and attributes, less those named in `but`."""
        if isinstance(value, io.IOBase):
            return _opaque(value)
        attributes = dict(_attributes(value))
        if not attributes and not _is_written_in_python(type(value)):
            return _opaque(value)
        kept = {name: each for name, each in attributes.items() if name not in but and not self.ignore(value, name)}
        about = self.about_class(type(value))
        if isinstance(value, (dict, list, tuple, set)):
            about["items"] = self.value(dict(value) if isinstance(value, dict) else list(value))
        return {**about, **_nested(self.parts(kept))}


def _nested(values: dict[str, Plain]) -> dict[str, Plain]:
    return {"values": dict(values)} if values else {}


def is_own(value: object) -> bool:
    """Whether a value has an identity of its own, so that it may be described and remembered on its own."""
    if value is None or isinstance(value, (Tensor, *_DICTS, list, tuple, deque, set, frozenset, types.MethodType)):
        return False
    return isinstance(leaf(value), NotMine)


def _opaque(value: object) -> Plain:
    return {"class": qualified_name(type(value)), "undescribed": True}


def _is_written_in_python(kind: type) -> bool:
    return kind is object or all("__dict__" in vars(each) or "__slots__" in vars(each) for each in kind.__mro__[:-1])


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of an object, without what Python keeps itself, caches of properties, and private caches."""
    kind = type(value)
    fields = dataclasses.fields(value) if _is_dataclass(value) else ()
    # Only private ones: people also leave tensors out of comparisons, because those cannot be compared.
    left_out = {each.name for each in fields if not each.compare and each.name.startswith("_")}
    names = dict.fromkeys(getattr(value, "__dict__", {}))
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ())
        names.update(dict.fromkeys([slots] if isinstance(slots, str) else slots))
    for name in names:
        cached = isinstance(getattr(kind, name, None), functools.cached_property)
        if name.startswith("__") or name in left_out or cached or not isinstance(name, str):
            continue
        try:
            yield name, getattr(value, name)
        except AttributeError:
            continue


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _defaults(function: Any) -> dict[str, Any]:
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}


def _compile_options(module: Any) -> dict[str, Any]:
    """Options that torch.compile was given; the compiled code itself is run-time state."""
    context = getattr(module, "dynamo_ctx", None)
    options: dict[str, Any] = {}
    for name in ("_dynamic", "fullgraph", "dynamic"):
        if isinstance(found := getattr(context, name, None), (bool, int, str)):
            options[name.strip("_")] = found
    backend = getattr(context, "callback", None)
    for _ in range(8):
        deeper = [getattr(backend, name, None) for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")]
        further = next((each for each in deeper if each is not None), None)
        if further is None:
            break
        backend = further
    if backend is not None:
        options["backend"] = getattr(backend, "compiler_name", None) or qualified_name(backend)
        settings = {"config": getattr(backend, "config", None), "mode": getattr(backend, "mode", None)}
        options.update({name: value for name, value in settings.items() if value is not None})
    return options


def describe(value: object, describer: Describer | None = None) -> Plain:
    """Describe a value by content, as the docstring of this module explains."""
    return share((describer or Describer()).value(value))
